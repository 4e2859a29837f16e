"""Delete rows by id: the next snapshot lists them among its tombstones, and no search returns them from then on."""

from dataclasses import replace

import numpy as np

from memory_builder.base.types import Ids
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.catalog.tombstones import current_tombstones, write_tombstones
from memory_builder.catalog.update_snapshot import update_snapshot
from memory_builder.storage.store import Store


def delete_rows(store: Store, ids: Ids) -> Snapshot:
    """Make a snapshot current in which the rows ``ids`` i64[n] are deleted; the current one where they all are.

    Raises:
        ConcurrentWriterError: other writers were always faster.
    """

    def deleted(before: Snapshot) -> Snapshot:
        gone = current_tombstones(store, before)
        together = np.union1d(gone, ids)
        if len(together) == len(gone):
            return before
        path, digest = write_tombstones(store, together)
        return replace(before, number=before.number + 1, tombstones=path, tombstones_sha256=digest)

    return update_snapshot(store, deleted)
