"""Tombstones: ``tombstones/<n>.npy`` holds the ids of all rows deleted so far, i64[n], ascending.

A file is written once and never changed. Deleted rows stay deleted, also after compaction removed them from indexes.
"""

import io

import numpy as np
import numpy.typing as npt

from memory_builder.base.arguments import shortened
from memory_builder.base.types import Ids, split_ids
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.snapshots import TOMBSTONES, Snapshot, snapshot_numbers
from memory_builder.errors import REPAIR, CorruptMemoryError, UsageError
from memory_builder.storage.formats import npy_bytes, read_npy
from memory_builder.storage.records import UNREADABLE
from memory_builder.storage.store import Store, sha256

UNKNOWN = "the deleted rows are unknown"


def read_tombstones(store: Store, path: str | None, digest: str | None = None) -> Ids:
    """Read the deleted row ids, i64[n], ascending; none without a path.

    Raises:
        CorruptMemoryError: the file is missing, damaged or of another digest than the snapshot's.
    """
    if path is None:
        return np.zeros(0, np.int64)
    try:
        data = store.read(path)
        ids: Ids = read_npy(io.BytesIO(data))
    except FileNotFoundError:
        raise CorruptMemoryError(f"{store.root}/{path} is missing: {UNKNOWN}", REPAIR) from None
    except UNREADABLE as error:
        raise CorruptMemoryError(f"{store.root}/{path} cannot be read ({error}): {UNKNOWN}", REPAIR) from None
    is_sound = ids.dtype == np.int64 and ids.ndim == 1 and bool((np.diff(ids) > 0).all())
    if not is_sound or (digest is not None and sha256(data) != digest):
        raise CorruptMemoryError(f"{store.root}/{path} does not match its snapshot: {UNKNOWN}", REPAIR)
    return ids


def current_tombstones(store: Store, snapshot: Snapshot | None) -> Ids:
    """Read the ids of the rows deleted in a snapshot; none without a snapshot."""
    return read_tombstones(store, *((snapshot.tombstones, snapshot.tombstones_sha256) if snapshot else (None,)))


def write_tombstones(store: Store, ids: Ids) -> tuple[str, str]:
    """Write deleted ids (i64[n], ascending); return (path, SHA-256).

    The number is above that of every snapshot, so that a concurrent compaction does not remove the file as old.
    """
    data = npy_bytes(ids)
    number = (snapshot_numbers(store) or [0])[-1] + 1
    while True:
        path = f"{TOMBSTONES}/{number}.npy"
        try:
            store.create(path, data)
        except FileExistsError:
            if store.read(path) != data:  # else a killed run of the same command left it
                number += 1
                continue
        return path, sha256(data)


def check_ids(ids: npt.ArrayLike, commits: dict[int, Commit], root: str) -> Ids:
    """Check row ids from a caller → i64[n], ascending, without duplicates.

    Raises:
        UsageError: an id is not a whole number, or its row is not in the memory.
    """
    given = np.asarray(ids)
    if given.size and given.dtype.kind not in "iu":
        raise UsageError(f"row ids are whole numbers, not {given.dtype}")
    unique: Ids = np.unique(given.astype(np.int64).ravel())
    ordinals, rows = split_ids(unique)
    sizes = {ordinal: commit.n_written for ordinal, commit in commits.items()}
    n_rows = np.array([sizes.get(ordinal, 0) for ordinal in ordinals.tolist()], np.int64)
    unknown = unique[(unique < 0) | (rows >= n_rows)]
    if len(unknown):
        raise UsageError(f"{shortened(unknown.tolist())} not in {root}: expected row ids as search prints them")
    return unique
