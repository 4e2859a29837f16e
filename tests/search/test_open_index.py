"""Several parts answer as one index would, re-ranking is exact, and short results are padded."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from memory_builder.ann.parts import fill_part, plan_parts, write_faiss
from memory_builder.ann.quantizer import EXACT_KEY, train_quantizer
from memory_builder.base.types import NO_ROW
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows
from memory_builder.errors import CorruptMemoryError
from memory_builder.search.open_index import OpenIndex, SearchParams
from memory_builder.storage.store import Store

N, D, SHARD_ROWS, FOLDER = 1_500, 16, 400, "index/x"
KEYS = [EXACT_KEY, "IVF16,Flat", "OPQ8_16,IVF16,PQ8x4np", "IVF16_HNSW8,Flat", "IVF16,SQ8"]


@dataclass
class Built:
    """An index in four parts, and everything one needs to check it."""

    store: Store
    parts: list[str]
    index: OpenIndex
    rows: Rows
    vectors: Any  # f32[n, d] as stored
    ids: Any  # i64[n]
    queries: Any  # f32[q, d]


def build(root: Path, key: str, write_memory: Callable[..., Store], clustered: Any) -> Built:
    images, texts = clustered(N, D, seed=0)
    images[10:20] = images[5]  # rows that tie
    store = write_memory(root, images, texts, shard_rows=SHARD_ROWS)
    commits = Manifest.read_folded(store).commits
    rows = Rows(store, commits, D)
    positions = np.arange(N)
    ids = (positions // SHARD_ROWS << 32) | positions % SHARD_ROWS
    vectors = rows.vectors(ids, "image")
    _, digest = write_faiss(store, f"{FOLDER}/trained.faiss", train_quantizer(key, vectors, threads=1))
    store.put(f"{FOLDER}/trained.json", b'{"sha256": "%s"}' % digest.encode())
    parts = plan_parts(commits.values(), "image", SHARD_ROWS)
    for part in parts:
        fill_part(
            part,
            store=store,
            folder=FOLDER,
            modality="image",
            d=D,
            commits=commits,
            quantizer_sha256=digest,
            threads=1,
        )
    names = [part.name for part in parts]
    assert len(names) == 4
    return Built(store, names, OpenIndex(store, FOLDER, names), rows, vectors, ids, texts[:20].copy())


@pytest.fixture(scope="module", params=KEYS)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_memory: Any, clustered: Any
) -> Built:
    return build(tmp_path_factory.mktemp("memory"), request.param, write_memory, clustered)


@pytest.fixture
def fresh(tmp_path: Path, write_memory: Any, clustered: Any) -> Built:
    return build(tmp_path, "IVF16,Flat", write_memory, clustered)


def in_order(scores: Any, ids: Any) -> tuple[Any, Any]:
    """Equal scores in order of their ids."""
    order = np.lexsort((ids, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


@pytest.mark.parametrize("nprobe", [1, 4, 16])
def test_parts_answer_as_one_index_that_holds_everything(built: Built, nprobe: int) -> None:
    whole = faiss.read_index(str(built.store.fetch(f"{FOLDER}/trained.faiss")))
    whole.add_with_ids(built.vectors, built.ids)
    if not built.index.is_exact:
        ivf = faiss.extract_index_ivf(whole)
        ivf.nprobe = nprobe
        quantizer = faiss.downcast_index(ivf.quantizer)
        if isinstance(quantizer, faiss.IndexHNSW):
            quantizer.hnsw.efSearch = 64
    k = 400  # beyond the rows that tie in the last places
    scores, ids = in_order(*whole.search(built.queries, k))
    ours, our_ids = built.index.search(built.queries, k, SearchParams(nprobe=nprobe, refine=0), built.rows, "image")
    found = ids != NO_ROW
    np.testing.assert_array_equal(our_ids != NO_ROW, found)
    np.testing.assert_allclose(ours[found], scores[found], atol=1e-5)
    for a, b, s in zip(ids, our_ids, scores, strict=True):
        sure = s > s[s > -1e30].min() + 1e-4  # which of the rows that tie at the end are met is open
        assert set(a[sure]) <= set(b)


def test_refined_scores_are_exact(built: Built) -> None:
    scores, ids = built.index.search(built.queries, 10, SearchParams(nprobe=16, refine=8), built.rows, "image")
    place = {int(row_id): i for i, row_id in enumerate(built.ids)}
    expected = [
        [query @ built.vectors[place[i]] for i in row] for query, row in zip(built.queries, ids.tolist(), strict=True)
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_looking_everywhere_finds_the_exact_answer(built: Built) -> None:
    scores, ids = built.index.search(built.queries, 10, SearchParams(nprobe=16, refine=N), built.rows, "image")
    truth, true_ids = in_order(built.queries @ built.vectors.T, np.tile(built.ids, (len(built.queries), 1)))
    np.testing.assert_allclose(scores, truth[:, :10], atol=1e-5)
    assert (ids == true_ids[:, :10]).mean() > 0.99


@pytest.mark.parametrize("k", [N, N + 1, 3 * N])
def test_what_is_not_there_is_padded(built: Built, k: int) -> None:
    scores, ids = built.index.search(built.queries[:3], k, SearchParams(nprobe=10**6, refine=2), built.rows, "image")
    assert scores.shape == ids.shape == (3, k)
    assert scores.dtype == np.float32
    assert (ids[:, N:] == NO_ROW).all()
    assert np.isneginf(scores[:, N:]).all()
    assert all(sorted(row) == built.ids.tolist() for row in ids[:, :N])
    assert np.isfinite(scores[:, :N]).all()


def test_no_queries_give_no_answers(built: Built) -> None:
    scores, ids = built.index.search(
        np.zeros((0, D), np.float32), 5, SearchParams(nprobe=4, refine=2), built.rows, "image"
    )
    assert scores.shape == ids.shape == (0, 5)


def test_rows_that_tie_come_in_order_of_their_ids(built: Built) -> None:
    params = SearchParams(nprobe=16, refine=16)
    scores, ids = built.index.search(built.vectors[5:6], 11, params, built.rows, "image")
    assert ids[0].tolist() == [5, *range(10, 20)]
    assert np.ptp(scores) == 0
    for _ in range(3):
        again = built.index.search(built.vectors[5:6], 11, params, built.rows, "image")
        np.testing.assert_array_equal(again[1], ids)


def test_an_index_knows_its_size(built: Built) -> None:
    assert built.index.n_rows == N
    assert built.index.list_sizes().sum() == N
    assert len(built.index.list_sizes()) == built.index.n_lists
    assert built.index.code_bytes > 0


def test_threads_get_the_answers_that_one_gets_alone(built: Built) -> None:
    def ask(i: int) -> tuple[Any, Any]:
        query, params = built.queries[i % 20][None], SearchParams(nprobe=1 + i % 16, refine=i % 4)
        return built.index.search(query, 5 + i % 7, params, built.rows, "image")

    alone = [ask(i) for i in range(160)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(ask, range(160)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def damage(built: Built, what: str) -> str:
    part = f"{FOLDER}/parts/{built.parts[1]}"
    store = built.store
    if what.startswith("no "):
        path = {"no part": f"{part}.faiss", "no record": f"{part}.json", "no quantizer": f"{FOLDER}/trained.faiss"}[
            what
        ]
        store.remove(path)
    elif what == "part cut short":
        path = f"{part}.faiss"
        store.put(path, store.read(path)[:-100])
    elif what == "part grown":
        path = f"{part}.faiss"
        store.put(path, store.read(path) + b"x")
    elif what == "garbage of the same size":
        path = f"{part}.faiss"
        store.put(path, b"\xa5" * store.size(path))
    elif what == "empty quantizer":
        path = f"{FOLDER}/trained.faiss"
        store.put(path, b"")
    else:
        path = f"{part}.json"
        digest = store.checksum(f"{FOLDER}/trained.faiss").encode()
        store.put(path, store.read(path).replace(digest, b"0" * 64))
    return path.removesuffix(".json")


@pytest.mark.parametrize(
    "what",
    [
        "no part",
        "no record",
        "no quantizer",
        "part cut short",
        "part grown",
        "garbage of the same size",
        "empty quantizer",
        "part of another quantizer",
    ],
)
def test_a_damaged_index_is_refused_by_name(fresh: Built, what: str) -> None:
    path = damage(fresh, what)
    with pytest.raises(CorruptMemoryError, match=path):
        OpenIndex(fresh.store, FOLDER, fresh.parts)
