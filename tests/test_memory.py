"""A memory answers texts, pictures and vectors, and says clearly what it cannot do."""

import gc
import io
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from helpers.tars import picture
from memory_builder.base.runner import LocalRunner
from memory_builder.errors import CorruptMemoryError, EncoderError, IndexBuildError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory
from memory_builder.model.encoder import Encoder, EncoderConfig
from memory_builder.model.images import decode_image
from memory_builder.storage.store import Store

if TYPE_CHECKING:
    from helpers.s3 import S3

TEXTS = ["red panda", "clock", "green arrow", "house", "flag of Chad"]
PICTURES = [picture(seed, (40, 40)) for seed in range(5)]
Write = Callable[..., Store]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_memory: Write, encoder: Encoder) -> Path:
    """Five pairs in two shards, with an index of each modality."""
    folder = tmp_path_factory.mktemp("memory")
    images = encoder.encode_images(np.stack([encoder.preprocess(decode_image(data)) for data in PICTURES]))
    texts = encoder.encode_texts(TEXTS)
    write_memory(
        folder,
        images.astype(np.float32),
        texts.astype(np.float32),
        shard_rows=3,
        fingerprint=encoder.fingerprint,
        model=encoder.config.model,
    )
    index_memory(str(folder), keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    return folder


@pytest.fixture(scope="module")
def memory(root: Path) -> Memory:
    return Memory.open(root)


IDS = [0, 1, 2, 1 << 32, (1 << 32) + 1]


def test_a_text_finds_its_caption(memory: Memory) -> None:
    hits = memory.search(text=TEXTS, k=2, keys="text")
    assert hits.ids[:, 0].tolist() == IDS
    np.testing.assert_allclose(hits.scores[:, 0], 1, atol=2e-3)
    assert memory.search(text="clock", k=1, keys="text").ids.tolist() == [[1]]


def test_a_picture_finds_itself_however_it_is_given(memory: Memory, tmp_path: Path) -> None:
    (tmp_path / "3.png").write_bytes(PICTURES[3])
    given: list[Any] = [PICTURES[3], tmp_path / "3.png", str(tmp_path / "3.png"), Image.open(io.BytesIO(PICTURES[3]))]
    for image in given:
        hits = memory.search(image=image, k=1)
        assert hits.ids.tolist() == [[1 << 32]]
        assert hits.scores[0, 0] == pytest.approx(1, abs=2e-3)
    assert memory.search(image=PICTURES, k=1).ids.ravel().tolist() == IDS


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "F", "L", "RGBA", "P", "I;16"])
def test_a_decoded_picture_of_any_mode_can_be_asked_with(memory: Memory, mode: str) -> None:
    assert memory.search(image=Image.new(mode, (40, 30)), k=1).ids.shape == (1, 1)


def test_vectors_are_scaled_and_searched_exactly(memory: Memory) -> None:
    queries = np.random.default_rng(0).standard_normal((4, 192))
    hits = memory.search(vectors=7 * queries, k=5)
    stored = memory.vectors(IDS)
    expected = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ stored.T
    np.testing.assert_allclose(hits.scores, -np.sort(-expected, axis=1), atol=1e-5)
    assert hits.ids.tolist() == np.array(IDS)[np.argsort(-expected, axis=1)].tolist()
    np.testing.assert_array_equal(memory.search(vectors=queries[0].tolist(), k=5).ids, hits.ids[:1])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint64])
def test_vectors_of_any_kind_of_number_can_be_asked_with(memory: Memory, dtype: Any) -> None:
    query = np.arange(1, 193)
    expected = memory.search(vectors=query.astype(np.float32) % 100, k=5)
    np.testing.assert_array_equal(memory.search(vectors=(query % 100).astype(dtype), k=5).ids, expected.ids)


def test_tiny_and_huge_vectors_have_a_direction(memory: Memory) -> None:
    query = memory.vectors([1])
    for scale in (1e-30, 1e30):
        assert memory.search(vectors=query * np.float32(scale), k=1).ids.tolist() == [[1]]


