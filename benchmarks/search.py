"""Search over a million rows: ours, bare faiss on the same index file, and lance. Ratios, at a stated recall.

    uv run --with pylance python benchmarks/search.py --work /data/search [--rows-memory /data/scale/memory-10000000]

Batches and single queries are asked of both by turns, and the middle of the ratios counts, so that a machine that slows
down slows both. With re-ranking, bare faiss gets what one would write by hand: as many candidates, their float16
vectors from a memory-mapped file, numpy. Lance and we are each set, by queries of their own, to the cheapest setting
that reaches recall@10, and then asked others. The physical limit of a scan is faiss's own time.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import tyro
from synthetic import Floats, Shape, make_memory, queries

from memory_builder import Memory
from memory_builder.base.runner import LocalRunner
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index

K = 10
NPROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
REFINES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is asked, and of what."""

    work: Path = Path("/tmp/search")
    rows: int = 1_000_000
    d: int = 256
    key: str = "IVF1024,PQ64x8np"
    """Lance gets as many partitions, and sub-vectors of as many bits."""
    nprobe: int = 32
    """For the comparison with bare faiss."""
    refine: int = 4
    recall: float = 0.95
    """At which lance and we are compared."""
    threads: int = 2
    rounds: int = 9
    rows_memory: Path | None = None
    """A memory of which 100 random rows are looked up."""


def by_turns(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """(seconds of ours, seconds of theirs, ratio), medians over rounds in which each goes first every other time."""
    times = []
    for i in range(rounds + 1):
        pair = [0.0, 0.0]
        for which in (0, 1) if i % 2 else (1, 0):
            started = time.perf_counter()
            (ours, theirs)[which]()
            pair[which] = time.perf_counter() - started
        times.append(pair)
    mine, other = np.array(times[1:]).T  # the first round warms up
    return float(np.median(mine)), float(np.median(other)), float(np.median(mine / other))


def exact_top(asked: Floats, vectors: Floats) -> np.ndarray:
    """i64[q, K] dense row numbers, by brute force."""
    found: np.ndarray = faiss.knn(asked, vectors, K, faiss.METRIC_INNER_PRODUCT)[1]
    return found


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(found, truth, strict=True)]))


def against_faiss(config: Search, memory: Memory, asked: Floats, vectors: np.ndarray) -> None:
    """Batches with and without re-ranking, and single queries."""
    view = memory.snapshot.indexes["image"]
    (part,) = view.segments[0]
    bare = faiss.read_index(str(memory.store.fetch(f"{view.index}/parts/{part}.faiss")), faiss.IO_FLAG_MMAP)
    faiss.extract_index_ivf(bare).nprobe = config.nprobe
    sizes = np.array([commit.n_written for commit in memory.commits.values()])
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def by_hand() -> np.ndarray:
        _, ids = bare.search(asked, K * config.refine)
        dense = starts[ids >> 32] + (ids & 0xFFFFFFFF)
        found = vectors[dense.ravel()].astype(np.float32).reshape(*ids.shape, -1)
        scores = np.einsum("qd,qcd->qc", asked, found, optimize=True)
        return np.take_along_axis(ids, np.argsort(-scores, axis=1)[:, :K], 1)

    def ours(refine: int) -> np.ndarray:
        return memory.search(vectors=asked, k=K, nprobe=config.nprobe, refine=refine).ids

    assert recall(ours(0), bare.search(asked, K)[1]) > 0.999, "not the same search"
    assert recall(ours(config.refine), by_hand()) > 0.999, "not the same search"
    mine, other, ratio = by_turns(lambda: ours(0), lambda: bare.search(asked, K), config.rounds)
    print(f"batch of {len(asked)}, no re-rank:      ours {mine:.3f} s, faiss {other:.3f} s, ratio {ratio:.3f} (≤ 1.10)")
    mine, other, ratio = by_turns(lambda: ours(config.refine), by_hand, config.rounds)
    print(
        f"batch of {len(asked)}, refine {config.refine}: ours {mine:.3f} s, by hand {other:.3f} s, "
        f"ratio {ratio:.3f} (≤ 1.10)"
    )
    singles: dict[str, list[float]] = {"ours": [], "faiss": []}
    for query in asked[:300]:
        for name, ask in (
            ("ours", lambda q: memory.search(vectors=q, k=K, nprobe=config.nprobe, refine=0)),
            ("faiss", lambda q: bare.search(q[None], K)),
        ):
            started = time.perf_counter()
            ask(query)
            singles[name].append(time.perf_counter() - started)
    p50 = {name: 1e3 * float(np.median(seconds[50:])) for name, seconds in singles.items()}
    print(f"single query p50: ours {p50['ours']:.2f} ms, faiss {p50['faiss']:.2f} ms, "
          f"difference {p50['ours'] - p50['faiss']:.2f} ms (≤ 1)")  # fmt: skip


