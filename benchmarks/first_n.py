"""What a quantizer trained on the first rows finds, beside one trained on as many rows drawn from all.

    uv run python benchmarks/first_n.py --work /data/first_n --rows 1000000

The vectors come ordered by cluster, as a pile sorted by site or topic has them. The same key, the same number of rows,
everything added; recall@10 by code, against brute force, beside the codes scanned for it: lists found on the first rows
are few where the others lie, so the same nprobe is more work.
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import tyro
from synthetic import Floats, Shape, make_memory, queries

from memory_builder import Memory
from memory_builder.ann.quantizer import draw_split, n_training_rows, train_quantizer


@dataclass(frozen=True, kw_only=True)
class FirstN:
    """What is built."""

    work: Path = Path("/tmp/first_n")
    rows: int = 1_000_000
    d: int = 256
    key: str = "IVF1024,PQ32x8np"
    points_per_list: int = 100
    nprobes: tuple[int, ...] = (1, 4, 16, 64)
    queries: int = 500
    threads: int = 2


def recall_of(
    config: FirstN, sample: Floats, vectors: Floats, asked: Floats, truth: np.ndarray
) -> list[tuple[float, float]]:
    """(recall@10, codes scanned a query) for each nprobe, of the key trained on f32[m, d] and filled with f32[n, d]."""
    index = train_quantizer(config.key, sample, threads=config.threads)
    index.add_with_ids(vectors, np.arange(len(vectors)))
    found = []
    for nprobe in config.nprobes:
        faiss.extract_index_ivf(index).nprobe = nprobe
        faiss.cvar.indexIVF_stats.reset()
        ids = index.search(asked, 10)[1]
        codes = faiss.cvar.indexIVF_stats.ndis / len(asked)
        found.append((float(np.mean([np.isin(a, b).mean() for a, b in zip(ids, truth, strict=True)])), codes))
    return found


def main(config: FirstN) -> None:
    """Print a line for each way to sample."""
    store = make_memory(config.work / f"memory-{config.rows}", config.rows, Shape(d=config.d), texts=False)
    memory = Memory.open(store.root)
    vectors = np.concatenate([memory.vectors(memory.row_ids(ordinal)) for ordinal in memory.commits])
    n_train = n_training_rows(config.key, config.points_per_list)
    _, drawn = draw_split(config.rows, n_train, 0)
    asked, _ = queries(Shape(d=config.d), config.queries)
    truth = faiss.knn(asked, vectors, 10, faiss.METRIC_INNER_PRODUCT)[1]
    print(f"{config.key}, {config.rows:,} × {config.d} ordered by cluster, {n_train:,} training rows")
    print("sample        " + "  ".join(f"nprobe {nprobe:<14}" for nprobe in config.nprobes))
    for name, sample in (("from all", vectors[drawn]), ("the first", vectors[:n_train])):
        found = recall_of(config, sample, vectors, asked, truth)
        print(f"{name:<14}" + "  ".join(f"{recall:.4f} ({codes:9,.0f})  " for recall, codes in found))


if __name__ == "__main__":
    main(tyro.cli(FirstN))