def test_more_than_there_are_is_padded(memory: Memory) -> None:
    hits = memory.search(vectors=memory.vectors([0, 1]), k=8)
    assert (hits.ids[:, 5:] == -1).all()
    assert np.isneginf(hits.scores[:, 5:]).all()
    assert (np.sort(hits.ids[:, :5]) == IDS).all()
    table = memory.rows(hits.ids)
    assert table.num_rows == 16
    assert table["key"].to_pylist()[5:8] == [None] * 3
    assert memory.metadata(hits.ids[0])["key"].to_pylist()[5:] == [None] * 3


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({}, "exactly one of text, image and vectors"),
        ({"text": "a", "image": b""}, "exactly one"),
        ({"text": "a", "k": 0}, "k 0: expected a whole number, at least 1"),
        ({"text": "a", "k": 2.5}, "k 2.5"),
        ({"text": []}, "no text to search with"),
        ({"text": [1]}, "text queries are strings"),
        ({"image": []}, "no image to search with"),
        ({"image": 7}, "cannot read the query image"),
        ({"text": "a", "k": -3}, "k -3"),
        ({"vectors": np.ones(191)}, r"shape \[1, 191\], this memory takes \[q, 192\]"),
        ({"vectors": np.ones((1, 1, 192))}, "shape"),
        ({"vectors": [["x"] * 192]}, "not numbers"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, "not numbers"),
        ({"vectors": np.full(192, np.nan)}, "NaN"),
        ({"vectors": np.full(192, np.inf)}, "infinity"),
        ({"vectors": np.full(192, 1e300)}, "infinity"),
        ({"vectors": ["1"] * 192}, "not numbers but <U1"),
        ({"vectors": np.full(192, 1j)}, "not numbers but complex128"),
        ({"vectors": np.array([{}] * 192)}, "not numbers but object"),
        ({"vectors": np.ones(192, bool)}, "not numbers but bool"),
        ({"vectors": np.zeros((2, 192))}, "only zeros"),
        ({"vectors": np.ones(192), "nprobe": 0}, "nprobe 0"),
        ({"vectors": np.ones(192), "nprobe": 1.5}, "nprobe 1.5"),
        ({"vectors": np.ones(192), "refine": -1}, "refine -1"),
        ({"image": b"no picture"}, "not an image"),
        ({"image": picture()[:80]}, "damaged"),
        ({"image": "/no/such/file.png"}, "cannot read the query image"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(memory: Memory, question: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        memory.search(**question)


def test_a_memory_without_the_index_says_how_to_make_it(write_memory: Write, clustered: Any, tmp_path: Path) -> None:
    write_memory(tmp_path, *clustered(30, 16, seed=0))
    with pytest.raises(IndexBuildError, match=r"no index of image vectors \(none yet\): run memory-builder index"):
        Memory.open(tmp_path).search(vectors=np.ones(16))
    index_memory(str(tmp_path), keys=("text",), config=IndexConfig(), runner=LocalRunner())
    opened = Memory.open(tmp_path)
    with pytest.raises(IndexBuildError, match=r"no index of image vectors \(text\)"):
        opened.search(vectors=np.ones(16))
    assert opened.search(vectors=np.ones(16), keys="text").ids.shape == (1, 10)


def test_missing_and_damaged_tuning_is_told(write_memory: Write, clustered: Any, tmp_path: Path) -> None:
    write_memory(tmp_path, *clustered(30, 16, seed=0))
    index_memory(str(tmp_path), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    (tuning,) = tmp_path.glob("index/*/tuning.json")
    tuning.write_text("{")
    with pytest.raises(CorruptMemoryError, match=r"tuning\.json is damaged .*build the index again"):
        Memory.open(tmp_path).search(vectors=np.ones(16))
    tuning.unlink()
    with pytest.raises(CorruptMemoryError, match=r"tuning\.json is missing: build the index again"):
        Memory.open(tmp_path).search(vectors=np.ones(16))


def test_another_encoder_is_refused(write_memory: Write, clustered: Any, tmp_path: Path, encoder: Encoder) -> None:
    write_memory(tmp_path, *clustered(30, 192, seed=0), model=encoder.config.model)
    index_memory(str(tmp_path), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    memory = Memory.open(tmp_path)
    with pytest.raises(EncoderError, match=f"fingerprint {encoder.fingerprint[:12]}.*was built with .*000000000000"):
        memory.search(text="a")
    assert memory.search(vectors=np.ones(192)).ids.shape == (1, 10)  # vectors need no encoder


def test_a_model_that_is_gone_is_an_error_and_another_place_may_be_named(root: Path, encoder: Encoder) -> None:
    elsewhere = Memory.open(root, encoder=EncoderConfig(model="local-dir:/nowhere"))
    with pytest.raises(EncoderError, match="/nowhere"):
        elsewhere.search(text="clock")
    assert Memory.open(root, encoder=encoder.config).search(text="clock", k=1, keys="text").ids.tolist() == [[1]]


def test_an_index_is_opened_once_however_many_ask(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, open_index, all_ask = [], Memory._open_index, threading.Barrier(8)

    def slowly(memory: Memory, keys: Any) -> Any:
        opened.append(keys)
        time.sleep(0.1)
        return open_index(memory, keys)

    def ask(_: int) -> list[int]:
        all_ask.wait()
        return memory.search(vectors=np.ones(192), k=1).ids[0].tolist()

    monkeypatch.setattr(Memory, "_open_index", slowly)
    memory = Memory.open(root)
    with ThreadPoolExecutor(8) as threads:
        assert len({str(found) for found in threads.map(ask, range(8))}) == 1
    assert opened == ["image"]


def test_what_is_open_goes_with_the_memory(root: Path) -> None:
    memory = Memory.open(root)
    memory.search(vectors=np.ones(192), where="caption LIKE '%a%'")
    index = weakref.ref(memory.index("image"))
    gc.disable()
    try:
        del memory
        assert index() is None  # at once: it may be large, or hold actors that others wait for
    finally:
        gc.enable()


def test_a_memory_says_what_it_is(memory: Memory, root: Path) -> None:
    assert len(memory) == 5
    assert repr(memory) == f"Memory({str(root)!r}, 5 rows, indexes: image, text)"
    assert memory.source(1 << 32) == "/synthetic/000000003.tar"
    assert memory.rows([1])["caption"].to_pylist() == ["caption 1"]


def test_what_was_opened_stays_as_it_was(write_memory: Write, clustered: Any, tmp_path: Path) -> None:
    images, texts = clustered(400, 16, seed=0)
    store = write_memory(tmp_path, images[:200], texts[:200], shard_rows=100)
    index_memory(str(tmp_path), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    before = Memory.open(tmp_path)
    write_memory(tmp_path, images, texts, shard_rows=100)
    index_memory(str(tmp_path), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    after = Memory.open(tmp_path)
    assert (len(before), len(after)) == (200, 400)
    assert (before.search(vectors=images[0], k=400).ids >= 0).sum() == 200
    assert (after.search(vectors=images[0], k=400).ids >= 0).sum() == 400
    assert store.list("snapshots") == ["1.json", "2.json"]


def test_a_damaged_index_is_named(write_memory: Write, clustered: Any, tmp_path: Path) -> None:
    store = write_memory(tmp_path, *clustered(100, 16, seed=0))
    snapshot = index_memory(str(tmp_path), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    view = snapshot.indexes["image"]
    part = f"{view.index}/parts/{view.segments[0][0]}.faiss"
    store.put(part, store.read(part)[:-5])
    with pytest.raises(CorruptMemoryError, match=part):
        Memory.open(tmp_path).search(vectors=np.ones(16))


def test_a_memory_on_an_object_store_answers_as_a_local_one(
    write_memory: Write, clustered: Any, tmp_path: Path, s3: "S3"
) -> None:
    sides = clustered(400, 16, seed=0)
    config = IndexConfig(index_key="OPQ8_16,IVF8,PQ8x4np", train_threads=1)
    memories = []
    for place, options in ((str(tmp_path / "memory"), {}), (s3.url, s3.options)):
        write_memory(place, *sides, shard_rows=150, **options)
        index_memory(place, keys=("image",), config=config, runner=LocalRunner())
        memories.append(Memory.open(place, storage_options=options))
    answers = [memory.search(vectors=sides[1][:10], k=5) for memory in memories]
    np.testing.assert_array_equal(answers[0].ids, answers[1].ids)
    np.testing.assert_allclose(answers[0].scores, answers[1].scores, atol=1e-6)
    tables = [memory.rows(answers[0].ids) for memory in memories]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("key", ["IDMap2,Flat", "IVF8,Flat", "IVF8,PQ8x4np"])
def test_asking_for_more_than_there_is_pads_in_every_kind_of_index(
    write_memory: Write, clustered: Any, tmp_path: Path, key: str
) -> None:
    images, texts = clustered(100, 16, seed=0)
    write_memory(tmp_path, images, texts, shard_rows=40)
    config = IndexConfig(index_key=key, train_threads=1)
    index_memory(str(tmp_path), keys=("image",), config=config, runner=LocalRunner())
    memory = Memory.open(tmp_path).delete(ids=[0, 1])
    for k, nprobe, refine, where in ((1_000, 10**6, 0, None), (1_000, 99, 10**6, None), (99, 8, 1, "width > 1")):
        hits = memory.search(vectors=images[:2], k=k, nprobe=nprobe, refine=refine, where=where)
        assert ((hits.ids >= 0).sum(axis=1) == 98).all()
        assert (hits.ids[:, 98:] == -1).all()
        assert np.isneginf(hits.scores[:, 98:]).all()
        assert len(np.unique(hits.ids[0])) == 99


def test_a_memory_of_one_row_is_appended_to_emptied_and_compacted(
    write_memory: Write, clustered: Any, tmp_path: Path
) -> None:
    images, texts = clustered(2, 16, seed=0)
    write_memory(tmp_path, images[:1], texts[:1], shard_rows=1)
    index_memory(str(tmp_path), keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    write_memory(tmp_path, images, texts, shard_rows=1)
    memory = Memory.open(tmp_path).append()
    assert memory.search(vectors=images, k=2).ids.tolist() == [[0, 1 << 32], [1 << 32, 0]]
    memory = memory.delete(ids=[0]).compact(purge=True)
    assert memory.search(vectors=images, k=2, keys="text").ids.tolist() == [[1 << 32, -1]] * 2
    assert memory.delete(keys=["00000001"]).search(vectors=images, k=1).ids.tolist() == [[-1]] * 2


def test_an_empty_memory_has_nothing_to_index_append_or_delete(
    write_memory: Write, clustered: Any, tmp_path: Path
) -> None:
    write_memory(tmp_path, *(side[:0] for side in clustered(1, 16, seed=0)))
    memory = Memory.open(tmp_path)
    with pytest.raises(IndexBuildError, match="no image vectors to index"):
        index_memory(str(tmp_path), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    with pytest.raises(IndexBuildError, match="no index to append to"):
        memory.append()
    with pytest.raises(UsageError, match="nothing to delete"):
        memory.delete(where="width > 1")
    assert len(memory.compact()) == 0
