"""What a run of ``embed`` has done, as metrics of Ray: Prometheus finds them where it finds those of the cluster.

They come from the driver: it hears of every shard, also of those that failed, and lives until the last one. The truth
about a memory is its commit records (``memory-builder info``).
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter

from memory_builder.catalog.commits import Commit
from memory_builder.readers.shard import Shard

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pairs": ("Pairs read from shards.", ()),
    "rows": ("Rows written.", ()),
    "rejects": ("Pairs that could not be used.", ("reason",)),
    "shards": ("Shards finished: done, partial or failed.", ("state",)),
    "bytes": ("Bytes of the shards read, as they are stored.", ()),
    "seconds": ("Seconds of workers' time, by what it went into (total: all of it).", ("stage",)),
    "retries": ("Storage requests made again.", ()),
}


class EmbedMetrics:
    """Counters ``memory_builder_*``; Ray exports them with the prefix ``ray_``, every ten seconds unless set otherwise.

    Ray must be connected.
    """

    def __init__(self) -> None:
        self._counters = {
            name: Counter(f"memory_builder_{name}", description=text, tag_keys=keys)
            for name, (text, keys) in COUNTERS.items()
        }

    def record(self, item: Any, result: Any) -> None:
        """Count a shard that was embedded or failed; other work is not counted."""
        if not isinstance(item, Shard):
            return
        if not isinstance(result, Commit):
            self._add("shards", 1, state="failed")
            return
        self._add("shards", 1, state="partial" if result.partial else "done")
        self._add("pairs", result.n_read)
        self._add("rows", result.n_written)
        self._add("bytes", item.bytes)
        self._add("retries", result.retries)
        for reason, n in result.reasons.items():
            self._add("rejects", n, reason=reason)
        for stage, seconds in result.seconds.items():
            self._add("seconds", seconds, stage=stage)

    def _add(self, name: str, value: float, **tags: str) -> None:
        if value > 0:  # Ray takes nothing else
            self._counters[name].inc(value, tags=tags)
