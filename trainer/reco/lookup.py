"""What RECO looks up: the rows of a memory that are near a query, and what of them is fused with it.

A pair that is trained on must not find itself: its own row, the same picture under another key, and other prints of the
same artwork are dropped from what is found. Rows of the same caption stay, for at test time pictures of the same name
are exactly what retrieval supplies.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.types import NO_ROW, Ids, Modality, Scores
from memory_builder.search.searchable import Searchable
from trainer.reco.clusters import NO_CLUSTER, Clusters
from trainer.reco.config import SPARE, LookupConfig, NeighbourConfig

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.object_]
SAME_PICTURE = 0.999
"""Cosine of two image vectors from which they count as the same bytes: one encoder makes one vector of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Neighbours of queries."""

    ids: Ids
    """i64[n, k] row ids, best first; -1 pads."""
    vectors: npt.NDArray[np.float16]
    """f16[n, k, d] what is fused; zero where there is none."""


def look_up(memory: Searchable, queries: Scores, side: Modality, lookup: LookupConfig, k: int) -> Found:
    """The k nearest rows of unit rows f32[n, d], without those that lack what is to be fused.

    Float16, as they are stored: what is refined at test time must be what was trained on. Where some are dropped,
    more are searched, as in training.
    """
    for n_rows in (k, k + SPARE):
        ids = memory.search(vectors=queries, side=side, keys=lookup.search(side), k=n_rows).ids
        vectors = memory.vectors(ids, lookup.fuse(side)).reshape(*ids.shape, queries.shape[1])
        there = np.asarray(vectors.any(axis=2))
        if (there == (ids != NO_ROW)).all():
            break
    return _keep(ids, vectors, there, k)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Training pairs that know what they must not find."""

    ids: Ids
    """i64[n] their rows."""
    images: Scores
    """f32[n, d] unit rows."""
    texts: Scores
    """f32[n, d] unit rows."""
    clusters: Ids
    """i64[n] the artwork each belongs to; -1 where that is not known."""
    in_memory: bool
    """Whether these rows are rows of the memory that is asked."""
    apart: Values | None = None
    """[n] their values in the column that keeps them apart from some rows."""

    def at(self, some: slice) -> "Pairs":
        """Some of them."""
        return Pairs(
            ids=self.ids[some],
            images=self.images[some],
            texts=self.texts[some],
            clusters=self.clusters[some],
            in_memory=self.in_memory,
            apart=None if self.apart is None else self.apart[some],
        )


def neighbours_of(
    memory: Searchable, pairs: Pairs, side: Modality, config: NeighbourConfig, clusters: Clusters
) -> tuple[Found, Counter[str]]:
    """Neighbours of training pairs, without what they must not find, and how many rows were dropped for what reason."""
    queries = pairs.images if side == "image" else pairs.texts
    n_rows = config.looked_up + config.spare
    ids = memory.search(vectors=queries, side=side, keys=config.lookup.search(side), k=n_rows).ids
    vectors = memory.vectors(ids, config.lookup.fuse(side)).reshape(*ids.shape, queries.shape[1])
    reasons = {"blank": (ids != NO_ROW) & ~vectors.any(axis=2)}
    if config.exclude:
        reasons |= _forbidden(memory, ids, pairs, config, clusters)
    there = ids != NO_ROW
    counts: Counter[str] = Counter(found=int(there.sum()))
    for reason, dropped in reasons.items():
        counts[reason] += int((there & dropped).sum())
        there &= ~dropped
    found = _keep(ids, vectors, there, config.looked_up)
    counts["short"] = int((found.ids[:, -1] == NO_ROW).sum())
    return found, counts


def _forbidden(
    memory: Searchable, ids: Ids, pairs: Pairs, config: NeighbourConfig, clusters: Clusters
) -> dict[str, Mask]:
    """Reason → bool[n, k] which of the rows found a pair must not see."""
    pictures = memory.vectors(ids, "image").reshape(*ids.shape, pairs.images.shape[1])
    alike = np.einsum("nd,nkd->nk", pairs.images, pictures)
    found = clusters.of(memory.rows(ids, ["key"])["key"]).reshape(ids.shape)
    known = (pairs.clusters[:, None] != NO_CLUSTER) & (found != NO_CLUSTER)
    reasons = {
        "self": (ids == pairs.ids[:, None]) & pairs.in_memory,
        "same picture": alike >= SAME_PICTURE,
        "same cluster": known & (found == pairs.clusters[:, None]),
        "near duplicate": ~known & (alike >= config.near_duplicate),
    }
    if config.apart is not None and pairs.apart is not None:
        theirs = column_of(memory.metadata(ids.ravel(), [config.apart]), config.apart).reshape(ids.shape)
        is_known = np.array([value is not None for value in pairs.apart], np.bool_)
        reasons["not apart"] = np.asarray(theirs == pairs.apart[:, None]) & is_known[:, None]
    return reasons


def column_of(table: pa.Table, name: str) -> Values:
    """A column's values as they are, to be compared."""
    values: Values = np.array([*table[name].to_pylist(), None], object)[:-1]
    return values


def _keep(ids: Ids, vectors: Scores, kept: Mask, k: int) -> Found:
    """The first k that are kept of i64[n, m] and f32[n, m, d], in their order; -1 and zeros pad."""
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    there = np.take_along_axis(kept, order, 1)
    chosen = np.take_along_axis(vectors, order[..., None], 1) * there[..., None]
    return Found(ids=np.where(there, np.take_along_axis(ids, order, 1), NO_ROW), vectors=chosen.astype(np.float16))
