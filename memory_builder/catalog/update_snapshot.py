"""Make the next snapshot current: retry a change until its conditional put wins over other writers."""

import time
from collections.abc import Callable
from dataclasses import replace

from memory_builder.base.arguments import shortened
from memory_builder.catalog.snapshots import Snapshot, read_current, write_snapshot
from memory_builder.errors import ConcurrentWriterError
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.store import Store

ATTEMPTS = 20


LOCK = "snapshots.lock"
"""Held while a snapshot becomes current, and while unused files are removed: never both at once."""


def update_snapshot(store: Store, change: Callable[[Snapshot], Snapshot]) -> Snapshot:
    """Apply a change to the current snapshot, with retries; a change that returns its argument writes none."""
    for _ in range(ATTEMPTS):
        before, is_whole = read_current(store)
        after = change(before)
        if after is before:
            if is_whole:
                return before
            after = replace(before, number=before.number + 1)  # supersedes the damaged file
        try:
            return publish(store, after)
        except ConcurrentWriterError as error:
            refused = error
    raise refused


def publish(store: Store, snapshot: Snapshot) -> Snapshot:
    """Make a snapshot current, after checking that all its parts exist.

    Raises:
        ConcurrentWriterError: another writer took the number, or removed a file meanwhile.
    """
    snapshot = replace(snapshot, written_s=time.time())
    with hold_lock(store, LOCK) as held:
        for view in snapshot.indexes.values():
            files = set(store.list(f"{view.index}/parts"))
            missing = [name for name in view.parts if not {f"{name}.json", f"{name}.faiss"} <= files]
            if missing:
                raise ConcurrentWriterError(
                    f"{store.root}/{view.index}: another writer removed {shortened(missing)} meanwhile; run this again"
                )
        held.check()
        write_snapshot(store, snapshot)
    return snapshot
