"""Whether the fields of a faiss index agree with each other.

faiss reads an index field by field and believes them: one whose codes are shorter than its rows say, or whose graph
leads to a centroid that is not there, crashes the process that searches or fills it. An index may come from a stranger,
so what is read is looked at once; the inverted lists, which are large and are bounded by their file, are not.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

MAX_BEAM = 1 << 16
"""efSearch and efConstruction of a graph that is not there to keep a process busy."""


def unsound(index: Any) -> str | None:
    """What does not fit together in an index, in words; None if all does."""
    return next(_problems(index), None)


def _problems(index: Any) -> Iterator[str]:
    index = faiss.downcast_index(index)
    if not index.is_trained:
        yield f"{type(index).__name__} is not trained"
    if isinstance(index, faiss.IndexPreTransform):
        yield from _chain_problems(index)
    elif isinstance(index, faiss.IndexIVF):
        yield from _ivf_problems(index)
    elif isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        inner = faiss.downcast_index(index.index)
        if (inner.d, inner.ntotal, inner.metric_type) != (index.d, index.ntotal, index.metric_type):
            yield "the index under the row ids is of another width, number of rows or metric"
        if index.id_map.size() != index.ntotal:
            yield f"{index.id_map.size()} row ids for {index.ntotal} rows"
        yield from _problems(inner)
    elif isinstance(index, faiss.IndexHNSW):
        yield from _graph_problems(index)
    elif isinstance(index, faiss.IndexFlatCodes):
        is_flat = isinstance(index, faiss.IndexFlat)
        if (is_flat and index.code_size != 4 * index.d) or index.codes.size() != index.ntotal * index.code_size:
            yield "its vectors are not as many or as wide as it says"
    else:
        yield f"{type(index).__name__} is no index of ours"


def _chain_problems(index: Any) -> Iterator[str]:
    width = index.d
    for i in range(index.chain.size()):
        step = faiss.downcast_VectorTransform(index.chain.at(i))
        if step.d_in != width or not step.is_trained:
            yield f"transform {i} takes {step.d_in} numbers, and gets {width}"
        if isinstance(step, faiss.LinearTransform):
            has_bias = step.b.size() if step.have_bias else 0
            if step.A.size() != step.d_in * step.d_out or has_bias not in (0, step.d_out):
                yield f"transform {i} is not the matrix it says"
        width = step.d_out
    inner = faiss.downcast_index(index.index)
    if (inner.d, inner.ntotal, inner.metric_type) != (width, index.ntotal, index.metric_type):
        yield "the index behind the transforms is of another width, number of rows or metric"
    yield from _problems(inner)


def _ivf_problems(ivf: Any) -> Iterator[str]:
    quantizer = faiss.downcast_index(ivf.quantizer)
    if (quantizer.d, quantizer.ntotal, quantizer.metric_type) != (ivf.d, ivf.nlist, ivf.metric_type):
        yield f"{quantizer.ntotal} centroids of width {quantizer.d} for {ivf.nlist} lists of width {ivf.d}"
    yield from _problems(quantizer)
    if (ivf.invlists.nlist, ivf.invlists.code_size) != (ivf.nlist, ivf.code_size):
        yield "its inverted lists are of another number or width"
    if ivf.invlists.compute_ntotal() != ivf.ntotal:
        yield f"its inverted lists hold {ivf.invlists.compute_ntotal()} rows, not {ivf.ntotal}"
    if isinstance(ivf, faiss.IndexIVFPQ):
        yield from _pq_problems(ivf)
    elif isinstance(ivf, faiss.IndexIVFFlat) and ivf.code_size != 4 * ivf.d:
        yield "its codes are not vectors of its width"


def _pq_problems(ivf: Any) -> Iterator[str]:
    pq = ivf.pq
    if not 1 <= pq.nbits <= 16 or pq.M * pq.dsub != ivf.d or pq.ksub != 1 << pq.nbits or pq.d != ivf.d:
        yield "its product quantizer is of another width"
    elif pq.centroids.size() != pq.M * pq.ksub * pq.dsub or pq.code_size != (pq.M * pq.nbits + 7) // 8:
        yield "its code words are not as many as it says"
    if pq.code_size != ivf.code_size:
        yield "its codes are of another width than its product quantizer's"


def _graph_problems(index: Any) -> Iterator[str]:
    graph, n = index.hnsw, index.ntotal
    storage = faiss.downcast_index(index.storage)
    if (storage.d, storage.ntotal, storage.metric_type) != (index.d, n, index.metric_type):
        yield "the vectors of its graph are of another width, number or metric"
    yield from _problems(storage)
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets).astype(np.int64)
    neighbours = faiss.vector_to_array(graph.neighbors)
    per_level = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    if len(levels) != n or len(offsets) != n + 1 or len(per_level) < 2 or (np.diff(per_level) < 0).any():
        yield "its graph has not as many nodes as centroids"
        return
    if not n:
        return
    if per_level[0] != 0 or per_level[-1] > 1 << 16 or levels.min() < 1 or levels.max() >= len(per_level):
        yield "a level of its graph is not there"
        return
    if offsets[0] != 0 or offsets[-1] != len(neighbours) or (np.diff(offsets) != per_level[levels]).any():
        yield "the links of its graph are not as many as its levels say"
    if len(neighbours) and not -1 <= neighbours.min() <= neighbours.max() < n:
        yield "its graph leads to a centroid that is not there"
    if not 0 <= graph.entry_point < n or graph.max_level != levels.max() - 1:
        yield "its graph begins at a centroid that is not there"
    elif levels[graph.entry_point] != levels.max():
        yield "its graph begins below its highest level"
    if not (1 <= graph.efSearch <= MAX_BEAM and 1 <= graph.efConstruction <= MAX_BEAM):
        yield "its graph is searched too widely"
