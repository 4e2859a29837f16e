"""The key fits the budget, the sample is uniform, and the same sample trains the same bytes."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from autofaiss.external.metadata import IndexMetadata
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_builder.ann.quantizer import (
    EXACT_KEY,
    MAX_HELD_OUT,
    MAX_OPQ_ITERATIONS,
    check_key,
    choose_key,
    draw_split,
    memory_bytes,
    n_lists,
    n_training_rows,
    train_quantizer,
)
from memory_builder.errors import IndexBuildError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:'pipes' is deprecated:DeprecationWarning")


@pytest.mark.parametrize("n_rows", [1, 100, 9_999])
def test_under_ten_thousand_rows_are_searched_exactly(n_rows: int) -> None:
    assert choose_key(n_rows, 512, "16G") == EXACT_KEY


@pytest.mark.parametrize("n_rows", [10_000, 100_000, 999_999])
def test_up_to_a_million_rows_are_kept_whole_where_memory_allows(n_rows: int) -> None:
    assert choose_key(n_rows, 192, "16G") == f"IVF{n_lists(choose_key(n_rows, 192, '16G'))},Flat"


@pytest.mark.parametrize(("n_rows", "budget"), [(12_000, "2M"), (200_000, "50M"), (2_000_000, "300M")])
def test_a_small_budget_compresses_without_polysemous_training(n_rows: int, budget: str) -> None:
    key = choose_key(n_rows, 192, budget)
    assert "PQ" in key
    assert key.endswith("np")
    check_key(key)


SIZES = [(100, 4), (9_999, 192), (10_000, 192), (10_000, 512), (12_000, 64), (300_000, 768)]
SIZES += [(n, d) for n in (2_000_000, 400_000_000) for d in (192, 512, 768)]


@pytest.mark.parametrize(("n_rows", "d"), SIZES)
def test_where_nothing_fits_the_error_names_a_budget_that_does(n_rows: int, d: int) -> None:
    with pytest.raises(IndexBuildError, match=r"the minimum is \d+\.\dM$") as error:
        choose_key(n_rows, d, "1K")
    least = str(error.value).rsplit(" ", 1)[1]
    key = choose_key(n_rows, d, least)
    if key != EXACT_KEY:
        size = IndexMetadata(key.removesuffix("np"), n_rows, d).estimated_index_size_in_bytes()
        assert size <= memory_bytes(least)
    too_little = f"{float(least[:-1]) * 0.8:.3f}M"
    if float(least[:-1]) > 1:
        with pytest.raises(IndexBuildError):
            choose_key(n_rows, d, too_little)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16G", 16 * 10**9), ("1.5g", 15 * 10**8), ("500 MB", 5 * 10**8), ("7", 7), ("2k", 2000), ("1T", 10**12)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "16 GiB", "-1G", "1e9", "16X", "much", "1,5G"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-memory"):
        memory_bytes(text)


@settings(max_examples=100)
@given(n_rows=st.integers(0, 5_000), n_train=st.integers(0, 6_000), seed=st.integers(0, 5))
def test_held_out_and_training_rows_are_distinct_sorted_and_repeatable(n_rows: int, n_train: int, seed: int) -> None:
    held_out, train = draw_split(n_rows, n_train, seed)
    assert len(held_out) == min(MAX_HELD_OUT, n_rows // 20)
    assert len(train) == min(n_train, n_rows - len(held_out))
    both = np.concatenate([held_out, train])
    assert len(np.unique(both)) == len(both)
    assert not len(both) or (both.min() >= 0 and both.max() < n_rows)
    assert (np.diff(held_out) > 0).all()
    assert (np.diff(train) > 0).all()
    again = draw_split(n_rows, n_train, seed)
    np.testing.assert_array_equal(again[0], held_out)
    np.testing.assert_array_equal(again[1], train)


@pytest.mark.parametrize(("n_rows", "n_train"), [(10_000, 9_000), (1_000_000, 20_000)])
def test_the_draw_is_uniform_over_all_rows(n_rows: int, n_train: int) -> None:
    held_out, train = draw_split(n_rows, n_train, seed=1)
    for drawn in (held_out, train):
        counts, _ = np.histogram(drawn, bins=20, range=(0, n_rows))
        expected = len(drawn) / 20
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert not np.array_equal(train, draw_split(n_rows, n_train, seed=2)[1])


def test_a_draw_from_billions_takes_no_memory_for_billions() -> None:
    held_out, train = draw_split(5_000_000_000, 1_000, seed=0)
    assert (len(held_out), len(train)) == (MAX_HELD_OUT, 1_000)
    assert train.max() > 2**32


def threads(key: str) -> int:
    """One for OPQ: two that wait for each other on a busy machine take a hundred times as long."""
    return 1 if "OPQ" in key else 2


def sample(n: int, d: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


KEYS = [EXACT_KEY, "IVF8,Flat", "IVF8,SQ8", "OPQ8_16,IVF8,PQ8x4np", "IVF8_HNSW8,Flat", "OPQ8_16,IVF8_HNSW8,PQ8x4np"]


@pytest.mark.parametrize("key", KEYS)
def test_training_twice_gives_the_same_bytes(tmp_path: Path, key: str) -> None:
    written = []
    for name in ("one", "two"):
        index = train_quantizer(key, sample(600), threads=threads(key))
        faiss.write_index(index, str(tmp_path / name))
        written.append((tmp_path / name).read_bytes())
        del index
    assert written[0] == written[1]


@pytest.mark.parametrize("key", KEYS)
def test_a_trained_index_is_empty_takes_ids_and_scores_by_inner_product(tmp_path: Path, key: str) -> None:
    index = train_quantizer(key, sample(600), threads=threads(key))
    assert index.is_trained
    assert index.ntotal == 0
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    faiss.write_index(index, str(tmp_path / "index"))
    again = faiss.read_index(str(tmp_path / "index"))
    ids = (np.arange(600) << 32) | 7
    again.add_with_ids(sample(600), ids)
    found = again.search(sample(5), 3)[1]
    assert set(found.ravel().tolist()) <= set(ids.tolist())
    assert (found[:, 0] == ids[:5]).sum() >= 4


def test_the_graph_over_the_lists_is_there() -> None:
    index = train_quantizer("IVF32_HNSW8,Flat", sample(600), threads=2)
    graph = faiss.downcast_index(index.quantizer)
    assert isinstance(graph, faiss.IndexHNSWFlat)
    assert graph.ntotal == 32
    assert graph.metric_type == faiss.METRIC_INNER_PRODUCT


def test_opq_training_is_capped() -> None:
    index: Any = train_quantizer("OPQ8_16,IVF8,PQ8x4np", sample(600), threads=1)
    assert faiss.downcast_VectorTransform(index.chain.at(0)).niter == MAX_OPQ_ITERATIONS


BAD_KEYS = ["Flat", "HNSW32", "PQ16", "IDMap,IVF8,Flat", "IDMap2,IVF8,Flat", "IVF8,PQ8x4fs", "IVF8,PQ8x4fsr", "LSH"]
BAD_KEYS += ["IVF8,PQ8,RFlat", "IVF8,PQ8,Refine(SQ8)", "IMI2x8,Flat", "", "nonsense"]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_whose_parts_could_not_be_used_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="--index-key"):
        check_key(key)
    with pytest.raises(UsageError, match="--index-key"):
        train_quantizer(key, sample(100), threads=1)


@pytest.mark.parametrize("key", ["IVF8,nonsense", "IVF8", "IVF8,PQ5", "XIVF8,Flat,", "IVF8,Flat,Flat"])
def test_a_key_faiss_does_not_know_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="--index-key"):
        train_quantizer(key, sample(500), threads=1)


def test_too_few_rows_for_the_lists_or_codes_is_an_error_that_says_the_fix() -> None:
    for key in ("IVF64,Flat", "OPQ8_16,IVF4,PQ8x8np"):
        with pytest.raises(IndexBuildError, match="fewer lists or code words"):
            train_quantizer(key, sample(50), threads=1)


def test_the_sample_serves_lists_and_code_words() -> None:
    assert n_training_rows(EXACT_KEY, 100) == 0
    assert n_training_rows("IVF16,PQ8", 100) == 25_600
    assert n_training_rows("OPQ8_16,IVF4096_HNSW32,PQ8x8np", 100) == 409_600
    assert n_lists("OPQ8_16,IVF4096_HNSW32,PQ8x8np") == 4096
