"""Sets of rows as bitmaps, for filters and deletions: 100 million rows take 12.5 MB."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids, row_ids, rows_of, split_ids
from memory_builder.catalog.commits import Commit

Mask = npt.NDArray[np.bool_]


class RowBitmap:
    """A set of rows of some shards. Immutable and thread-safe."""

    def __init__(self, masks: Iterable[tuple[int, Mask]]) -> None:
        """Take (ordinal, bool[rows of the shard]) of each shard with rows in the set, in order of the ordinals."""
        ordinals, n_rows, packed, n = [], [], [], 0
        for ordinal, mask in masks:
            ordinals.append(ordinal)
            n_rows.append(len(mask))
            packed.append(np.packbits(mask))
            n += int(mask.sum())
        self._n = n
        self._ordinals = np.array(ordinals, np.int64)
        self._n_rows = np.array(n_rows, np.int64)
        self._starts = np.cumsum([0, *map(len, packed)])  # byte where a shard's bits begin
        self._bits = np.concatenate([*packed, np.zeros(1, np.uint8)])  # so that index 0 is valid without shards

    def __len__(self) -> int:
        return self._n

    def contains(self, ids: Ids) -> Mask:
        """i64[...] → bool[...]; False for -1 and for rows of other shards."""
        ordinals, rows = split_ids(ids)
        position = np.minimum(np.searchsorted(self._ordinals, ordinals), max(0, len(self._ordinals) - 1))
        if not len(self._ordinals):
            return np.zeros(ids.shape, np.bool_)
        known = (self._ordinals[position] == ordinals) & (rows < self._n_rows[position])
        byte = self._bits[np.where(known, self._starts[position] + (rows >> 3), 0)]
        contained: Mask = known & ((byte >> (7 - (rows & 7)).astype(np.uint8)) & 1).astype(np.bool_)
        return contained

    def mask(self, ordinal: int) -> Mask | None:
        """Return the mask bool[rows of the shard]; None if none of its rows is in the set."""
        position = int(np.searchsorted(self._ordinals, ordinal))
        if position == len(self._ordinals) or self._ordinals[position] != ordinal:
            return None
        bits = np.unpackbits(
            self._bits[self._starts[position] : self._starts[position + 1]], count=int(self._n_rows[position])
        )
        return bits.astype(np.bool_)

    def ids(self) -> Ids:
        """Return the row ids i64[n], ascending."""
        masks = ((int(ordinal), self.mask(int(ordinal))) for ordinal in self._ordinals)
        by_shard = [row_ids(ordinal, np.flatnonzero(mask)) for ordinal, mask in masks if mask is not None]
        return np.concatenate(by_shard) if by_shard else np.zeros(0, np.int64)

    @cached_property
    def selector(self) -> Any:
        """faiss's ID selector of the set: a hash set of some 44 bytes a row, so only for small sets."""
        return faiss.IDSelectorBatch(self.ids())


def remaining_rows(
    commits: dict[int, Commit], ordinals: Iterable[int], deleted: Ids, kept: RowBitmap | None
) -> RowBitmap:
    """Select rows of these shards: ``kept`` by a filter (None: all), without ``deleted`` (i64[n], sorted)."""

    def masks() -> Iterable[tuple[int, Mask]]:
        for ordinal in sorted(ordinals):
            mask = np.ones(commits[ordinal].n_written, np.bool_) if kept is None else kept.mask(ordinal)
            if mask is not None:
                mask[rows_of(ordinal, deleted)] = False
                yield ordinal, mask

    return RowBitmap(masks())
