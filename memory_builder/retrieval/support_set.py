"""Support set of a subset: a centroid for each class (Neural Priming) and its best pictures (Tip, SuS-X).

``centroids.npy`` f32[c, d], ``support.npy`` f16[n, d] and ``support.parquet``, row for row as support.npy.
"""

import numpy as np
import pyarrow as pa

from memory_builder.base.types import Ids, Scores, unit_rows
from memory_builder.memory import Memory
from memory_builder.retrieval.selection import rank_in_class
from memory_builder.storage.formats import npy_bytes, parquet_bytes
from memory_builder.storage.store import Store

BLOCK = 65_536
SUPPORT = pa.schema([("label", pa.int32()), ("rank", pa.int32()), ("score", pa.float32()), ("id", pa.int64())])


def write_support(store: Store, memory: Memory, claims: pa.Table, n_classes: int, size: int) -> None:
    """Write the three files.

    Args:
        claims: label, score and id of every claim on a pair of the subset, by label, best first.
        size: pairs a class in the support set.
    """
    labels, ids = claims["label"].to_numpy(), claims["id"].to_numpy()
    store.put("centroids.npy", npy_bytes(centroids(memory, labels, ids, n_classes)))
    ranks = rank_in_class(labels)
    first = np.flatnonzero(ranks < size)
    table = claims.take(pa.array(first)).append_column("rank", pa.array(ranks[first].astype(np.int32)))
    store.put("support.npy", npy_bytes(memory.vectors(ids[first], "image").astype(np.float16)))
    store.put("support.parquet", parquet_bytes(table.select(SUPPORT.names).cast(SUPPORT)))


def centroids(memory: Memory, labels: Ids, ids: Ids, n_classes: int) -> Scores:
    """f32[c, d]: unit mean of each class's image vectors; zero for a class without any."""
    sums = np.zeros((n_classes, memory.description.d), np.float64)
    for start in range(0, len(ids), BLOCK):
        block = slice(start, start + BLOCK)
        np.add.at(sums, labels[block], memory.vectors(ids[block], "image"))
    return unit_rows(sums)
