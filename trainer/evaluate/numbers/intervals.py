"""Confidence intervals by bootstrap over classes, and paired tests of two methods.

A benchmark's classes are a sample of all possible classes, and pictures of one class are correlated: resampling
pictures alone would make intervals too narrow. Percentile intervals of Efron & Tibshirani, An Introduction to
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
"""With fewer classes than this, percentile intervals cover the true value less often than their level."""
TOO_FEW = f"Intervals over fewer than {FEW} classes (in retrieval, pictures) are too narrow; over one there is none."
CHUNK = 1 << 24
"""Resampled weights in memory at a time."""
CACHED = 1 << 22
"""Most weights to cache for the next metric over the same number of classes: drawing them takes the longest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """A metric as a quotient of sums over classes: Σ ``hits`` / Σ ``counts``."""

    hits: Reals
    """f64[g]: correct pictures of each class, or its score if all classes have equal weight."""
    counts: Reals
    """f64[g]: pictures of each class, or ones."""

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
    """Difference of two methods on the same pictures."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided p: twice the fraction of resamples on the other side of zero, at least 2 / (resamples + 1). NaN, like
    the bounds, with one class."""


def interval(sums: Sums, *, n_resamples: int = N_RESAMPLES) -> tuple[float, float]:
    """Percentile interval of ``sums.value``, resampling classes with replacement; NaN for one class."""
    if len(sums.hits) == 1:
        return math.nan, math.nan
    return _percentiles(_resampled(sums, n_resamples))


def paired_difference(a: Sums, b: Sums, *, n_resamples: int = N_RESAMPLES) -> Difference:
    """Paired bootstrap of a - b, with the same resampled classes for both.

    Raises:
        ValueError: a and b have other classes.
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
    is_small = len(sums.hits) * n_resamples <= CACHED
    weights = (_cached_weights if is_small else _weights)(len(sums.hits), n_resamples)
    return np.concatenate([(w @ sums.hits) / (w @ sums.counts) for w in weights])


@lru_cache(maxsize=4)
def _cached_weights(n_groups: int, n_resamples: int) -> tuple[Reals, ...]:
    return tuple(_weights(n_groups, n_resamples))


def _weights(n_groups: int, n_resamples: int) -> Iterator[Reals]:
    """Number of draws of each class: f64[r, g] for r resamples at a time. The same for the same g."""
    rng = np.random.default_rng(0)
    step = max(1, CHUNK // n_groups)
    even = np.full(n_groups, 1 / n_groups)
    for start in range(0, n_resamples, step):
        yield rng.multinomial(n_groups, even, size=min(step, n_resamples - start)).astype(np.float64)


def _percentiles(drawn: Reals) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
