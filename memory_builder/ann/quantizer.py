"""Choose an index key for a memory budget, and train the quantizer: the empty index that every part copies.

It is trained once, on a uniform sample over all shards, so that parts filled anywhere can be searched together.
"""

import math
import re
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from memory_builder.ann.kmeans import Backend, train_index
from memory_builder.errors import IndexBuildError, UsageError

EXACT_BELOW = 10_000
EXACT_KEY = "IDMap2,Flat"
MAX_OPQ_ITERATIONS = 10
HELD_OUT_SHARE = 0.05
MAX_HELD_OUT = 2_000


def draw_split(n_rows: int, n_train: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw positions in [0, n_rows) uniformly without replacement: (held out, train), each sorted."""
    n_held_out = min(MAX_HELD_OUT, int(n_rows * HELD_OUT_SHARE))
    rng = np.random.default_rng(seed)
    drawn = _distinct(n_rows, min(n_rows, n_held_out + n_train), rng)
    return np.sort(drawn[:n_held_out]), np.sort(drawn[n_held_out:])


def _distinct(n: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw ``size`` distinct integers below n in random order, in memory proportional to ``size``."""
    if size * 3 >= n:
        return rng.permutation(n)[:size]
    drawn = np.zeros(0, np.int64)
    while len(drawn) < size:
        drawn = np.unique(np.concatenate([drawn, rng.integers(0, n, size + size // 4)]))
    return rng.permutation(drawn)[:size]


def choose_key(n_rows: int, d: int, max_memory: str) -> str:
    """Choose the faiss key for a number of rows and a budget: exact below 10,000 rows, else by autofaiss.

    Below a million rows autofaiss takes IVF-Flat if the budget allows it, else IVF-PQ; above, always IVF-PQ.

    Raises:
        IndexBuildError: no key fits; the message names the smallest budget that does.
    """
    budget = memory_bytes(max_memory)
    key = _key_within(n_rows, d, budget)
    if key is None:
        least = math.ceil(_least_budget(n_rows, d) / 1e5) / 10  # rounded up: this budget must suffice
        raise IndexBuildError(
            f"no index of {n_rows:,} vectors of width {d} fits into --max-memory {max_memory}: "
            f"the minimum is {least:.1f}M"
        )
    return key


def memory_bytes(text: str) -> int:
    """``16G`` → bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"--max-memory {text}: expected a size such as 500M or 16G")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def _key_within(n_rows: int, d: int, budget: int) -> str | None:
    if n_rows < EXACT_BELOW:
        return EXACT_KEY if n_rows * (4 * d + 8) <= budget else None
    # Imported here: it takes seconds, which a search must not wait for.
    from autofaiss.external.metadata import IndexMetadata
    from autofaiss.external.optimize import get_optimal_index_keys_v2

    keys = get_optimal_index_keys_v2(
        n_rows, d, f"{budget}B", should_be_memory_mappable=True, ivf_flat_threshold=1_000_000
    )
    # autofaiss leaves the centroids out of its own comparison with the budget
    fitting = (key for key in keys if IndexMetadata(key, n_rows, d).estimated_index_size_in_bytes() <= budget)
    key: str | None = next(fitting, None)
    return without_polysemous(key) if key else None


def _least_budget(n_rows: int, d: int) -> int:
    low, high = 0, 8 * n_rows * (d + 8) + (1 << 30)
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if _key_within(n_rows, d, middle) else (middle, high)
    return high


def without_polysemous(key: str) -> str:
    """Append ``np`` to a PQ key: polysemous training is most of PQ training time, and no search here uses it."""
    return re.sub(r"(,PQ\d+(x\d+)?)$", r"\1np", key)


def check_key(key: str) -> None:
    """Refuse keys that cannot store row ids or whose parts cannot be searched together."""
    if key != EXACT_KEY and not re.search(r"(^|,)IVF\d+", key):
        raise UsageError(
            f"--index-key {key}: expected {EXACT_KEY} or an inverted file such as IVF1024,Flat or "
            "OPQ32_128,IVF1024,PQ32x8 (others, HNSW among them, cannot store row ids)"
        )
    if re.search(r"R(F|f)lat|Refine|IDMap2?,IVF|fs(r|$|_)|Panorama", key):
        raise UsageError(f"--index-key {key}: memory-builder adds re-ranking and row ids; name the plain inverted file")


def n_lists(key: str) -> int:
    """Number of inverted lists of a key; 1 for an exact index."""
    match = re.search(r"IVF(\d+)", key)
    return int(match[1]) if match else 1


def n_training_rows(key: str, points_per_list: int) -> int:
    """Number of training rows: enough for the lists, and for the 256 codewords of every sub-quantizer."""
    return 0 if key == EXACT_KEY else max(points_per_list * n_lists(key), 256 * points_per_list)


def train_quantizer(key: str, sample: npt.NDArray[np.float32], *, threads: int, backend: Backend = "cpu") -> Any:
    """f32[m, d] unit rows → a trained, empty faiss index with inner product. The same input gives the same bytes.

    k-means uses a flat coarse quantizer, on a GPU if there is one; an HNSW graph over the centroids is built after it.

    Raises:
        UsageError: faiss does not know the key.
        IndexBuildError: there are too few rows for the key.
    """
    check_key(key)
    d = sample.shape[1]
    flat_key = re.sub(r"(IVF\d+)_HNSW\d+", r"\1", key)
    faiss.omp_set_num_threads(threads)
    try:
        index = faiss.index_factory(d, flat_key, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(f"--index-key {key}: faiss does not know it ({_last_line(error)})") from None
    _cap_opq(index)
    try:
        if key != EXACT_KEY:
            train_index(index, sample, backend)
    except RuntimeError as error:
        raise IndexBuildError(
            f"cannot train {key} on {len(sample):,} rows ({_last_line(error)}): "
            "name an --index-key with fewer lists or code words"
        ) from None
    hnsw = re.search(r"IVF\d+_HNSW(\d+)", key)
    if hnsw:
        _swap_in_hnsw(index, int(hnsw[1]), threads)
    return index


def _swap_in_hnsw(index: Any, links: int, threads: int) -> None:
    """Build an HNSW graph over the trained centroids, in one thread: with several, the order of links is random."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist)  # f32[nlist, d]
    graph = faiss.IndexHNSWFlat(ivf.d, links, faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(1)
    graph.add(centroids)
    faiss.omp_set_num_threads(threads)
    ivf.quantizer = graph
    graph.this.disown()  # the index owns it now


def _cap_opq(index: Any) -> None:
    if not isinstance(index, faiss.IndexPreTransform):
        return
    for i in range(index.chain.size()):
        step = faiss.downcast_VectorTransform(index.chain.at(i))
        if isinstance(step, faiss.OPQMatrix):
            step.niter = min(step.niter, MAX_OPQ_ITERATIONS)


def _last_line(error: Exception) -> str:
    """Last line of a faiss error, without its source position."""
    return str(error).strip().splitlines()[-1].split("Error: ", 1)[-1][:200]
