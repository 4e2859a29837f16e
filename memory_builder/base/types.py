"""Types of rows, vectors and scores, and the arithmetic of row ids.

A row id is ``ordinal << 32 | row``: the shard's ordinal in the plan and the row's number within the shard.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Modality = Literal["image", "text"]
"""Modality of a query, or of the vectors of an index."""
MODALITIES: tuple[Modality, ...] = ("image", "text")
Ids = npt.NDArray[np.int64]
"""Row ids."""
Vectors = npt.NDArray[np.float16]
"""Embeddings as stored."""
Scores = npt.NDArray[np.float32]
"""Inner products of unit vectors, or such vectors at full precision."""
Pixels = npt.NDArray[np.uint8]
"""Decoded pictures."""
Mask = npt.NDArray[np.bool_]
NO_ROW = -1
"""The row id that pads short results."""
ROW_BITS = 32


def row_ids(ordinal: int, rows: npt.NDArray[Any]) -> Ids:
    """Rows of one shard → i64 ids."""
    return np.int64(ordinal << ROW_BITS) | rows.astype(np.int64)


def split_ids(ids: Ids) -> tuple[Ids, Ids]:
    """Ids → (shard ordinals, rows)."""
    return ids >> ROW_BITS, ids & ((1 << ROW_BITS) - 1)


def split_id(row_id: int) -> tuple[int, int]:
    """Id → (shard ordinal, row)."""
    return row_id >> ROW_BITS, row_id & ((1 << ROW_BITS) - 1)


def rows_of(ordinal: int, ids: Ids) -> Ids:
    """Select the rows of one shard from ascending ids."""
    low, high = np.searchsorted(ids, [ordinal << ROW_BITS, (ordinal + 1) << ROW_BITS])
    return split_ids(ids[low:high])[1]


def in_blocks(ids: Iterable[Ids], n_rows: int) -> Iterator[Ids]:
    """Join the ids of shards into blocks of at least ``n_rows``."""
    waiting: list[Ids] = []
    for of_shard in ids:
        waiting.append(of_shard)
        if sum(map(len, waiting)) >= n_rows:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def unit_rows(rows: npt.NDArray[np.floating]) -> Scores:
    """f32 or f64[..., d] → f32[..., d] at length 1; zero rows stay zero. Stored rows are float16, a little off it."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    units: Scores = (rows / np.where(norms == 0, 1, norms)).astype(np.float32)
    return units
