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
