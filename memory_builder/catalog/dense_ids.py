"""Map row ids to dense ids 0 … n - 1 over the rows that are not deleted, as other tools number rows."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids, row_ids, rows_of, split_ids


class DenseIds:
    """Dense ids of the rows of some shards that are not deleted. Memory is proportional to the shards, not the rows."""

    def __init__(self, n_rows: Mapping[int, int], deleted: Ids) -> None:
        """Take the number of rows by shard ordinal, and the deleted row ids i64[m], ascending."""
        self._ordinals = np.array(sorted(n_rows), np.int64)
        counts = [n_rows[ordinal] - len(rows_of(ordinal, deleted)) for ordinal in self._ordinals.tolist()]
        self._starts = np.cumsum([0, *counts])[:-1]  # number of each shard's first kept row
        self._n_rows = n_rows
        self._deleted = deleted
        self.n = sum(counts)
        """Number of rows that are not deleted."""

    def has(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """i64[n] ids of rows of these shards → bool[n], False for the deleted."""
        if not len(self._deleted):
            return np.ones(len(ids), np.bool_)
        at = np.minimum(np.searchsorted(self._deleted, ids), len(self._deleted) - 1)
        is_present: npt.NDArray[np.bool_] = self._deleted[at] != ids
        return is_present

    def numbers(self, ids: Ids) -> Ids:
        """i64[n] ids of rows that are not deleted → i64[n] dense ids."""
        ordinals, rows = split_ids(ids)
        shard = np.searchsorted(self._ordinals, ordinals)
        n_deleted_before = np.searchsorted(self._deleted, ids) - np.searchsorted(self._deleted, ids - rows)
        numbers: Ids = self._starts[shard] + rows - n_deleted_before
        return numbers

    def by_shard(self) -> Iterator[Ids]:
        """Yield the row ids of each shard, in order of their dense ids."""
        for ordinal in self._ordinals.tolist():
            rows = np.arange(self._n_rows[ordinal])
            yield row_ids(ordinal, np.setdiff1d(rows, rows_of(ordinal, self._deleted), assume_unique=True))
