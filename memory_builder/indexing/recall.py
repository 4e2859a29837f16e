"""Recall of an index on held-out queries.

Queries are rows held out before training, of the real query modality (text queries against image vectors are out of
distribution and measured separately); a query excludes its own row. Recall is tie-aware: a hit counts if its exact
score reaches the exact k-th score − 1e-4, because captions repeat; strict recall, by row id, is reported too.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faiss
import numpy as np

from memory_builder.base.runner import Runner, available_threads, run_all
from memory_builder.base.types import NO_ROW, Ids, Modality, Scores, row_ids
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows, open_vectors, present_rows
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.indexing.curve import RECALL_AT, Point
from memory_builder.search.open_index import OpenIndex, SearchParams
from memory_builder.search.scores import best_of, exact_scores
from memory_builder.storage.store import Store

TIE = 1e-4
MAIN_K = 10
"""The k of the recall that is tuned for and reported."""
TRUTH_K = max(RECALL_AT)
READ_BYTES = 4096
"""Bytes read to re-rank a row: a page, however short the row."""


def exact_neighbours(
    commit: Commit, *, store: Store, modality: Modality, d: int, queries: Scores, k: int, threads: int, deleted: Ids
) -> tuple[Scores, Ids]:
    """Search one shard exactly for f32[q, d], without the deleted rows: scores f32[q, k], ids i64[q, k]."""
    faiss.omp_set_num_threads(threads)
    vectors = open_vectors(store, commit, modality, d)
    rows = present_rows(commit, vectors, modality, deleted)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    ids = np.full((len(queries), k), NO_ROW, np.int64)
    if len(rows):
        best_scores, best = faiss.knn(
            queries, np.asarray(vectors[rows], np.float32), min(k, len(rows)), faiss.METRIC_INNER_PRODUCT
        )
        scores[:, : best.shape[1]] = best_scores
        ids[:, : best.shape[1]] = row_ids(commit.ordinal, rows[best])
    return scores, ids


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighboursTask:
    """Worker that searches shards exactly, with the held-out rows of one query modality."""

    memory: Store | str
    modality: Modality
    query_modality: Modality
    held_out: tuple[int, ...]
    k: int
    deleted_as_of: Snapshot | None = None
    """Snapshot whose deleted rows are left out; without it, all rows are searched."""
    wants_gpu: bool = False

    def start(self) -> Callable[[Commit], tuple[Scores, Ids]]:
        store = Store(self.memory)
        d = read_description(store).d
        rows = Rows(store, Manifest.read_folded(store).commits, d)
        queries = rows.vectors(np.array(self.held_out, np.int64), self.query_modality)
        return partial(
            exact_neighbours,
            store=store,
            modality=self.modality,
            d=d,
            queries=queries,
            k=self.k,
            threads=available_threads(),
            deleted=current_tombstones(store, self.deleted_as_of),
        )


def merge_neighbours(of_shards: Iterable[tuple[Scores, Ids]], n_queries: int, k: int) -> tuple[Scores, Ids]:
    """Merge the neighbours of shards, in any order."""
    scores = np.full((n_queries, k), -np.inf, np.float32)
    ids = np.full((n_queries, k), NO_ROW, np.int64)
    for more_scores, more_ids in of_shards:
        scores = np.concatenate([scores, more_scores], axis=1)
        ids = np.concatenate([ids, more_ids], axis=1)
        scores, ids = best_of(scores, ids, k)
    return scores, ids


def drop_own(scores: Scores, ids: Ids, own: Ids) -> tuple[Scores, Ids]:
    """Remove each query's own row from its results; returns one column fewer."""
    is_own = ids == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True  # absent: drop the last result instead
    keep = ~is_own
    shape = (len(ids), ids.shape[1] - 1)
    return scores[keep].reshape(shape), ids[keep].reshape(shape)


def recall_at(k: int, scores: Scores, ids: Ids, true_scores: Scores, true_ids: Ids) -> tuple[Any, Any]:
    """(tie-aware, strict) recall@k of each query, f64[q] each. All arguments are [q, ≥ k], best first, exact scores."""
    wanted = (true_ids[:, :k] != NO_ROW).sum(axis=1)
    threshold = np.take_along_axis(true_scores, np.maximum(wanted - 1, 0)[:, None], 1) - TIE
    is_hit = ids[:, :k] != NO_ROW
    tie_aware = (is_hit & (scores[:, :k] >= threshold)).sum(axis=1)
    strict = np.array([np.isin(a[a != NO_ROW], b).sum() for a, b in zip(ids[:, :k], true_ids[:, :k], strict=True)])
    return np.minimum(tie_aware, wanted) / np.maximum(wanted, 1), strict / np.maximum(wanted, 1)


