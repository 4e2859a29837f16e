"""Prometheus metrics of ``embed``, exported by Ray with those of the cluster.

The driver records them, since it receives every result, also of failed shards, until the last one. Authoritative counts
of a memory are in its commit records (``memory-builder info``).
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
    """Counters ``memory_builder_*``; Ray exports them with the prefix ``ray_``, by default every ten seconds.

    Ray must be connected.
    """

    def __init__(self) -> None:
        self._counters = {
            name: Counter(f"memory_builder_{name}", description=text, tag_keys=keys)
            for name, (text, keys) in COUNTERS.items()
        }

    def record(self, item: Any, result: Any) -> None:
        """Count an embedded or failed shard; other results are ignored."""
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
        if value > 0:  # Ray rejects other values
            self._counters[name].inc(value, tags=tags)
