"""Whatever is claimed, what is selected keeps its promises and does not depend on the order of the claims."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_builder.errors import UsageError
from memory_builder.retrieval.selection import Claims, SelectConfig, best_claims, percentile_ranks, row_scores, select

HITS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(0, 9)), max_size=60)
CONFIGS = st.builds(
    SelectConfig,
    max_per_class=st.none() | st.integers(1, 6),
    total=st.none() | st.integers(1, 10),
    share=st.sampled_from(["balanced", "natural"]),
    overlap=st.sampled_from(["all", "best"]),
)


def claims_of(hits: list[tuple[int, int, int]]) -> Claims:
    labels, rows, scores = (np.array([hit[i] for hit in hits], np.int64) for i in range(3))
    return best_claims(labels, rows, (scores / 10).astype(np.float32))


def listed(claims: Claims) -> list[tuple[int, int, float]]:
    return list(zip(claims.labels.tolist(), claims.rows.tolist(), claims.scores.tolist(), strict=True))


@given(hits=HITS)
def test_a_class_claims_a_row_once_with_its_best_score(hits: list[tuple[int, int, int]]) -> None:
    best: dict[tuple[int, int], int] = defaultdict(int)
    for label, row, score in hits:
        best[label, row] = max(best[label, row], score)
    found = {(label, row): score for label, row, score in listed(claims_of(hits))}
    assert found == {claim: pytest.approx(score / 10) for claim, score in best.items()}


@settings(max_examples=300)
@given(hits=HITS, config=CONFIGS, seed=st.integers(0, 3))
def test_what_is_selected_keeps_every_promise(
    hits: list[tuple[int, int, int]], config: SelectConfig, seed: int
) -> None:
    claims = claims_of(hits)
    chosen = listed(select(claims, config))
    assert set(chosen) <= set(listed(claims))
    assert len(set(chosen)) == len(chosen)
    shuffled = claims.at(np.random.default_rng(seed).permutation(len(claims)))
    assert listed(select(shuffled, config)) == chosen
    rows = {row for _, row, _ in chosen}
    if config.total is not None:
        assert len(rows) <= config.total
    if config.overlap == "best":
        assert len(rows) == len(chosen)
    by_class = defaultdict(list)
    for label, _, score in chosen:
        by_class[label].append(score)
    for scores in by_class.values():
        assert scores == sorted(scores, reverse=True)
        assert config.max_per_class is None or len(scores) <= config.max_per_class


def test_a_balanced_total_gives_every_class_its_best_before_any_gets_its_second() -> None:
    claims = claims_of([(0, 1, 9), (0, 2, 8), (0, 3, 7), (1, 11, 3), (1, 12, 2), (2, 21, 1)])
    balanced, natural = (select(claims, SelectConfig(total=4, share=share)) for share in ("balanced", "natural"))
    assert set(balanced.rows.tolist()) == {1, 11, 21, 2}
    assert set(natural.rows.tolist()) == {1, 2, 3, 11}


def test_a_row_that_several_classes_claim_counts_once_and_stays_for_all_or_for_the_best() -> None:
    claims = claims_of([(0, 5, 9), (1, 5, 8), (1, 6, 4), (0, 6, 4)])
    both = select(claims, SelectConfig(total=1))
    assert listed(both) == [(0, 5, pytest.approx(0.9)), (1, 5, pytest.approx(0.8))]
    best = select(claims, SelectConfig(overlap="best"))
    assert [(label, row) for label, row, _ in listed(best)] == [(0, 5), (0, 6)]


def test_each_claim_names_the_hit_it_rests_on_and_rows_come_best_first() -> None:
    claims = claims_of([(0, 5, 3), (0, 5, 9), (1, 5, 8), (1, 6, 4)])
    assert claims.hits.tolist() == [1, 2, 3]
    rows, scores = row_scores(claims)
    assert rows.tolist() == [5, 6]
    assert scores == pytest.approx([0.9, 0.4])


def test_hits_of_several_modes_are_compared_by_their_place_within_their_mode() -> None:
    scores = np.array([0.1, 0.3, 0.2, 0.9, 0.8, 0.9], np.float32)
    modes = np.array([0, 0, 0, 1, 1, 1], np.int8)
    assert percentile_ranks(scores, modes) == pytest.approx([1 / 3, 1, 2 / 3, 1, 1 / 3, 1])


@pytest.mark.parametrize("wrong", [{"max_per_class": 0}, {"total": -1}])
def test_caps_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        SelectConfig(**wrong)  # type: ignore[arg-type]
