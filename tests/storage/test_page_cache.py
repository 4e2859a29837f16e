"""Rows of remote files come in few requests, and only once."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_builder.errors import CorruptMemoryError
from memory_builder.storage.page_cache import PAGE_BYTES, PageCache
from memory_builder.storage.store import Store

WIDTH, HEADER = 384, 128
N = 40 * PAGE_BYTES // WIDTH


class Counted:
    """A store that tells what is asked of it."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_requests = self.n_bytes = 0
        ask = store.read_ranges

        def counted(path: str, starts: Any, ends: Any) -> Any:
            self.n_requests += len(starts)
            self.n_bytes += sum(ends) - sum(starts)
            return ask(path, starts, ends)

        monkeypatch.setattr(store, "read_ranges", counted)


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, HEADER + N * WIDTH).astype(np.uint8)


@pytest.fixture
def store(s3: Any, data: np.ndarray) -> Store:
    store: Store = s3.store()
    store.put("file", data.tobytes())
    return store


def expected(data: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return data[HEADER:].reshape(N, WIDTH)[rows]


def read(cache: PageCache, rows: np.ndarray) -> np.ndarray:
    return cache.read("file", HEADER + WIDTH * rows, WIDTH, HEADER + N * WIDTH)


def test_any_rows_in_any_order_are_what_lies_there(store: Store, data: np.ndarray) -> None:
    cache = PageCache(store)
    rng = np.random.default_rng(0)
    for rows in (rng.integers(0, N, 50), np.array([N - 1, 0, N - 1]), np.arange(N), np.array([], np.int64)):
        np.testing.assert_array_equal(read(cache, rows), expected(data, rows))


def test_near_rows_share_a_request_and_known_ones_need_none(
    store: Store, data: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, cache = Counted(store, monkeypatch), PageCache(store)
    near = np.arange(0, 3 * PAGE_BYTES // WIDTH, 7)
    read(cache, near)
    assert (counted.n_requests, counted.n_bytes <= 4 * PAGE_BYTES) == (1, True)
    read(cache, near[::-1])
    assert counted.n_requests == 1
    far = np.array([0, N - 1])  # further apart than a request is worth; the first is known
    np.testing.assert_array_equal(read(cache, far), expected(data, far))
    assert counted.n_requests == 2


def test_what_is_kept_is_bounded_and_what_was_let_go_is_read_again(
    store: Store, data: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, cache = Counted(store, monkeypatch), PageCache(store, max_bytes=2 * PAGE_BYTES)
    for row in (0, N // 2, N - 1, 0):
        np.testing.assert_array_equal(read(cache, np.array([row])), expected(data, np.array([row])))
    assert counted.n_requests == 4
    assert len(cache._pages) <= 2


def test_a_file_that_was_cut_short_is_named(store: Store, data: np.ndarray) -> None:
    store.put("file", data[: len(data) // 2].tobytes())
    with pytest.raises(CorruptMemoryError, match="file is shorter than its commit says"):
        read(PageCache(store), np.array([0, N // 2 + 1]))


@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=40), requested=st.integers(0, 3))
def test_rows_are_the_files_whatever_lies_between_them(rows: list[int], requested: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, (N, WIDTH), dtype=np.uint8)
    store = Store(f"memory://pages-{requested}")
    store.put("file", data.tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memory_builder.storage.page_cache.REQUEST_BYTES", requested * PAGE_BYTES)
        cache = PageCache(store, max_bytes=3 * PAGE_BYTES)
        for _ in range(2):  # fetched, then in part from the cache
            got = cache.read("file", np.array(rows) * WIDTH, WIDTH, data.nbytes)
            np.testing.assert_array_equal(got, data[rows])
