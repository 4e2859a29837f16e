"""What is kept holds no two rows that are alike, and every dropped row is like one that is kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_builder.retrieval import duplicates
from memory_builder.retrieval.duplicates import first_of_each, without_near_duplicates


def test_of_the_same_bytes_the_first_stays() -> None:
    assert first_of_each(["a", "b", "a", None, None, "b"]).tolist() == [True, True, False, True, True, False]


def rows(n: int, spread: float, seed: int) -> np.ndarray:
    """f32[n, 16] unit rows around ten centres."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((10, 16))[rng.integers(0, 10, n)] + spread * rng.standard_normal((n, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=40)
@given(
    n=st.integers(0, 80),
    spread=st.sampled_from([0.05, 0.2, 1.0]),
    threshold=st.sampled_from([0.9, 0.99]),
    seed=st.integers(0, 9),
)
def test_no_two_kept_rows_are_alike_and_each_dropped_one_is_like_an_earlier(
    n: int, spread: float, threshold: float, seed: int
) -> None:
    vectors = rows(n, spread, seed)
    kept = without_near_duplicates(vectors, threshold)
    alike = vectors @ vectors.T >= threshold
    for place in range(n):
        earlier = np.flatnonzero(kept[:place])
        assert kept[place] != alike[place, earlier].any()


def test_many_rows_are_compared_with_those_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = rows(3_000, 1.0, 0)
    copies = np.concatenate([vectors, vectors[:500] + 1e-4])
    copies = (copies / np.linalg.norm(copies, axis=1, keepdims=True)).astype(np.float32)
    whole = without_near_duplicates(copies, 0.99)
    monkeypatch.setattr(duplicates, "COMPARED_WHOLE", 1_000)
    near = without_near_duplicates(copies, 0.99)
    assert not whole[3_000:].any()
    assert (near == whole).mean() > 0.99
