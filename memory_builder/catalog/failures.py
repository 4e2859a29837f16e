"""Why a shard failed last time: kept where ``info`` finds it and ``embed --retry-failed`` starts from."""

import time
from collections.abc import Collection
from contextlib import suppress

from memory_builder.catalog.commits import record_names
from memory_builder.catalog.paths import shard_name
from memory_builder.readers.shard import Shard
from memory_builder.storage.records import write_record
from memory_builder.storage.store import Store


def record_failure(store: Store, shard: Shard, error: Exception) -> str:
    """Keep why a shard failed; the next run tries it again.

    Returns:
        The reason as it is shown.
    """
    message = f"{type(error).__name__}: {error}"
    record = {"ordinal": shard.ordinal, "uri": shard.uri, "error": message, "failed_s": time.time()}
    write_record(store, f"failures/{shard_name(shard.ordinal)}.json", record)
    return message


def clear_failure(store: Store, shard: Shard) -> None:
    """Forget an earlier failure of a shard that is committed now."""
    with suppress(FileNotFoundError):  # there was none, or another driver forgot it first
        store.remove(f"failures/{shard_name(shard.ordinal)}.json")


def failed_ordinals(store: Store, committed: Collection[int]) -> set[int]:
    """The shards that failed and were not committed since."""
    return {int(name.removesuffix(".json")) for name in record_names(store, "failures")}.difference(committed)
