"""Search among allowed rows only: those that match a filter and are not deleted.

There are three methods with the same hits. Few rows are scored one by one from their exact vectors. For many rows the
search retrieves more candidates and drops the others, which costs next to nothing until it needs thousands of them. In
between, a faiss selector checks the id of every scanned code.
"""

import math
from collections.abc import Callable

import faiss
import numpy as np

from memory_builder.base.types import NO_ROW, Ids, Modality, Scores
from memory_builder.catalog.row_bitmap import RowBitmap
from memory_builder.catalog.rows import Rows
from memory_builder.search.scores import best_of

FEW_ROWS = 10_000
"""Rows that an index scans without lists."""
WIDEST = 2_000
"""Number of candidates at which widening the scan costs as much as a selector (measured on PQ codes)."""
SELECTOR_ROWS = 1_000_000
"""Largest selector; its hash set takes 44 bytes a row. Beyond it the scan is widened without limit."""
LEAST_LIST = 0.1
"""Fraction of a list that is not worth scanning another one: a single deleted row changes nothing."""

WidthScan = Callable[[Scores, int], tuple[Scores, Ids]]
"""(queries f32[q, d], width) → width candidates, best first: scores f32[q, width], ids i64[q, width]."""


def is_few(allowed: RowBitmap, n_rows: int, rows: Rows) -> bool:
    """Whether to score every allowed row; on an object store each row would be a request."""
    return len(allowed) <= min(FEW_ROWS, n_rows // 2) and rows.store.is_local


def is_selective(allowed: RowBitmap, k: int, n_rows: int) -> bool:
    """Whether to scan with a selector instead of widening the scan."""
    return len(allowed) <= SELECTOR_ROWS and _first_width(allowed, k, n_rows) > WIDEST


def lists_for(n_rows: float, nprobe: int, n_tuned: int, n_lists: int) -> int:
    """Number of the ``n_lists`` lists to scan among ``n_rows`` allowed rows for unchanged recall.

    These lists hold as many allowed rows as ``nprobe`` lists held of the ``n_tuned`` rows at tuning.
    """
    raised = math.ceil(nprobe * n_tuned / max(1, n_rows) - LEAST_LIST)
    return min(n_lists, max(nprobe, raised))


def score_all(queries: Scores, k: int, rows: Rows, modality: Modality, allowed: RowBitmap) -> tuple[Scores, Ids]:
    """Exact scores of every allowed row: f32[q, min(k, n)], ids i64[q, min(k, n)], best first."""
    ids = allowed.ids()
    vectors = rows.vectors(ids, modality)
    present = vectors.any(axis=1)  # a row may lack this modality
    ids, vectors = ids[present], vectors[present]
    k = min(k, len(ids))
    if not k:
        return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    scores, rows_of_best = faiss.knn(queries, vectors, k, faiss.METRIC_INNER_PRODUCT)
    return best_of(scores, ids[rows_of_best], k)


def widen(scan: WidthScan, queries: Scores, k: int, n_rows: int, allowed: RowBitmap) -> tuple[Scores, Ids]:
    """Retrieve more and more candidates until k of them are allowed, or all are retrieved."""
    scores = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), NO_ROW, np.int64)
    width = _first_width(allowed, k, n_rows)
    unfinished = np.arange(len(queries))
    while len(unfinished):
        candidate_scores, candidates = scan(queries[unfinished], width)
        is_in = allowed.contains(candidates)
        scores[unfinished], ids[unfinished] = best_of(candidate_scores, np.where(is_in, candidates, NO_ROW), k)
        is_short = (is_in.sum(axis=1) < k) & (candidates[:, -1] != NO_ROW) & (width < n_rows)
        unfinished, width = unfinished[is_short], min(n_rows, 2 * width)
    return scores, ids


def _first_width(allowed: RowBitmap, k: int, n_rows: int) -> int:
    """Number of candidates that hold k allowed ones with a margin, if filter and query are independent."""
    return max(k, min(n_rows, math.ceil(1.5 * k * n_rows / max(1, len(allowed))) + 16))
