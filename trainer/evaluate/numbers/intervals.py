"""How far a number would move with other classes: bootstrap over classes, and the paired one between two methods.

A benchmark's classes are a sample of those one could have asked for, and pictures of one class rise and fall together:
drawing pictures alone would make intervals too narrow. Percentile intervals of Efron & Tibshirani, An Introduction to
the Bootstrap (1993), chapter 13.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Reals = npt.NDArray[np.float64]
N_RESAMPLES = 2_000
LEVEL = 0.95
FEW = 20
"""With fewer classes than this, percentile intervals hold the truth less often than they say."""
TOO_FEW = f"Intervals over fewer than {FEW} classes (in retrieval, pictures) are too narrow; over one there is none."
CHUNK = 1 << 24
"""Draws held at a time."""
KEPT = 1 << 22
"""Draws of so many at most are kept for the next metric over as many classes: drawing takes longer than the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """What each class adds to a metric that is a quotient: Σ of ``hits`` over Σ of ``counts``."""

    hits: Reals
    """f64[g]: pictures that are right, by class; or the class's own score where every class counts the same."""
    counts: Reals
    """f64[g]: pictures by class; or ones."""

    def __post_init__(self) -> None:
        if self.hits.shape != self.counts.shape or self.hits.ndim != 1 or not len(self.hits):
            raise ValueError(f"hits {self.hits.shape} and counts {self.counts.shape}: expected [g], g at least 1")
        if not (self.counts > 0).all():
            raise ValueError("a class without pictures has no score: leave it out")

    @property
    def value(self) -> float:
        return float(self.hits.sum() / self.counts.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One method against another on the same pictures."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided: twice the share of resamples on the other side of zero, at least 2 / (resamples + 1). With one class
    this and the bounds are NaN: it says nothing of others."""


def interval(sums: Sums, *, n_resamples: int = N_RESAMPLES) -> tuple[float, float]:
    """The percentile interval of ``sums.value`` over classes drawn with replacement; NaN for one class."""
    if len(sums.hits) == 1:
        return math.nan, math.nan
    return _percentiles(_resampled(sums, n_resamples))


def paired_difference(a: Sums, b: Sums, *, n_resamples: int = N_RESAMPLES) -> Difference:
    """a - b, with the same classes drawn for both.

    Raises:
        ValueError: they do not stand for the same classes.
    """
    if a.counts.shape != b.counts.shape or not np.array_equal(a.counts, b.counts):
        raise ValueError("a paired test needs the same classes with the same pictures in both")
    if len(a.hits) == 1:
        return Difference(value=a.value - b.value, low=math.nan, high=math.nan, p=math.nan)
    # The quotients share their denominators, so their difference is one quotient.
    drawn = _resampled(Sums(hits=a.hits - b.hits, counts=a.counts), n_resamples)
    low, high = _percentiles(drawn)
    other_side = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (other_side + 1) / (n_resamples + 1))
    return Difference(value=a.value - b.value, low=low, high=high, p=float(p))


def _resampled(sums: Sums, n_resamples: int) -> Reals:
    """f64[n_resamples] values of the metric."""
    is_small = len(sums.hits) * n_resamples <= KEPT
    weights = (_kept_weights if is_small else _weights)(len(sums.hits), n_resamples)
    return np.concatenate([(w @ sums.hits) / (w @ sums.counts) for w in weights])


@lru_cache(maxsize=4)
def _kept_weights(n_groups: int, n_resamples: int) -> tuple[Reals, ...]:
    return tuple(_weights(n_groups, n_resamples))


def _weights(n_groups: int, n_resamples: int) -> Iterator[Reals]:
    """How often each class is drawn: f64[some, g], a few resamples at a time. The same for the same g."""
    rng = np.random.default_rng(0)
    step = max(1, CHUNK // n_groups)
    even = np.full(n_groups, 1 / n_groups)
    for start in range(0, n_resamples, step):
        yield rng.multinomial(n_groups, even, size=min(step, n_resamples - start)).astype(np.float64)


def _percentiles(drawn: Reals) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
