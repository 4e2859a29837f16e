"""Array types of evaluation, and scores that are equal for equal rows."""

import numpy as np
import numpy.typing as npt

from memory_builder.errors import EncoderError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def finite(rows: Floats, model: str, what: str) -> Floats:
    """Return the rows unchanged. NaN compares false with everything, so a model with NaN would seem always right.

    Raises:
        EncoderError: some rows are not finite.
    """
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise EncoderError(
            f"{model} gives embeddings that are not finite for {bad.sum():,} of {len(rows):,} {what}: its weights are "
            "damaged or have diverged. Evaluate another model, or an earlier checkpoint with --step"
        )
    return rows


class ScoredRows:
    """Rows to score against queries, with equal scores for equal rows.

    In a matrix product the scores of equal rows may differ in the last bit, depending on their position; of two
    captions with the same text one would win. So each distinct row is scored once.
    """

    def __init__(self, rows: Floats) -> None:
        first, inverse = _distinct(np.ascontiguousarray(rows, np.float32))
        self._is_distinct = len(first) == len(rows)
        self._rows: Floats = rows if self._is_distinct else rows[first]
        self._inverse = inverse

    def scores(self, queries: Floats) -> Floats:
        """f32[b, d] → f32[b, n] inner products."""
        scores: Floats = queries @ self._rows.T
        return scores if self._is_distinct else scores[:, self._inverse]


def _distinct(rows: Floats) -> tuple[Labels, Labels]:
    """(i64[m] index of the first of each distinct row, i64[n] distinct row of every row)."""
    weights = np.random.default_rng(0).integers(1, 1 << 63, rows.shape[1], np.uint64) | np.uint64(1)
    sums = np.zeros(len(rows), np.uint64)
    for column, weight in enumerate(weights):
        sums += (rows[:, column] + np.float32(0)).view(np.uint32).astype(np.uint64) * weight  # -0 + 0 is 0
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(rows)))
    if np.array_equal(rows[first[inverse[repeated]]], rows[repeated], equal_nan=True):
        return first, inverse
    return np.arange(len(rows)), np.arange(len(rows))
