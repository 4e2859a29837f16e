"""One query at a time: ``Memory.search`` plus ten rows looked up, against bare faiss on the same index file.

    uv run python benchmarks/latency.py MEMORY [--keys image] [--n 500]

Both scan the same lists of the same part; ours also re-ranks exactly, looks up the rows' captions, and checks its
input. The limit is faiss's own time; the gap to it is ours.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import tyro

from memory_builder import Memory
from memory_builder.rows import Keys


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What is asked."""

    memory: tyro.conf.Positional[str]
    """Folder of the memory; its index must be a single part."""
    keys: Keys = "image"
    """Key modality."""
    n: int = 500
    """Queries, after 50 to warm up."""


def percentiles(seconds: list[float]) -> str:
    """p50 and p99 in milliseconds."""
    return f"p50 {1e3 * np.percentile(seconds, 50):6.2f} ms   p99 {1e3 * np.percentile(seconds, 99):6.2f} ms"


def timed(ask: Callable[[np.ndarray], None], queries: np.ndarray) -> list[float]:
    """Seconds of each query but the first fifty."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        ask(query)
        seconds.append(time.perf_counter() - started)
    return seconds[50:]


def main(config: Latency) -> None:
    """Print both and the gap."""
    memory = Memory.open(config.memory)
    view = memory.snapshot.indexes[config.keys]
    (part,) = view.segments[0]
    bare = faiss.read_index(str(memory.store.fetch(f"{view.index}/parts/{part}.faiss")), faiss.IO_FLAG_MMAP)
    sides = memory.tuning(config.keys)["sides"].values()
    nprobe = max(side["nprobe"] for side in sides)
    params = faiss.SearchParametersIVF(nprobe=nprobe)
    if isinstance(bare, faiss.IndexPreTransform):
        params = faiss.SearchParametersPreTransform(index_params=params)
    exact = not isinstance(bare, faiss.IndexPreTransform | faiss.IndexIVF)
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(config.n + 50, memory.description.d)).astype(np.float32)
    stored = memory.vectors(memory.search(vectors=queries, k=1, keys=config.keys).ids[:, 0], config.keys)
    queries = stored + 0.3 * queries / np.linalg.norm(queries, axis=1, keepdims=True)  # near the data, not in it
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    kwargs = {} if exact else {"params": params}
    all_threads = faiss.omp_get_max_threads()

    def theirs(query: np.ndarray) -> None:
        bare.search(query[None], 10, **kwargs)

    def ours(query: np.ndarray) -> None:
        hits = memory.search(vectors=query, k=10, keys=config.keys)
        assert memory.rows(hits.ids).num_rows == 10

    # Each has a pass of its own: whoever asks second finds the lists in the processor's cache.
    several = timed(theirs, queries)
    faiss.omp_set_num_threads(1)
    alone = timed(theirs, queries)
    faiss.omp_set_num_threads(all_threads)
    whole = timed(ours, queries)
    print(f"{len(memory):,} rows, {config.keys} keys, nprobe {nprobe}, refine {max(side['refine'] for side in sides)}")
    print(f"bare faiss, {all_threads} threads       {percentiles(several)}")
    print(f"bare faiss, 1 thread        {percentiles(alone)}")
    print(f"search + ten rows looked up {percentiles(whole)}")
    floor = min(np.percentile(several, 50), np.percentile(alone, 50))
    print(f"ours - faiss at p50: {1e3 * (np.percentile(whole, 50) - floor):.2f} ms")


if __name__ == "__main__":
    main(tyro.cli(Latency))
