"""Search among some of the rows only: those a filter keeps, and that are not deleted.

There are three ways to the same answer. Rows that are few are scored one by one, from their exact vectors. Rows that
are many are found by asking for more candidates and dropping the others, which costs next to nothing until it takes
thousands of them. What lies between is scanned with a selector, which looks at the id of every code that is scanned.
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
"""As many as an index scans without lists."""
WIDEST = 2_000
"""Candidates at which a wider scan costs what a selector does (measured on PQ codes)."""
SELECTOR_ROWS = 1_000_000
"""A selector's hash set takes 44 bytes a row; beyond this the scan is widened, however wide it gets."""
LEAST_LIST = 0.1
"""Share of a list that is not worth scanning one more: a single deleted row changes nothing."""

WidthScan = Callable[[Scores, int], tuple[Scores, Ids]]
"""(queries f32[q, d], width) → that many candidates, best first: scores f32[q, width], ids i64[q, width]."""


def is_few(allowed: RowBitmap, n_rows: int, rows: Rows) -> bool:
    """Whether to score every row there is; from an object store each of them would be a request."""
    return len(allowed) <= min(FEW_ROWS, n_rows // 2) and rows.store.is_local


def is_selective(allowed: RowBitmap, k: int, n_rows: int) -> bool:
    """Whether to scan with a selector rather than to widen the scan."""
    return len(allowed) <= SELECTOR_ROWS and _first_width(allowed, k, n_rows) > WIDEST


def lists_for(n_rows: float, nprobe: int, n_tuned: int, n_lists: int) -> int:
    """Lists to scan, of ``n_lists`` over which ``n_rows`` rows may answer, so that the recall stays what it was.

    They hold as many of these rows as ``nprobe`` lists did of the ``n_tuned`` that there were in tuning.
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
    """Ask for more than k candidates until k of them are allowed, or there are no more."""
    scores = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), NO_ROW, np.int64)
    width = _first_width(allowed, k, n_rows)
    asking = np.arange(len(queries))
    while len(asking):
        candidate_scores, candidates = scan(queries[asking], width)
        is_in = allowed.contains(candidates)
        scores[asking], ids[asking] = best_of(candidate_scores, np.where(is_in, candidates, NO_ROW), k)
        is_short = (is_in.sum(axis=1) < k) & (candidates[:, -1] != NO_ROW) & (width < n_rows)
        asking, width = asking[is_short], min(n_rows, 2 * width)
    return scores, ids


def _first_width(allowed: RowBitmap, k: int, n_rows: int) -> int:
    """Candidates that hold k allowed ones if the filter has nothing to do with the query, and some to spare."""
    return max(k, min(n_rows, math.ceil(1.5 * k * n_rows / max(1, len(allowed))) + 16))
