"""Scores of rows: the k best in a reproducible order, and exact scores."""

import numpy as np

from memory_builder.base.types import NO_ROW, Ids, Modality, Scores
from memory_builder.catalog.rows import Rows


def best_of(scores: Scores, ids: Ids, k: int) -> tuple[Scores, Ids]:
    """Select the k best of [q, c ≥ k] candidates; ids order equal scores, so that results are reproducible."""
    scores = np.where(ids == NO_ROW, np.float32(-np.inf), scores)
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def exact_scores(queries: Scores, ids: Ids, rows: Rows, modality: Modality) -> Scores:
    """f32[q, d], i64[q, c] → f32[q, c] inner products with the stored vectors; undefined for id -1."""
    vectors = rows.vectors(ids.ravel(), modality).reshape(*ids.shape, rows.d)  # f32[q, c, d]
    scores: Scores = np.einsum("qd,qcd->qc", queries, vectors, optimize=True)
    return scores
