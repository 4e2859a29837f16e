"""Select the pairs of the subset: limits, and pairs that several classes claim.

Higher scores win, and among equal scores smaller row ids, so the result does not depend on the order of claims.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids, Scores
from memory_builder.errors import UsageError

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Limits of the subset, and pairs that several classes claim."""

    max_per_class: int | None = None
    """Largest number of pairs of a class."""
    total: int | None = None
    """Largest number of pairs in the subset."""
    share: Literal["balanced", "natural"] = "balanced"
    """Distribution of --total. balanced: every class its best pair, then its second best, …; natural: by score
    alone."""
    overlap: Literal["all", "best"] = "all"
    """Classes of a pair that several claim: all of them, or the one with the best score. The subset has it once."""

    def __post_init__(self) -> None:
        for name in ("max_per_class", "total"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1")


@dataclass(frozen=True, slots=True)
class Claims:
    """Claims of classes on rows, each (class, row) once."""

    labels: Labels
    """i64[n] labels."""
    rows: Ids
    """i64[n] row ids."""
    scores: Scores
    """f32[n] score of the class's nearest query."""
    hits: npt.NDArray[np.int64]
    """i64[n] positions of these hits among all."""

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Claims":
        return Claims(self.labels[rows], self.rows[rows], self.scores[rows], self.hits[rows])


def best_claims(labels: Labels, rows: Ids, scores: Scores) -> Claims:
    """Reduce hits i64[n], i64[n], f32[n] to each (class, row) once, with its best score."""
    order = np.lexsort((-scores, rows, labels))
    labels, rows, scores = labels[order], rows[order], scores[order]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (labels[1:] != labels[:-1]) | (rows[1:] != rows[:-1])
    return Claims(labels[is_first], rows[is_first], scores[is_first], order[is_first])


def select(claims: Claims, config: SelectConfig) -> Claims:
    """Select the claims within the limits, in order of class, score and row."""
    if config.overlap == "best":
        claims = _best_per_row(claims)
    claims = claims.at(np.lexsort((claims.rows, -claims.scores, claims.labels)))
    if config.max_per_class is not None:
        claims = claims.at(rank_in_class(claims.labels) < config.max_per_class)
    if config.total is not None:
        claims = claims.at(_within_total(claims, config.total, config.share))
    return claims


def row_scores(claims: Claims) -> tuple[Ids, Scores]:
    """The claimed rows, each once with its best score, best first."""
    best = _best_per_row(claims)
    best = best.at(np.lexsort((best.rows, -best.scores)))
    return best.rows, best.scores


def percentile_ranks(scores: Scores, modes: npt.NDArray[np.int8]) -> Scores:
    """Percentile ranks of hits within their mode: f32[n], i8[n] → f32[n] in 0..1.

    Cosines of a text with captions and with pictures differ widely; a union by cosine would take captions only.
    """
    ranks = np.zeros(len(scores), np.float32)
    for mode in np.unique(modes):
        in_mode = modes == mode
        ordered = np.sort(scores[in_mode])
        ranks[in_mode] = np.searchsorted(ordered, scores[in_mode], side="right") / len(ordered)
    return ranks


def _best_per_row(claims: Claims) -> Claims:
    """Keep one claim for each row: the one with the best score, of the first class among equals."""
    order = np.lexsort((claims.labels, -claims.scores, claims.rows))
    rows = claims.rows[order]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = rows[1:] != rows[:-1]
    return claims.at(order[is_first])


def rank_in_class(labels: Labels) -> npt.NDArray[np.int64]:
    """Rank of each claim within its class, from ascending labels."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    return np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))


def _within_total(claims: Claims, total: int, share: str) -> npt.NDArray[np.bool_]:
    """Whether each claim is on one of the first ``total`` rows."""
    keys = (claims.rows, -claims.scores)
    order = np.lexsort((*keys, rank_in_class(claims.labels)) if share == "balanced" else keys)
    _, first = np.unique(claims.rows[order], return_index=True)  # where each row comes up first
    chosen = claims.rows[order][np.sort(first)[:total]]
    return np.isin(claims.rows, chosen)
