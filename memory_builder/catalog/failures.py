"""Failure records: why a shard failed last time, for ``info`` and ``embed --retry-failed``."""

import time
from collections.abc import Collection
from contextlib import suppress

from memory_builder.catalog.commits import record_names
from memory_builder.catalog.paths import shard_name
from memory_builder.readers.shard import Shard
from memory_builder.storage.records import write_record
from memory_builder.storage.store import Store


def record_failure(store: Store, shard: Shard, error: Exception) -> str:
    """Record why a shard failed; the next run retries it.

    Returns:
        The reason, as users see it.
    """
    message = f"{type(error).__name__}: {error}"
    record = {"ordinal": shard.ordinal, "uri": shard.uri, "error": message, "failed_s": time.time()}
    write_record(store, f"failures/{shard_name(shard.ordinal)}.json", record)
    return message


def clear_failure(store: Store, shard: Shard) -> None:
    """Remove the failure record of a shard that is committed now."""
    with suppress(FileNotFoundError):  # no failure, or another driver removed it first
        store.remove(f"failures/{shard_name(shard.ordinal)}.json")


def failed_ordinals(store: Store, committed: Collection[int]) -> set[int]:
    """Return the ordinals of shards that failed and were not committed since."""
    return {int(name.removesuffix(".json")) for name in record_names(store, "failures")}.difference(committed)
