"""Rows that a search may return: those that match a filter and are not deleted."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from memory_builder.base.types import Ids, Modality
from memory_builder.catalog.row_bitmap import RowBitmap, remaining_rows
from memory_builder.catalog.rows import Rows

if TYPE_CHECKING:
    from memory_builder.search.open_index import OpenIndex

FILTERS_KEPT = 8
"""Filters whose rows are cached; each takes a bit a row."""


class AllowedRows:
    """Rows of one snapshot that a search may return. Safe to use from several threads.

    Args:
        rows: rows of the memory.
        deleted: i64[n] deleted row ids, ascending.
    """

    def __init__(self, rows: Rows, deleted: Ids) -> None:
        # The caches hold functions of this file, not methods: so open files close with the memory, at once.
        matching = lru_cache(FILTERS_KEPT)(partial(_matching, rows))
        self._of = lru_cache(FILTERS_KEPT)(partial(_allowed, rows, deleted, matching))
        self._share = lru_cache(maxsize=2)(partial(_share, rows))

    def of(self, index: "OpenIndex", where: str | None) -> RowBitmap | None:
        """Rows of an index that a search may return; None for all rows.

        Raises:
            UsageError: the filter is invalid.
        """
        return self._of(index, where)

    def share(self, index: "OpenIndex", modality: Modality) -> float:
        """Share of the rows in an index's shards that have its modality; assumed equal for any subset of them."""
        return self._share(index, modality)


def _matching(rows: Rows, where: str) -> RowBitmap:
    from memory_builder.search.where import matching_rows  # its parser takes a while to import

    return matching_rows(rows, where)


def _allowed(
    rows: Rows, deleted: Ids, matching: Callable[[str], RowBitmap], index: "OpenIndex", where: str | None
) -> RowBitmap | None:
    if where is None and not len(deleted):
        return None
    return remaining_rows(rows.commits, index.ordinals, deleted, None if where is None else matching(where))


def _share(rows: Rows, index: "OpenIndex", modality: Modality) -> float:
    commits = [rows.commits[ordinal] for ordinal in index.ordinals]
    return sum(commit.n_present(modality) for commit in commits) / max(1, sum(commit.n_written for commit in commits))
