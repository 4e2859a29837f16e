"""Tune nprobe and refine for a target recall.

Tuning minimises counted work, not seconds, so that the same data always gives the same choice. Half of the queries
choose the parameters, the other half measure them, since a recall that was selected for is biased.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from memory_builder.base.log import logger
from memory_builder.base.runner import Runner
from memory_builder.base.types import Ids, Modality, Scores
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_tuning_file
from memory_builder.errors import CorruptMemoryError
from memory_builder.indexing.curve import Point, frontier
from memory_builder.indexing.recall import ground_truth, latency, measure, measure_single
from memory_builder.indexing.train import read_held_out
from memory_builder.search.open_index import OpenIndex, SearchParams
from memory_builder.storage.records import write_record
from memory_builder.storage.store import Store

REFINES = (1, 2, 4, 8, 16)
WORTH = 0.002
"""Gain of recall@10 below which nprobe is no longer doubled; before the target is reached, a quarter of it, twice in a
row."""
LEAST_QUERIES = 2
"""One query to choose with, one to measure with."""
SINGLE_QUERIES = 200
"""Queries searched one by one, for latency and for recall@100."""


def tune(
    store: Store,
    view: IndexView,
    modality: Modality,
    d: int,
    commits: dict[int, Commit],
    target_recall: float,
    runner: Runner,
    deleted_as_of: Snapshot | None = None,
) -> tuple[str, dict[str, Any]]:
    """``tuning.json``: for each query modality the curve, the chosen search parameters, and their measured recall.

    Rows deleted in the snapshot ``deleted_as_of`` are neither in the index nor in the ground truth.

    Returns:
        (file name, its content). Each target has its own file: files that a snapshot may name never change.
    """
    name = "tuning.json"
    measured_before = _sound_tuning(store, f"{view.index}/{name}")
    if measured_before is not None and measured_before["target_recall"] != target_recall:
        name = f"tuning-{target_recall}.json"
        measured_before = _sound_tuning(store, f"{view.index}/{name}")
    if measured_before is not None:
        return name, measured_before
    held_out = read_held_out(store, view.index, commits)
    rows = Rows(store, commits, d)
    index = OpenIndex(store, view.index, view.segments[0])
    tuning: dict[str, Any] = {"target_recall": target_recall, "sides": {}, "curves": {}}
    for query_modality, queries, own in held_out_queries(rows, held_out):
        truth = ground_truth(store, modality, query_modality, own, commits, runner, deleted_as_of)
        tuning["sides"][query_modality], tuning["curves"][query_modality] = tune_query_modality(
            index, rows, modality, queries, own, truth, target_recall
        )
        if not tuning["sides"][query_modality]["reached"]:
            below = f"{query_modality} → {modality} stays below recall@10 {target_recall}"
            logger.warning(f"{below}: a larger --max-memory raises it")
    write_record(store, f"{view.index}/{name}", tuning)
    return name, tuning


def _sound_tuning(store: Store, path: str) -> dict[str, Any] | None:
    with suppress(CorruptMemoryError):  # measured again
        return read_tuning_file(store, path)
    return None


def held_out_queries(rows: Rows, held_out: Ids) -> Iterator[tuple[Modality, Scores, Ids]]:
    """Iterate over query modalities: f32[q, d] vectors and i64[q] ids of the held-out rows that have it.

    A modality with fewer than two such rows is left out: one is needed to choose with, one to measure with.
    """
    query_modalities: tuple[Modality, ...] = ("text", "image")
    for query_modality in query_modalities:
        vectors = rows.vectors(held_out, query_modality)
        present = vectors.any(axis=1)
        if present.sum() >= LEAST_QUERIES:
            yield query_modality, vectors[present], held_out[present]


def tune_query_modality(
    index: OpenIndex,
    rows: Rows,
    modality: Modality,
    queries: Scores,
    own: Ids,
    truth: tuple[Scores, Ids],
    target_recall: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(chosen search parameters with measured recall and latency, curve) for the queries of one modality."""
    choosing, checking = ((queries[half::2], own[half::2], (truth[0][half::2], truth[1][half::2])) for half in range(2))
    curve = measure_until_flat(index, rows, modality, *choosing, target_recall)
    chosen, reached = choose(curve, target_recall)
    params = SearchParams(nprobe=chosen.nprobe, refine=chosen.refine)
    (checked,) = measure(index, rows, modality, *checking, [params])
    setting = {
        "nprobe": params.nprobe,
        "refine": params.refine,
        "recall@10": checked.recall["10"],
        "strict_recall@10": checked.strict_recall["10"],
        "error": checked.recall10_error,
        "reached": reached,
        "work_bytes": chosen.work_bytes,
        "n_queries": len(checking[1]),
        **latency(index, rows, modality, queries[:SINGLE_QUERIES], params),
    }
    few = slice(0, SINGLE_QUERIES)
    first_queries = (choosing[0][few], choosing[1][few], (choosing[2][0][few], choosing[2][1][few]))
    timed = {
        point: measure_single(index, rows, modality, *first_queries, curve[point])
        for point in _timed_points(curve, chosen)
    }
    return setting, [asdict(timed.get(i, point)) for i, point in enumerate(curve)]


def _timed_points(curve: Sequence[Point], chosen: Point) -> list[int]:
    """Positions of the points to time: those of the frontier, and the one in use."""
    points = [*frontier(curve), chosen]
    return [i for i, point in enumerate(curve) if point in points]


def measure_until_flat(
    index: OpenIndex,
    rows: Rows,
    modality: Modality,
    queries: Scores,
    own: Ids,
    truth: tuple[Scores, Ids],
    target_recall: float,
) -> list[Point]:
    """Measure the curve: nprobe doubled, each with every refine, until all lists are scanned or recall is flat.

    Scanning every list of ten million rows for every query takes an hour and adds nothing over a tenth of them.
    Arguments as for ``measure``.
    """
    refines = (0,) if index.has_exact_codes else REFINES
    points: list[Point] = []
    best = [0.0]
    for nprobe in _powers_of_two(index.n_lists):
        points += measure(
            index,
            rows,
            modality,
            queries,
            own,
            truth,
            [SearchParams(nprobe=nprobe, refine=refine) for refine in refines],
        )
        best.append(max(point.recall["10"] for point in points))
        if is_flat(best, reached=choose(points, target_recall)[1]):
            break
    return points


def is_flat(best: Sequence[float], *, reached: bool) -> bool:
    """Whether another doubling of nprobe is not worth its work, from the best recall@10 after each doubling."""
    gains = np.diff(best)
    return bool(
        best[-1] == 1.0 or (reached and gains[-1] < WORTH) or (len(gains) > 2 and (gains[-2:] < WORTH / 4).all())
    )


def choose(points: Sequence[Point], target_recall: float) -> tuple[Point, bool]:
    """(point with the least work that reaches the target, True); else (point with the best recall, False).

    Reaching means by two standard errors, since the queries are only a sample.
    """
    reaching = [
        point
        for point in points
        if point.recall["10"] >= min(1.0, target_recall + 2 * point.recall10_error) or point.recall["10"] == 1.0
    ]
    if reaching:
        return min(reaching, key=lambda point: (point.work_bytes, point.nprobe)), True
    return max(points, key=lambda point: (point.recall["10"], -point.work_bytes)), False


def _powers_of_two(n: int) -> list[int]:
    return sorted({min(1 << i, n) for i in range(n.bit_length() + 1)})