def ground_truth(
    store: Store,
    modality: Modality,
    query_modality: Modality,
    own: Ids,
    commits: dict[int, Commit],
    runner: Runner,
    deleted_as_of: Snapshot | None = None,
) -> tuple[Scores, Ids]:
    """Exact neighbours of rows i64[q], without the rows themselves: scores f32[q, TRUTH_K], ids i64[q, TRUTH_K]."""
    task = NeighboursTask(
        memory=store,
        modality=modality,
        query_modality=query_modality,
        held_out=tuple(own.tolist()),
        k=TRUTH_K + 1,
        deleted_as_of=deleted_as_of,
    )
    of_shards = (result for _, result in run_all(runner, task, list(commits.values())))
    return drop_own(*merge_neighbours(of_shards, len(own), TRUTH_K + 1), own)


def measure(
    index: OpenIndex,
    rows: Rows,
    modality: Modality,
    queries: Scores,
    own: Ids,
    truth: tuple[Scores, Ids],
    efforts: Sequence[SearchParams],
) -> list[Point]:
    """Measure recall and work at each of these search parameters.

    Args:
        index: index of all rows.
        rows: reads exact vectors of candidates.
        modality: modality of the index.
        queries: f32[q, d] unit rows.
        own: i64[q] row ids of the queries.
        truth: exact scores and ids [q, k] without the queries' own rows, best first.
        efforts: search parameters; those with the same nprobe share a scan.
    """
    points = []
    sizes = np.append(index.list_sizes(), 0)  # HNSW may return fewer than nprobe lists, padded with -1: no rows
    for nprobe in sorted({params.nprobe for params in efforts}):
        refines = [params.refine for params in efforts if params.nprobe == nprobe]
        started = time.perf_counter()
        by_code, ids = drop_own(*index.candidates(queries, MAIN_K * max(1, *refines) + 1, nprobe), own)
        exact = by_code if index.has_exact_codes else exact_scores(queries, ids, rows, modality)
        seconds = (time.perf_counter() - started) / len(queries)
        codes = float(sizes.sum())
        if not index.is_exact:
            codes = float(sizes[index.probe(queries, nprobe)[2]].sum(axis=1).mean())
        for refine in refines:
            widths = {k: k * max(1, refine) for k in RECALL_AT if k <= MAIN_K}
            best = {k: best_of(exact[:, :width], ids[:, :width], k) for k, width in widths.items()}
            recalls = {k: recall_at(k, *best[k], *truth) for k in widths}
            points.append(
                Point(
                    nprobe=nprobe,
                    refine=refine,
                    recall={str(k): float(recalls[k][0].mean()) for k in widths},
                    strict_recall={str(k): float(recalls[k][1].mean()) for k in widths},
                    recall10_error=float(recalls[MAIN_K][0].std() / np.sqrt(len(queries))),
                    codes=codes,
                    rows_read=float(MAIN_K * refine),
                    work_bytes=codes * (index.code_bytes + 8) + MAIN_K * refine * READ_BYTES,
                    seconds=seconds,
                )
            )
    return points


def measure_single(
    index: OpenIndex, rows: Rows, modality: Modality, queries: Scores, own: Ids, truth: tuple[Scores, Ids], point: Point
) -> Point:
    """Add recall@TRUTH_K, and p50 and p99 of single queries for ten rows, to a point; arguments as for ``measure``."""
    params = SearchParams(nprobe=point.nprobe, refine=point.refine)
    neighbours = drop_own(*index.search(queries, TRUTH_K + 1, params, rows, modality), own)
    tie_aware, strict = recall_at(TRUTH_K, *neighbours, *truth)
    seconds = latency(index, rows, modality, queries, params)
    return replace(
        point,
        recall=point.recall | {str(TRUTH_K): float(tie_aware.mean())},
        strict_recall=point.strict_recall | {str(TRUTH_K): float(strict.mean())},
        p50_s=seconds["p50_s"],
        p99_s=seconds["p99_s"],
    )


def latency(
    index: OpenIndex, rows: Rows, modality: Modality, queries: Scores, params: SearchParams
) -> dict[str, float]:
    """p50 and p99 seconds of single queries for ten rows."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        index.search(query[None], MAIN_K, params, rows, modality)
        seconds.append(time.perf_counter() - started)
    return {"p50_s": float(np.percentile(seconds, 50)), "p99_s": float(np.percentile(seconds, 99))}
