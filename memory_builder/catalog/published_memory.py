"""Committed shards and deleted rows of a memory that is imported as published embeddings."""

import numpy as np

from memory_builder.base.types import Ids, rows_of
from memory_builder.catalog.description import DESCRIPTION
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.paths import shard_name
from memory_builder.catalog.snapshots import read_snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.readers.shard_uri import split_uri
from memory_builder.storage.store import Store


def committed_names(root: str) -> set[str] | None:
    """Return the names of the committed shards of the memory at ``root``; None if it is not a memory."""
    store = Store(root)
    if not store.exists(DESCRIPTION):
        return None
    return {shard_name(ordinal) for ordinal in Manifest.read(store).commits}


def deleted_rows(uri: str) -> Ids:
    """Return the deleted rows i64[n] of the shard ``uri``; none if its folder is not a memory."""
    root, piece = split_uri(uri)
    name = piece.embeddings or ""
    if not name.isdecimal():
        return np.zeros(0, np.int64)
    store = Store(root)
    if not store.exists(DESCRIPTION):
        return np.zeros(0, np.int64)
    return rows_of(int(name), current_tombstones(store, read_snapshot(store)))
