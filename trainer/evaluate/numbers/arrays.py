"""Names for the arrays that evaluation passes around."""

import numpy as np
import numpy.typing as npt

from memory_builder.errors import EncoderError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def finite(rows: Floats, model: str, what: str) -> Floats:
    """The same rows. NaN compares as nothing does, so a model that gives it would seem to be always right.

    Raises:
        EncoderError: some are not finite.
    """
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise EncoderError(
            f"{model} makes {bad.sum():,} of {len(rows):,} {what} into vectors that are not finite: its weights are "
            "damaged or have diverged. Evaluate another model, or an earlier checkpoint with --step"
        )
    return rows


class Keys:
    """Rows to be scored against queries, such that equal rows have equal scores.

    A matrix product may give bit-equal rows scores that differ in the last bit, by where they stand in the matrix; then
    of two captions with the same text one is better. Each distinct row is scored once.
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
    """The first of each distinct row, i64[m], and which of these every row is, i64[n]."""
    weights = np.random.default_rng(0).integers(1, 1 << 63, rows.shape[1], np.uint64) | np.uint64(1)
    sums = np.zeros(len(rows), np.uint64)
    for column, weight in enumerate(weights):
        sums += (rows[:, column] + np.float32(0)).view(np.uint32).astype(np.uint64) * weight  # -0 + 0 is 0
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(rows)))
    if np.array_equal(rows[first[inverse[again]]], rows[again], equal_nan=True):
        return first, inverse
    return np.arange(len(rows)), np.arange(len(rows))
