"""Which of the found pairs make the subset: caps, and who gets a pair that several classes claim.

Everything is decided by score, and among equal scores by row id, so the same claims select the same rows in any order.
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
    """What is kept of what was found."""

    max_per_class: int | None = None
    """Pairs a class may claim: its best."""
    total: int | None = None
    """Pairs in the subset, at most."""
    share: Literal["balanced", "natural"] = "balanced"
    """How --total is shared. balanced: every class its best, then its second best, …; natural: by score alone."""
    overlap: Literal["all", "best"] = "all"
    """A pair that several classes claim is in the subset once: for all of them, or for the one with the best score."""

    def __post_init__(self) -> None:
        for name in ("max_per_class", "total"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1")


@dataclass(frozen=True, slots=True)
class Claims:
    """Classes' claims on rows, each (class, row) once."""

    labels: Labels
    """i64[n]."""
    rows: Ids
    """i64[n] row ids."""
    scores: Scores
    """f32[n]: of the query of this class that the row is nearest to."""
    hits: npt.NDArray[np.int64]
    """i64[n]: which of the hits that is."""

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Claims":
        return Claims(self.labels[rows], self.rows[rows], self.scores[rows], self.hits[rows])


def best_claims(labels: Labels, rows: Ids, scores: Scores) -> Claims:
    """Hits of single queries, i64[n], i64[n], f32[n] → each (class, row) once, with its best score."""
    order = np.lexsort((-scores, rows, labels))
    labels, rows, scores = labels[order], rows[order], scores[order]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (labels[1:] != labels[:-1]) | (rows[1:] != rows[:-1])
    return Claims(labels[is_first], rows[is_first], scores[is_first], order[is_first])


def select(claims: Claims, config: SelectConfig) -> Claims:
    """The claims that hold, in order of class, score and row."""
    if config.overlap == "best":
        claims = _to_the_best(claims)
    claims = claims.at(np.lexsort((claims.rows, -claims.scores, claims.labels)))
    if config.max_per_class is not None:
        claims = claims.at(place_in_class(claims.labels) < config.max_per_class)
    if config.total is not None:
        claims = claims.at(_within_total(claims, config.total, config.share))
    return claims


def row_scores(claims: Claims) -> tuple[Ids, Scores]:
    """The claimed rows, each once with its best score, best first."""
    best = _to_the_best(claims)
    best = best.at(np.lexsort((best.rows, -best.scores)))
    return best.rows, best.scores


def comparable(scores: Scores, modes: npt.NDArray[np.int8]) -> Scores:
    """Hits of several modes, f32[n], i8[n] → f32[n] in 0..1: how many of its mode's hits score no better.

    Cosines of captions and of pictures with one text lie far apart; a union by cosine would be one by captions.
    """
    ranks = np.zeros(len(scores), np.float32)
    for mode in np.unique(modes):
        here = modes == mode
        ordered = np.sort(scores[here])
        ranks[here] = np.searchsorted(ordered, scores[here], side="right") / len(ordered)
    return ranks


def _to_the_best(claims: Claims) -> Claims:
    """One claim a row: the one with the best score, of the first class among equals."""
    order = np.lexsort((claims.labels, -claims.scores, claims.rows))
    rows = claims.rows[order]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = rows[1:] != rows[:-1]
    return claims.at(order[is_first])


def place_in_class(labels: Labels) -> npt.NDArray[np.int64]:
    """Ascending labels → the place of each among those of its class."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    return np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))


def _within_total(claims: Claims, total: int, share: str) -> npt.NDArray[np.bool_]:
    """Whether each claim is on one of the ``total`` rows that come first."""
    turns = (claims.rows, -claims.scores)
    order = np.lexsort((*turns, place_in_class(claims.labels)) if share == "balanced" else turns)
    _, first = np.unique(claims.rows[order], return_index=True)  # where each row comes up first
    chosen = claims.rows[order][np.sort(first)[:total]]
    return np.isin(claims.rows, chosen)
