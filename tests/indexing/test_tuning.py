"""Recall is measured as it is defined, and what tuning promises holds for rows it has not seen."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memory_builder.base.runner import LocalRunner
from memory_builder.base.types import NO_ROW
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.curve import Point
from memory_builder.indexing.driver import index as index_memory
from memory_builder.indexing.recall import drop_own, merge_neighbours, recall_at
from memory_builder.indexing.tuning import choose, is_flat
from memory_builder.memory import Memory
from memory_builder.search.scores import best_of

pytestmark = pytest.mark.slow

N, D, SHARD_ROWS = 12_000, 32, 2_500


def brute_force_recall(
    k: int, scores: Any, ids: Any, true_scores: Any, true_ids: Any
) -> tuple[list[float], list[float]]:
    """The definition, query by query."""
    tie_aware, strict = [], []
    for found_scores, found, best_scores, best in zip(scores, ids, true_scores, true_ids, strict=True):
        wanted = [(s, i) for s, i in zip(best_scores[:k], best[:k], strict=True) if i != NO_ROW]
        got = [(s, i) for s, i in zip(found_scores[:k], found[:k], strict=True) if i != NO_ROW]
        if not wanted:
            tie_aware.append(0.0)
            strict.append(0.0)
            continue
        good = sum(s >= np.float32(wanted[-1][0]) - 1e-4 for s, _ in got)
        tie_aware.append(min(good, len(wanted)) / len(wanted))
        strict.append(len({i for _, i in got} & {i for _, i in wanted}) / len(wanted))
    return tie_aware, strict


@settings(max_examples=150)
@given(
    scores=hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 15)), elements=st.integers(0, 5)),
    k=st.integers(1, 12),
    width=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_recall_is_what_its_definition_says_ties_and_short_results_included(
    scores: Any, k: int, width: int, seed: int
) -> None:
    n_queries, n_rows = scores.shape
    exact = scores.astype(np.float32) / 5  # few distinct values: many ties
    rng = np.random.default_rng(seed)
    all_ids = np.tile(np.arange(n_rows), (n_queries, 1))
    truth = padded(*best_of(exact, all_ids, n_rows), width=12)
    seen = np.where(rng.random(exact.shape) < 0.6, all_ids, NO_ROW)  # an index that misses rows
    found = padded(*best_of(exact, seen, width), width=12)
    tie_aware, strict = recall_at(k, *found, *truth)
    expected = brute_force_recall(k, *found, *truth)
    np.testing.assert_allclose(tie_aware, expected[0])
    np.testing.assert_allclose(strict, expected[1])
    assert (tie_aware >= strict - 1e-9).all()
    everything = recall_at(k, *truth, *truth)
    assert everything[0].tolist() == everything[1].tolist() == [1.0] * n_queries


def padded(scores: Any, ids: Any, *, width: int) -> tuple[Any, Any]:
    more = ((0, 0), (0, max(0, width - ids.shape[1])))
    return (
        np.pad(scores, more, constant_values=-np.inf)[:, :width],
        np.pad(ids, more, constant_values=NO_ROW)[:, :width],
    )


@settings(max_examples=100)
@given(seed=st.integers(0, 1000), n_shards=st.integers(1, 5), k=st.integers(1, 8))
def test_neighbours_of_shards_merge_into_those_of_all_in_any_order(seed: int, n_shards: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (2, 4 * n_shards)).astype(np.float32)  # many ties
    ids = np.tile(np.arange(4 * n_shards), (2, 1))
    shards = [padded(*best_of(scores[:, s], ids[:, s], 4), width=k) for s in slices(n_shards)]
    expected = padded(*best_of(scores, ids, k), width=k)
    for order in (list(range(n_shards)), rng.permutation(n_shards).tolist()):
        merged = merge_neighbours([shards[i] for i in order], 2, k)
        np.testing.assert_array_equal(merged[0], expected[0])
        if k >= 4:  # no shard dropped a row that ties
            np.testing.assert_array_equal(merged[1], expected[1])


def slices(n_shards: int) -> list[slice]:
    return [slice(4 * i, 4 * i + 4) for i in range(n_shards)]


def test_a_query_does_not_find_itself() -> None:
    ids = np.array([[4, 5, 6], [4, 5, 6], [4, NO_ROW, NO_ROW]])
    scores = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.9, -np.inf, -np.inf]], np.float32)
    kept_scores, kept = drop_own(scores, ids, np.array([5, 9, 4]))
    assert kept.tolist() == [[4, 6], [4, 5], [NO_ROW, NO_ROW]]
    np.testing.assert_allclose(kept_scores[:2], [[0.9, 0.7], [0.9, 0.8]])
    assert np.isneginf(kept_scores[2]).all()


def point(recall: float, work: float, *, error: float = 0.0, nprobe: int = 1) -> Point:
    return Point(
        nprobe=nprobe,
        refine=1,
        recall={"10": recall},
        strict_recall={"10": recall},
        recall10_error=error,
        codes=0.0,
        rows_read=0.0,
        work_bytes=work,
        seconds=0.0,
    )


def test_the_least_work_that_surely_reaches_the_target_is_chosen() -> None:
    points = [point(0.90, 1), point(0.955, 2, error=0.01), point(0.97, 4, error=0.01), point(0.99, 3), point(1.0, 9)]
    assert choose(points, 0.95) == (points[3], True)
    assert choose(points[:3], 0.95) == (points[2], True)
    assert choose(points[:2], 0.95) == (points[1], False)
    assert choose(points, 1.0) == (points[4], True)
    assert choose([point(0.5, 9), point(0.5, 3)], 0.9)[0].work_bytes == 3
    assert choose([point(1.0, 5, nprobe=2), point(1.0, 5, nprobe=1)], 0.9)[0].nprobe == 1


@dataclass
class Tuned:
    """A memory of clustered rows, indexed by both modalities with default settings."""

    memory: Memory
    budget: str
    snapshot: Snapshot


@pytest.fixture(scope="module", params=["16G", "300K"], ids=["IVF-Flat", "IVF-PQ"])
def tuned(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    write_memory: Callable[..., Any],
    clustered: Any,
) -> Tuned:
    root = tmp_path_factory.mktemp("memory")
    write_memory(root, *clustered(N, D, seed=0), shard_rows=SHARD_ROWS)
    config = IndexConfig(max_memory=request.param, part_rows=5_000, train_threads=1, train_points_per_list=8)
    snapshot = index_memory(str(root), keys=("image", "text"), config=config, runner=LocalRunner())
    return Tuned(Memory.open(root), request.param, snapshot)


def index_key(tuned: Tuned, keys: str) -> str:
    folder = tuned.snapshot.indexes[keys].index
    return str(json.loads(tuned.memory.store.read(f"{folder}/index.json"))["index_key"])


@pytest.mark.parametrize("keys", ["image", "text"])
def test_the_budget_decides_the_key(tuned: Tuned, keys: Any) -> None:
    assert ("PQ" in index_key(tuned, keys)) == (tuned.budget == "300K")
    assert index_key(tuned, keys).startswith("IVF") == (tuned.budget != "300K")


@pytest.mark.parametrize("keys", ["image", "text"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_the_recall_promised_holds_for_other_rows(tuned: Tuned, keys: Any, side: Any) -> None:
    memory = tuned.memory
    positions = np.arange(N)
    ids = (positions // SHARD_ROWS << 32) | positions % SHARD_ROWS
    folder = tuned.snapshot.indexes[keys].index
    held_out = np.load(memory.store.fetch(f"{folder}/held_out.npy"))
    assert len(held_out) == N // 20
    others = np.setdiff1d(ids, held_out)[:: N // 2_000]  # spread over all shards
    queries, stored = memory.vectors(others, side), memory.vectors(ids, keys)
    side_settings = memory.tuning(keys)["sides"][side]
    k = 10
    exact = queries @ stored.T
    exact[np.arange(len(others)), np.searchsorted(ids, others)] = -np.inf
    best = np.argpartition(-exact, k, axis=1)[:, :k]
    threshold = np.take_along_axis(exact, best, 1).min(axis=1)
    hits = memory.search(
        vectors=queries, k=k + 1, keys=keys, nprobe=side_settings["nprobe"], refine=side_settings["refine"]
    )
    recall = []
    for i, own in enumerate(others.tolist()):
        found = [row_id for row_id in hits.ids[i].tolist() if row_id != own][:k]
        scores = exact[i, np.searchsorted(ids, [row_id for row_id in found if row_id != NO_ROW])]
        recall.append(min(k, int((scores >= threshold[i] - 1e-4).sum())) / k)
    measured = float(np.mean(recall))
    assert side_settings["reached"]
    assert measured >= 0.95
    assert measured == pytest.approx(side_settings["recall@10"], abs=0.01)


@pytest.mark.parametrize("keys", ["image", "text"])
def test_the_curve_rises_with_the_work(tuned: Tuned, keys: Any) -> None:
    tuning = tuned.memory.tuning(keys)
    for side in ("image", "text"):
        curve = [Point(**fields) for fields in tuning["curves"][side]]
        assert all(0 <= p.strict_recall["10"] <= p.recall["10"] + 1e-9 <= 1 + 1e-9 for p in curve)
        by_setting = {(p.nprobe, p.refine): p for p in curve}
        assert len(by_setting) == len(curve)
        refine = max(p.refine for p in curve)
        along = [p for p in sorted(curve, key=lambda p: p.nprobe) if p.refine == refine]
        assert [p.codes for p in along] == sorted(p.codes for p in along)
        probed = sorted({p.nprobe for p in curve})
        best = [max(p.recall["10"] for p in curve if p.nprobe <= nprobe) for nprobe in probed]
        ended = is_flat([0.0, *best], reached=tuning["sides"][side]["reached"])
        assert along[-1].codes == N or ended
        assert not any(is_flat([0.0, *best[:n]], reached=False) for n in range(1, len(best)))
        assert along[-1].recall["10"] > 0.97
        assert [p.recall["10"] for p in along] == pytest.approx(sorted(p.recall["10"] for p in along), abs=0.01)


def test_bare_vectors_are_searched_with_the_greater_effort(tuned: Tuned) -> None:
    memory = tuned.memory
    sides = memory.tuning("image")["sides"].values()
    queries = memory.vectors(np.arange(20), "text")
    hits = memory.search(vectors=queries, k=5)
    same = memory.search(
        vectors=queries, k=5, nprobe=max(s["nprobe"] for s in sides), refine=max(s["refine"] for s in sides)
    )
    np.testing.assert_array_equal(hits.ids, same.ids)


def test_the_parts_hold_every_row_once(tuned: Tuned) -> None:
    for keys in ("image", "text"):
        assert tuned.snapshot.indexes[keys].n_rows == N
        assert len(tuned.snapshot.indexes[keys].segments[0]) == 3
        hits = tuned.memory.search(vectors=np.eye(D)[:1], k=N, keys=keys, nprobe=10**6, refine=0)
        assert len(np.unique(hits.ids)) == N
        assert (hits.ids >= 0).all()
        assert Path(tuned.memory.store.full(f"{tuned.snapshot.indexes[keys].index}/trained.json")).exists()


@pytest.mark.parametrize(
    ("best", "reached", "flat"),
    [
        ([0.0, 0.3, 0.6], False, False),
        ([0.0, 0.9, 0.97], True, False),  # reached, and still rising
        ([0.0, 0.97, 0.9715], True, True),
        ([0.0, 0.7, 0.7015], False, False),
        ([0.0, 0.7, 0.7001, 0.7001], False, True),  # the codes are too coarse for the target
        ([0.0, 0.7, 0.7001, 0.75], False, False),
        ([0.0, 1.0], False, True),
    ],
)
def test_a_curve_ends_where_more_lists_buy_nothing(best: list[float], reached: bool, flat: bool) -> None:
    assert is_flat(best, reached=reached) is flat


@pytest.mark.parametrize("side", ["image", "text"])
def test_vectors_of_a_known_side_are_searched_as_its_queries_are(tuned: Tuned, side: Any, clustered: Any) -> None:
    images, texts = clustered(N, D, seed=0)
    asked = (texts if side == "text" else images)[:300]
    sides = tuned.memory.tuning("image")["sides"]
    own, bare = (
        {name: sides[side][name] for name in ("nprobe", "refine")},
        {name: max(found[name] for found in sides.values()) for name in ("nprobe", "refine")},
    )
    told = tuned.memory.search(vectors=asked, side=side)
    np.testing.assert_array_equal(told.ids, tuned.memory.search(vectors=asked, **own).ids)
    np.testing.assert_array_equal(
        tuned.memory.search(vectors=asked).ids, tuned.memory.search(vectors=asked, **bare).ids
    )
    if own["nprobe"] < bare["nprobe"]:
        assert (told.ids != tuned.memory.search(vectors=asked).ids).any()


def test_the_sides_of_an_image_index_are_tuned_apart(tuned: Tuned) -> None:
    sides = tuned.memory.tuning("image")["sides"]
    assert sides["text"]["nprobe"] > sides["image"]["nprobe"]