def with_lance(config: Search, memory: Memory) -> Any:
    """The same vectors as a lance dataset, with an index like ours; made once."""
    import lance

    uri = config.work / "lance"
    if not (uri / "indexed").exists():

        def batches() -> Any:
            for ordinal in memory.commits:
                block = memory.vectors(memory.row_ids(ordinal)).astype(np.float16)
                yield pa.record_batch(
                    [pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), config.d)], ["vector"]
                )

        schema = pa.schema([("vector", pa.list_(pa.float16(), config.d))])
        dataset = lance.write_dataset(batches(), str(uri), schema, mode="overwrite")
        lists, codes = (int(part.split("x")[0].strip("IVFPQnp")) for part in config.key.split(","))
        dataset.create_index("vector", "IVF_PQ", metric="dot", num_partitions=lists, num_sub_vectors=codes)
        (uri / "indexed").touch()
    return lance.dataset(str(uri))


def ask_lance(dataset: Any, asked: Floats, nprobe: int, refine: int, threads: int) -> np.ndarray:
    def one(query: np.ndarray) -> np.ndarray:
        nearest = {"column": "vector", "q": query, "k": K, "nprobes": nprobe, "refine_factor": refine}
        found: np.ndarray = dataset.to_table(nearest=nearest, columns=["_distance"], with_row_id=True)[
            "_rowid"
        ].to_numpy()
        return np.pad(found.astype(np.int64), (0, K - len(found)), constant_values=-1)

    return np.stack(_each(one, asked, threads))


def _each(one: Callable[[np.ndarray], np.ndarray], asked: Floats, threads: int) -> Sequence[np.ndarray]:
    if threads == 1:
        return [one(query) for query in asked]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, asked))


def cheapest(ask: Callable[[int, int], tuple[np.ndarray, float]], truth: np.ndarray, target: float) -> tuple[int, int]:
    """(nprobe, refine) that reaches the target soonest."""
    best: tuple[float, int, int] | None = None
    for refine in REFINES:
        for nprobe in NPROBES:
            found, seconds = ask(nprobe, refine)
            if recall(found, truth) >= target:
                best = min(best or (np.inf, 0, 0), (seconds, nprobe, refine))
                break  # more lists only take longer
    if best is None:
        raise SystemExit(f"no setting reaches recall@{K} {target}")
    return best[1], best[2]


