"""Duplicates in a subset: identical bytes, or nearly identical embeddings."""

from collections.abc import Sequence

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Scores, Vectors

COMPARED_WHOLE = 100_000
"""Rows up to which all pairs are compared; beyond, each row is compared with the rows of nearby IVF lists."""
LISTS_A_ROW = 16
BLOCK = 4_096

Mask = npt.NDArray[np.bool_]


def first_of_each(hashes: Sequence[str | None]) -> Mask:
    """bool[n]: whether a row is the first with its content hash; rows without a hash are kept."""
    seen: set[str] = set()
    kept = np.ones(len(hashes), np.bool_)
    for row, digest in enumerate(hashes):
        if digest is not None:
            kept[row] = digest not in seen
            seen.add(digest)
    return kept


def without_near_duplicates(vectors: Vectors | Scores, threshold: float) -> Mask:
    """f16 or f32[n, d] unit rows, best first → bool[n]: whether no kept row before has a cosine of ``threshold``.

    Near duplicates are not chained: a row similar to a dropped row, but to no kept one, stays.
    """
    kept = np.ones(len(vectors), np.bool_)
    index = _index(vectors)
    for start in range(0, len(vectors), BLOCK):
        block = np.ascontiguousarray(vectors[start : start + BLOCK], np.float32)
        limits, _, alike = index.range_search(block, float(np.nextafter(np.float32(threshold), np.float32(-1))))
        for row in range(start, start + len(block)):
            others = alike[limits[row - start] : limits[row - start + 1]]
            kept[row] = not kept[others[others < row]].any()
    return kept


def _index(vectors: Vectors | Scores) -> faiss.Index:
    n, d = vectors.shape
    if n <= COMPARED_WHOLE:
        index = faiss.IndexFlatIP(d)
    else:  # float16, as the memory stores them
        lists, half = int(4 * n**0.5), faiss.ScalarQuantizer.QT_fp16
        inner = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(d), d, lists, half, inner, False)
        index.nprobe = LISTS_A_ROW
        index.train(np.ascontiguousarray(vectors[:: max(1, n // COMPARED_WHOLE)], np.float32))
    for start in range(0, n, COMPARED_WHOLE):
        index.add(np.ascontiguousarray(vectors[start : start + COMPARED_WHOLE], np.float32))
    return index
