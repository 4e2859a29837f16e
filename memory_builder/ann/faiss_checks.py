"""Check that the fields of a faiss index agree with each other.

faiss trusts the fields it reads: an index with fewer codes than rows, or whose graph links to a missing centroid,
crashes the process that searches or fills it. An index may be malicious, so its fields are checked once after reading;
the inverted lists, which are large and are bounded by their file, are not.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np

MAX_BEAM = 1 << 16
"""Largest efSearch and efConstruction of a graph; larger ones would only keep a process busy."""


def index_problem(index: Any) -> str | None:
    """Describe the first inconsistency in an index; None if there is none."""
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
            yield "the index under the row ids has another width, number of rows or metric"
        if index.id_map.size() != index.ntotal:
            yield f"{index.id_map.size()} row ids for {index.ntotal} rows"
        yield from _problems(inner)
    elif isinstance(index, faiss.IndexHNSW):
        yield from _graph_problems(index)
    elif isinstance(index, faiss.IndexFlatCodes):
        is_flat = isinstance(index, faiss.IndexFlat)
        if (is_flat and index.code_size != 4 * index.d) or index.codes.size() != index.ntotal * index.code_size:
            yield "the number or width of its vectors differs from its header"
    else:
        yield f"{type(index).__name__} is not a supported index type"


def _chain_problems(index: Any) -> Iterator[str]:
    width = index.d
    for i in range(index.chain.size()):
        step = faiss.downcast_VectorTransform(index.chain.at(i))
        if step.d_in != width or not step.is_trained:
            yield f"transform {i} has input width {step.d_in}, not {width}, or is not trained"
        if isinstance(step, faiss.LinearTransform):
            has_bias = step.b.size() if step.have_bias else 0
            if step.A.size() != step.d_in * step.d_out or has_bias not in (0, step.d_out):
                yield f"the matrix of transform {i} has another shape than its header"
        width = step.d_out
    inner = faiss.downcast_index(index.index)
    if (inner.d, inner.ntotal, inner.metric_type) != (width, index.ntotal, index.metric_type):
        yield "the index behind the transforms has another width, number of rows or metric"
    yield from _problems(inner)


def _ivf_problems(ivf: Any) -> Iterator[str]:
    quantizer = faiss.downcast_index(ivf.quantizer)
    if (quantizer.d, quantizer.ntotal, quantizer.metric_type) != (ivf.d, ivf.nlist, ivf.metric_type):
        yield f"{quantizer.ntotal} centroids of width {quantizer.d} for {ivf.nlist} lists of width {ivf.d}"
    yield from _problems(quantizer)
    if (ivf.invlists.nlist, ivf.invlists.code_size) != (ivf.nlist, ivf.code_size):
        yield "its inverted lists have another number or code size"
    if ivf.invlists.compute_ntotal() != ivf.ntotal:
        yield f"its inverted lists hold {ivf.invlists.compute_ntotal()} rows, not {ivf.ntotal}"
    if isinstance(ivf, faiss.IndexIVFPQ):
        yield from _pq_problems(ivf)
    elif isinstance(ivf, faiss.IndexIVFFlat) and ivf.code_size != 4 * ivf.d:
        yield "its code size is not that of vectors of its width"


def _pq_problems(ivf: Any) -> Iterator[str]:
    pq = ivf.pq
    if not 1 <= pq.nbits <= 16 or pq.M * pq.dsub != ivf.d or pq.ksub != 1 << pq.nbits or pq.d != ivf.d:
        yield "its product quantizer has another width"
    elif pq.centroids.size() != pq.M * pq.ksub * pq.dsub or pq.code_size != (pq.M * pq.nbits + 7) // 8:
        yield "the number of its code words differs from its header"
    if pq.code_size != ivf.code_size:
        yield "its code size differs from its product quantizer's"


def _graph_problems(index: Any) -> Iterator[str]:
    graph, n = index.hnsw, index.ntotal
    storage = faiss.downcast_index(index.storage)
    if (storage.d, storage.ntotal, storage.metric_type) != (index.d, n, index.metric_type):
        yield "the vectors of its graph have another width, number or metric"
    yield from _problems(storage)
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets).astype(np.int64)
    neighbours = faiss.vector_to_array(graph.neighbors)
    per_level = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    if len(levels) != n or len(offsets) != n + 1 or len(per_level) < 2 or (np.diff(per_level) < 0).any():
        yield "its graph has another number of nodes than centroids"
        return
    if not n:
        return
    if per_level[0] != 0 or per_level[-1] > 1 << 16 or levels.min() < 1 or levels.max() >= len(per_level):
        yield "a node of its graph has an invalid level"
        return
    if offsets[0] != 0 or offsets[-1] != len(neighbours) or (np.diff(offsets) != per_level[levels]).any():
        yield "the number of links of its graph differs from its levels"
    if len(neighbours) and not -1 <= neighbours.min() <= neighbours.max() < n:
        yield "its graph links to a missing centroid"
    if not 0 <= graph.entry_point < n or graph.max_level != levels.max() - 1:
        yield "the entry point of its graph is a missing centroid"
    elif levels[graph.entry_point] != levels.max():
        yield "the entry point of its graph is below its highest level"
    if not (1 <= graph.efSearch <= MAX_BEAM and 1 <= graph.efConstruction <= MAX_BEAM):
        yield f"efSearch or efConstruction of its graph is not within 1 to {MAX_BEAM}"