def against_lance(config: Search, memory: Memory, vectors: Floats) -> None:
    """Queries a second at the same recall: one at a time, and from several threads."""
    dataset = with_lance(config, memory)
    sizes = np.array([commit.n_written for commit in memory.commits.values()])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    fragments, n = {}, 0
    for fragment in dataset.get_fragments():
        fragments[fragment.fragment_id], n = n, n + fragment.count_rows()
    asked = queries(Shape(d=config.d), 700)[0]
    setting, asking = asked[::7], asked[np.arange(700) % 7 > 0]
    truths = [exact_top(some, vectors) for some in (setting, asking)]

    def ours(asked: Floats, nprobe: int, refine: int, threads: int) -> np.ndarray:
        def one(query: np.ndarray) -> np.ndarray:
            return memory.search(vectors=query, k=K, nprobe=nprobe, refine=refine).ids[0]

        ids = np.stack(_each(one, asked, threads))
        return starts[ids >> 32] + (ids & 0xFFFFFFFF)

    def lance(asked: Floats, nprobe: int, refine: int, threads: int) -> np.ndarray:
        ids = ask_lance(dataset, asked, nprobe, refine, threads)
        return np.vectorize(fragments.get)(ids >> 32) + (ids & 0xFFFFFFFF)

    settings = {}
    for name, ask in (("ours", ours), ("lance", lance)):

        def timed(nprobe: int, refine: int, ask: Any = ask) -> tuple[np.ndarray, float]:
            started = time.perf_counter()
            return ask(setting, nprobe, refine, 1), time.perf_counter() - started

        settings[name] = cheapest(timed, truths[0], config.recall)
        found = recall(ask(asking, *settings[name], 1), truths[1])
        nprobe, refine = settings[name]
        print(f"{name}: nprobe {nprobe}, refine {refine}, recall@{K} {found:.4f} on other queries", flush=True)
    for threads in sorted({1, config.threads}):
        mine, other, ratio = by_turns(
            lambda n=threads: ours(asking, *settings["ours"], n),
            lambda n=threads: lance(asking, *settings["lance"], n),
            config.rounds,
        )
        print(f"{threads} thread(s): ours {len(asking) / mine:.0f} queries/s, lance {len(asking) / other:.0f}, "
              f"ours / lance {1 / ratio:.2f} (≥ 1)", flush=True)  # fmt: skip


def look_up(folder: Path) -> None:
    """100 random rows, again and again; the first time files are mapped."""
    memory = Memory.open(folder)
    rng = np.random.default_rng(0)
    counts = {ordinal: commit.n_written for ordinal, commit in memory.commits.items()}
    seconds = []
    for _ in range(200):
        ordinals = rng.choice(list(counts), 100)
        ids = np.array([(int(ordinal) << 32) | int(rng.integers(counts[int(ordinal)])) for ordinal in ordinals])
        started = time.perf_counter()
        assert memory.rows(ids).num_rows == 100
        seconds.append(1e3 * (time.perf_counter() - started))
    print(f"rows() of 100 random ids of {len(memory):,}: first {seconds[0]:.1f} ms, p50 {np.median(seconds):.1f} ms, "
          f"p99 {np.percentile(seconds, 99):.1f} ms (≤ 10)")  # fmt: skip


def main(config: Search) -> None:
    """Build what is missing, then compare."""
    config.work.mkdir(parents=True, exist_ok=True)
    faiss.omp_set_num_threads(config.threads)
    store = make_memory(config.work / f"memory-{config.rows}", config.rows, Shape(d=config.d), texts=False)
    settings = IndexConfig(index_key=config.key, part_rows=2 * config.rows, train_threads=config.threads)
    index(store.root, keys=["image"], config=settings, runner=LocalRunner())
    faiss.omp_set_num_threads(config.threads)
    memory = Memory.open(store.root)
    whole = np.concatenate([memory.vectors(memory.row_ids(ordinal)).astype(np.float16) for ordinal in memory.commits])
    file = config.work / f"vectors-{config.rows}.npy"
    np.save(file, whole)
    del whole
    vectors = np.load(file, mmap_mode="r")
    print(f"{config.rows:,} × {config.d}, {config.key}, {config.threads} threads")
    against_faiss(config, memory, queries(Shape(d=config.d), 1_000)[0], vectors)
    against_lance(config, memory, vectors.astype(np.float32))
    if config.rows_memory is not None:
        look_up(config.rows_memory)


if __name__ == "__main__":
    main(tyro.cli(Search))
