"""Retrieve in bulk: searching beside bare faiss on the same index, and writing beside a plain copy of the same bytes.

    uv run python benchmarks/retrieve.py --memory MEMORY --work /tmp/retrieve --queries 80000

Bare faiss gets the vectors in one batch, with the tuned nprobe, and where we re-rank, as many candidates, rescored from
the stored vectors by numpy. Ours is what a block of ``retrieve`` does once its texts are embedded: search, look up the
keys, write the hits. Embedding is timed on its own. Writing is timed a tar at a time, beside reading the bytes of the
source shards and writing those of the tar, both flushed to the disk.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import tyro

from memory_builder import Memory
from memory_builder.ann.parts import read_faiss
from memory_builder.base.runner import LocalRunner
from memory_builder.model.templates import read_templates
from memory_builder.retrieval.classes import Class
from memory_builder.retrieval.config import AskConfig, RetrieveConfig
from memory_builder.retrieval.driver import Request, write_subset
from memory_builder.retrieval.pieces import done_pieces
from memory_builder.retrieval.queries import blocks_of
from memory_builder.retrieval.search import block_vectors, hits_table
from memory_builder.search.scores import exact_scores
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.store import Store

CLASSES = 20
"""Of the subset: a class's first few pairs are shown on the page, which is no part of writing the rest."""


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """What is asked, and of what."""

    memory: Path
    """With an image index."""
    work: Path = Path("/tmp/retrieve")
    queries: int = 80_000
    per_query: int = 50
    block_queries: int = 4_096
    rounds: int = 3
    threads: int = 2
    pairs: int = 20_000
    """Pairs of the subset that is written."""


def prompts(memory: Memory, n: int) -> tuple[list[Class], tuple[str, ...]]:
    """So many queries: captions of the memory as class names, by ImageNet's 80 templates."""
    templates = read_templates("imagenet")
    ordinals = list(memory.commits)
    names: dict[str, None] = {}
    for ordinal in ordinals:
        names |= dict.fromkeys(text for text in memory.rows(memory.row_ids(ordinal))["caption"].to_pylist() if text)
        if len(names) >= n // len(templates):
            break
    some = list(names)[: n // len(templates)]
    return [Class(label=i, name=name) for i, name in enumerate(some)], templates


def bare(memory: Memory, vectors: np.ndarray, k: int) -> np.ndarray:
    """faiss over every part in one batch, re-ranked as we do."""
    view = memory.snapshot.indexes["image"]
    tuned = memory.tuning("image")["sides"]["text"]
    index = memory.index("image")
    wanted = k * max(1, 0 if index.has_exact_codes else tuned["refine"])
    best = faiss.ResultHeap(len(vectors), wanted, keep_max=True)
    for part in view.parts:
        path = memory.store.fetch(f"{view.index}/parts/{part}.faiss")
        opened = read_faiss(path, str(path), faiss.IO_FLAG_MMAP)
        if not index.is_exact:
            faiss.extract_index_ivf(opened).nprobe = tuned["nprobe"]
        best.add_result(*opened.search(vectors, wanted))
    best.finalize()
    if wanted == k:
        return best.I
    out = []
    for start in range(0, len(vectors), 256):
        here = slice(start, start + 256)
        scores = exact_scores(vectors[here], best.I[here], memory._rows, "image")
        out.append(np.take_along_axis(best.I[here], np.argsort(-scores, axis=1)[:, :k], 1))
    return np.concatenate(out)


def search(config: Retrieve, memory: Memory) -> None:
    """Queries a second, ours and bare faiss's, by turns."""
    classes, templates = prompts(memory, config.queries)
    ask = AskConfig(per_query=config.per_query, block_queries=config.block_queries)
    blocks = blocks_of(classes, templates, ask)
    started = time.perf_counter()
    vectors = [block_vectors(block.queries, "text", memory) for block in blocks]
    n = sum(map(len, vectors))
    print(f"{n:,} prompts embedded: {n / (time.perf_counter() - started):,.0f}/s")
    whole = np.concatenate(vectors)
    store = Store(config.work / "hits")
    ratios = []
    for turn in range(config.rounds):
        seconds = {}
        for name in ("faiss", "ours") if turn % 2 else ("ours", "faiss"):
            started = time.perf_counter()
            if name == "faiss":
                theirs = bare(memory, whole, config.per_query)
            else:
                ours = []
                for block, some in zip(blocks, vectors, strict=True):
                    hits = memory.search(vectors=some, side="text", k=config.per_query)
                    store.put(f"{block.number}.parquet", parquet_bytes(hits_table(block, hits, memory)))
                    ours.append(hits.ids)
            seconds[name] = time.perf_counter() - started
        pairs = zip(np.concatenate(ours)[::97], theirs[::97], strict=True)
        same = float(np.mean([np.isin(a, b).mean() for a, b in pairs]))
        assert same > 0.999, f"not the same search: {same}"
        ratios.append(seconds["faiss"] / seconds["ours"])
        print(f"ours {n / seconds['ours']:,.0f} queries/s, faiss {n / seconds['faiss']:,.0f}, ratio {ratios[-1]:.3f}")
    print(f"bulk search of {n:,} queries, {config.per_query} rows each: {np.median(ratios):.3f} of bare faiss (≥ 0.9)")


def copy(sources: Sequence[Path], target: Path, n_bytes: int) -> float:
    """Seconds to read these files whole and to write so many bytes, flushed."""
    started = time.perf_counter()
    for source in sources:
        with source.open("rb") as file:
            while file.read(1 << 20):
                pass
    with target.open("wb") as file:
        file.write(bytes(n_bytes))
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


def write(config: Retrieve, memory: Memory) -> None:
    """Pairs and bytes a second of writing tars, beside the plain copy."""
    classes, templates = prompts(memory, 80 * CLASSES)
    out = config.work / f"subset-{time.time_ns()}"
    request = Request(
        memory=str(config.memory),
        out=str(out),
        classes=tuple(classes),
        templates=templates[:1],
        config=RetrieveConfig(ask=AskConfig(per_query=config.pairs // CLASSES)),
    )
    summary = write_subset(request, LocalRunner())
    records = done_pieces(Store(out))
    ours = sum(record.seconds["total"] for record in records.values())
    sources = [Path(commit.uri) for commit in memory.commits.values()]
    plain = copy(sources, out / "copy", summary.bytes)
    read = sum(source.stat().st_size for source in sources)
    print(
        f"{summary.pairs:,} pairs, {summary.bytes / 1e6:,.0f} MB from {read / 1e6:,.0f} MB of shards: "
        f"ours {ours:.2f} s ({summary.pairs / ours:,.0f} pairs/s), reading all of it and writing as many bytes "
        f"{plain:.2f} s, ratio {plain / ours:.2f}"
    )


def main(config: Retrieve) -> None:
    """Both."""
    config.work.mkdir(parents=True, exist_ok=True)
    faiss.omp_set_num_threads(config.threads)
    memory = Memory.open(config.memory)
    search(config, memory)
    write(config, memory)


if __name__ == "__main__":
    main(tyro.cli(Retrieve, description=__doc__))
