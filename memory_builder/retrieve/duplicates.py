"""The same picture twice in a subset: by its bytes, or by an embedding that is all but the same."""

from collections.abc import Sequence

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.scores import Scores

COMPARED_WHOLE = 100_000
"""Rows up to which all pairs are compared; beyond, each row with those of the lists around it."""
LISTS_A_ROW = 16
BLOCK = 4_096

Mask = npt.NDArray[np.bool_]


def first_of_each(hashes: Sequence[str | None]) -> Mask:
    """bool[n]: whether no row before has the same content hash; rows without one are kept."""
    seen: set[str] = set()
    kept = np.ones(len(hashes), np.bool_)
    for place, digest in enumerate(hashes):
        if digest is not None:
            kept[place] = digest not in seen
            seen.add(digest)
    return kept


def without_near_duplicates(vectors: Scores, threshold: float) -> Mask:
    """f32[n, d] unit rows, best first → bool[n]: whether no row that is kept before it is as alike as ``threshold``.

    Alike rows are not chained: one that is like a dropped row, and like no kept one, stays.
    """
    kept = np.ones(len(vectors), np.bool_)
    index = _index(vectors)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        limits, _, found = index.range_search(block, float(np.nextafter(np.float32(threshold), np.float32(-1))))
        for place in range(start, start + len(block)):
            others = found[limits[place - start] : limits[place - start + 1]]
            kept[place] = not kept[others[others < place]].any()
    return kept


def _index(vectors: Scores) -> faiss.Index:
    n, d = vectors.shape
    if n <= COMPARED_WHOLE:
        index = faiss.IndexFlatIP(d)
    else:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, int(4 * n**0.5), faiss.METRIC_INNER_PRODUCT)
        index.nprobe = LISTS_A_ROW
        index.train(vectors[:: max(1, n // COMPARED_WHOLE)])
    index.add(vectors)
    return index
