"""Delete rows by id: the next snapshot adds them to its tombstones, and searches leave them out."""

from dataclasses import replace

import numpy as np

from memory_builder.base.types import Ids
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.catalog.tombstones import current_tombstones, write_tombstones
from memory_builder.catalog.update_snapshot import update_snapshot
from memory_builder.storage.store import Store


def delete_rows(store: Store, ids: Ids) -> Snapshot:
    """Write a snapshot in which the rows ``ids`` i64[n] are deleted; return it, or the current one if they all are.

    Raises:
        ConcurrentWriterError: other writers won every attempt.
    """

    def deleted(before: Snapshot) -> Snapshot:
        old = current_tombstones(store, before)
        new = np.union1d(old, ids)
        if len(new) == len(old):
            return before
        path, digest = write_tombstones(store, new)
        return replace(before, number=before.number + 1, tombstones=path, tombstones_sha256=digest)

    return update_snapshot(store, deleted)
