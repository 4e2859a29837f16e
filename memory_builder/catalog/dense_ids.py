"""Row ids ↔ row numbers 0 … n - 1, without the deleted rows: how other tools count."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids, row_ids, rows_of, split_ids


class DenseIds:
    """The rows of some shards that are not deleted, numbered in order of their ids. Takes memory by the shard."""

    def __init__(self, n_rows: Mapping[int, int], deleted: Ids) -> None:
        """Rows by shard ordinal, and i64[m] the deleted row ids, ascending."""
        self._ordinals = np.array(sorted(n_rows), np.int64)
        counts = [n_rows[ordinal] - len(rows_of(ordinal, deleted)) for ordinal in self._ordinals.tolist()]
        self._starts = np.cumsum([0, *counts])[:-1]  # number of each shard's first kept row
        self._n_rows = n_rows
        self._deleted = deleted
        self.n = sum(counts)
        """How many there are."""

    def has(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """i64[n] ids of rows of these shards → bool[n], False for the deleted."""
        if not len(self._deleted):
            return np.ones(len(ids), np.bool_)
        at = np.minimum(np.searchsorted(self._deleted, ids), len(self._deleted) - 1)
        kept: npt.NDArray[np.bool_] = self._deleted[at] != ids
        return kept

    def numbers(self, ids: Ids) -> Ids:
        """i64[n] ids of rows that are kept → i64[n] their numbers."""
        ordinals, rows = split_ids(ids)
        shard = np.searchsorted(self._ordinals, ordinals)
        gone = np.searchsorted(self._deleted, ids) - np.searchsorted(self._deleted, ids - rows)
        numbers: Ids = self._starts[shard] + rows - gone
        return numbers

    def by_shard(self) -> Iterator[Ids]:
        """The ids in order of their numbers, a shard at a time."""
        for ordinal in self._ordinals.tolist():
            rows = np.arange(self._n_rows[ordinal])
            yield row_ids(ordinal, np.setdiff1d(rows, rows_of(ordinal, self._deleted), assume_unique=True))
