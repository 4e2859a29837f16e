"""How hard a search must look to reach the recall that was asked for.

What is minimised is counted work, not seconds, so that the same data chooses the same setting every time. Half of the
queries choose the setting, the other half say what it finds: a figure chosen for being good is not a measurement.
"""

from collections.abc import Sequence
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
"""Recall@10 that scanning twice as many lists must add, once the target is reached; a quarter of it, before."""
LEAST_QUERIES = 2
"""One to choose by, one to check with."""
SINGLE_QUERIES = 200
"""As many are asked one by one, for latency, and for a hundred rows."""


def tune(
    store: Store,
    view: IndexView,
    keys: Modality,
    d: int,
    commits: dict[int, Commit],
    target_recall: float,
    runner: Runner,
    leaving_out: Snapshot | None = None,
) -> tuple[str, dict[str, Any]]:
    """``tuning.json``: for each query modality the curve, the setting chosen from it, and what that finds.

    The rows that are deleted in the state ``leaving_out`` are not in the index, and not among the truth.

    Returns:
        (file name, its content). A file that a snapshot may name is not changed: another target has another file.
    """
    name = "tuning.json"
    there = _sound_tuning(store, f"{view.index}/{name}")
    if there is not None and there["target_recall"] != target_recall:
        name = f"tuning-{target_recall}.json"
        there = _sound_tuning(store, f"{view.index}/{name}")
    if there is not None:
        return name, there
    held_out = read_held_out(store, view.index, commits)
    rows = Rows(store, commits, d)
    index = OpenIndex(store, view.index, view.segments[0])
    tuning: dict[str, Any] = {"target_recall": target_recall, "sides": {}, "curves": {}}
    sides: tuple[Modality, ...] = ("text", "image")
    for side in sides:
        vectors = rows.vectors(held_out, side)
        present = vectors.any(axis=1)
        if present.sum() < LEAST_QUERIES:
            continue
        queries, own = vectors[present], held_out[present]
        truth = ground_truth(store, keys, side, own, commits, runner, leaving_out)
        tuning["sides"][side], tuning["curves"][side] = tune_side(index, rows, keys, queries, own, truth, target_recall)
        if not tuning["sides"][side]["reached"]:
            below = f"{side} → {keys} stays below recall@10 {target_recall}"
            logger.warning(f"{below}: a larger --max-memory gives more")
    write_record(store, f"{view.index}/{name}", tuning)
    return name, tuning


def _sound_tuning(store: Store, path: str) -> dict[str, Any] | None:
    with suppress(CorruptMemoryError):  # it is measured anew
        return read_tuning_file(store, path)
    return None


def tune_side(
    index: OpenIndex,
    rows: Rows,
    keys: Modality,
    queries: Scores,
    own: Ids,
    truth: tuple[Scores, Ids],
    target_recall: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(chosen setting with its measured recall and latency, curve) for the queries of one modality."""
    choosing, checking = ((queries[half::2], own[half::2], (truth[0][half::2], truth[1][half::2])) for half in range(2))
    curve = measure_until_flat(index, rows, keys, *choosing, target_recall)
    chosen, reached = choose(curve, target_recall)
    params = SearchParams(nprobe=chosen.nprobe, refine=chosen.refine)
    (checked,) = measure(index, rows, keys, *checking, [params])
    setting = {
        "nprobe": params.nprobe,
        "refine": params.refine,
        "recall@10": checked.recall["10"],
        "strict_recall@10": checked.strict_recall["10"],
        "error": checked.recall10_error,
        "reached": reached,
        "work_bytes": chosen.work_bytes,
        "n_queries": len(checking[1]),
        **latency(index, rows, keys, queries[:SINGLE_QUERIES], params),
    }
    few = slice(0, SINGLE_QUERIES)
    some = (choosing[0][few], choosing[1][few], (choosing[2][0][few], choosing[2][1][few]))
    told = {point: measure_single(index, rows, keys, *some, curve[point]) for point in _worth_telling(curve, chosen)}
    return setting, [asdict(told.get(i, point)) for i, point in enumerate(curve)]


def _worth_telling(curve: Sequence[Point], chosen: Point) -> list[int]:
    """Places of the points that no other beats, and of the one in use."""
    told = [*frontier(curve), chosen]
    return [i for i, point in enumerate(curve) if point in told]


def measure_until_flat(
    index: OpenIndex,
    rows: Rows,
    keys: Modality,
    queries: Scores,
    own: Ids,
    truth: tuple[Scores, Ids],
    target_recall: float,
) -> list[Point]:
    """The curve: nprobe doubled, each with every refine, until all lists are scanned or more of them buy nothing.

    Scanning every list of ten million rows for every query takes an hour and tells nothing that a tenth does not.
    Arguments as for ``measure``.
    """
    refines = (0,) if index.has_exact_codes else REFINES
    points: list[Point] = []
    best = [0.0]
    for nprobe in _powers_of_two(index.n_lists):
        points += measure(
            index, rows, keys, queries, own, truth, [SearchParams(nprobe=nprobe, refine=refine) for refine in refines]
        )
        best.append(max(point.recall["10"] for point in points))
        if is_flat(best, reached=choose(points, target_recall)[1]):
            break
    return points


def is_flat(best: Sequence[float], *, reached: bool) -> bool:
    """Whether doubling nprobe once more is not worth its work: best recall@10 after each doubling, and the target."""
    gains = np.diff(best)
    return bool(
        best[-1] == 1.0 or (reached and gains[-1] < WORTH) or (len(gains) > 2 and (gains[-2:] < WORTH / 4).all())
    )


def choose(points: Sequence[Point], target_recall: float) -> tuple[Point, bool]:
    """The least work that reaches the target, and whether any does; else the best recall there is.

    Reaching means by two standard errors: the queries are a sample, and the next ones must reach it too.
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
