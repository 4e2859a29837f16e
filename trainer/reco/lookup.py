"""RECO's search: the nearest rows of a memory for each query, and the vectors of them that are fused.

A training pair must not retrieve itself: its own row, the same picture under another key, and other pictures of the
same artwork are dropped. Rows with the same caption stay, as at test time retrieval supplies pictures of the same name.
"""

from collections import Counter
from dataclasses import dataclass, replace

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
"""Cosine from which two image embeddings count as the same picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Retrieved rows of n queries."""

    ids: Ids
    """i64[n, k] row ids, best first; -1 pads."""
    vectors: npt.NDArray[np.float16]
    """f16[n, k, d] vectors to fuse; zeros pad."""


def look_up(memory: Searchable, queries: Scores, query_modality: Modality, lookup: LookupConfig, k: int) -> Neighbours:
    """The k nearest rows of f32[n, d] unit rows that have the modality to fuse.

    Vectors are float16, as training stores them. If rows without that modality are dropped, more are searched, as in
    training.
    """
    for n_rows in (k, k + SPARE):
        ids, vectors = _search(memory, queries, query_modality, lookup, n_rows)
        usable = np.asarray(vectors.any(axis=2))
        if (usable == (ids != NO_ROW)).all():
            break
    return _first_usable(ids, vectors, usable, k)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPairs:
    """Embedded training pairs, with all that decides which rows they must not retrieve."""

    ids: Ids
    """i64[n] row ids."""
    images: Scores
    """f32[n, d] unit rows."""
    texts: Scores
    """f32[n, d] unit rows."""
    clusters: Ids
    """i64[n] artwork clusters; -1 if not known."""
    in_memory: bool
    """Whether ``ids`` are rows of the memory that is searched."""
    apart: Values | None = None
    """[n] values of the column named by ``NeighbourConfig.apart``."""

    def at(self, rows: slice) -> "TrainingPairs":
        """The pairs of a slice."""
        return replace(
            self,
            ids=self.ids[rows],
            images=self.images[rows],
            texts=self.texts[rows],
            clusters=self.clusters[rows],
            apart=None if self.apart is None else self.apart[rows],
        )


def neighbours_of(
    memory: Searchable, pairs: TrainingPairs, query_modality: Modality, config: NeighbourConfig, clusters: Clusters
) -> tuple[Neighbours, Counter[str]]:
    """(neighbours of training pairs without forbidden rows, number of dropped rows by reason)."""
    queries = pairs.images if query_modality == "image" else pairs.texts
    n_rows = config.looked_up + config.spare
    ids, vectors = _search(memory, queries, query_modality, config.lookup, n_rows)
    reasons = {"blank": (ids != NO_ROW) & ~vectors.any(axis=2)}
    if config.exclude:
        reasons |= _forbidden(memory, ids, pairs, config, clusters)
    usable = ids != NO_ROW
    counts: Counter[str] = Counter(found=int(usable.sum()))
    for reason, dropped in reasons.items():
        counts[reason] += int((usable & dropped).sum())
        usable &= ~dropped
    neighbours = _first_usable(ids, vectors, usable, config.looked_up)
    counts["short"] = int((neighbours.ids[:, -1] == NO_ROW).sum())
    return neighbours, counts


def _search(
    memory: Searchable, queries: Scores, query_modality: Modality, lookup: LookupConfig, k: int
) -> tuple[Ids, Scores]:
    """(i64[n, k] row ids, f32[n, k, d] their vectors of the modality to fuse)."""
    ids = memory.search(vectors=queries, side=query_modality, keys=lookup.search(query_modality), k=k).ids
    return ids, memory.vectors(ids, lookup.fuse(query_modality)).reshape(*ids.shape, queries.shape[1])


def _forbidden(
    memory: Searchable, ids: Ids, pairs: TrainingPairs, config: NeighbourConfig, clusters: Clusters
) -> dict[str, Mask]:
    """Reason → bool[n, k] which of the retrieved rows a pair must not use."""
    pictures = memory.vectors(ids, "image").reshape(*ids.shape, pairs.images.shape[1])
    cosines = np.einsum("nd,nkd->nk", pairs.images, pictures)
    of_rows = clusters.of(memory.rows(ids, ["key"])["key"]).reshape(ids.shape)
    known = (pairs.clusters[:, None] != NO_CLUSTER) & (of_rows != NO_CLUSTER)
    reasons = {
        "self": (ids == pairs.ids[:, None]) & pairs.in_memory,
        "same picture": cosines >= SAME_PICTURE,
        "same cluster": known & (of_rows == pairs.clusters[:, None]),
        "near duplicate": ~known & (cosines >= config.near_duplicate),
    }
    if config.apart is not None and pairs.apart is not None:
        values = column_of(memory.metadata(ids.ravel(), [config.apart]), config.apart).reshape(ids.shape)
        has_value = np.array([value is not None for value in pairs.apart], np.bool_)
        reasons["not apart"] = np.asarray(values == pairs.apart[:, None]) & has_value[:, None]
    return reasons


def column_of(table: pa.Table, name: str) -> Values:
    """The Python values of a column, as an array of objects."""
    values: Values = np.array([*table[name].to_pylist(), None], object)[:-1]
    return values


def _first_usable(ids: Ids, vectors: Scores, usable: Mask, k: int) -> Neighbours:
    """The first k usable ones of i64[n, m] ids and f32[n, m, d] vectors, in their order; -1 and zeros pad."""
    order = np.argsort(~usable, axis=1, kind="stable")[:, :k]
    present = np.take_along_axis(usable, order, 1)
    chosen = np.take_along_axis(vectors, order[..., None], 1) * present[..., None]
    return Neighbours(
        ids=np.where(present, np.take_along_axis(ids, order, 1), NO_ROW), vectors=chosen.astype(np.float16)
    )
