"""Published embeddings and indexes become a memory whose rows and answers are those that were published."""

import json
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.published import D, publish, run, unit
from helpers.tars import published_index
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import EncoderError, IndexBuildError, SourceError, UsageError
from memory_builder.indexing.driver import adopt
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store


def test_rows_keep_their_vectors_captions_and_order(tmp_path: Path) -> None:
    vectors = publish(tmp_path / "laion", [30, 20, 5])
    report = run(tmp_path / "laion", tmp_path / "memory", config=EmbedConfig(columns=("NSFW:string",)))
    assert (report.n_rows, report.failed, report.notes) == (55, {}, {})
    memory = Memory.open(tmp_path / "memory")
    ids = np.array([0, 29, 1 << 32, (2 << 32) + 4])
    np.testing.assert_allclose(memory.vectors(ids), vectors["image"][[0, 29, 30, 54]], atol=1e-3)
    np.testing.assert_allclose(memory.vectors(ids, "text"), vectors["text"][[0, 29, 30, 54]], atol=1e-3)
    assert memory.rows(ids)["caption"].to_pylist() == ["0-0", "0-29", "1-0", "2-4"]
    row = memory.metadata(ids[:1]).to_pylist()[0]
    assert (row["key"], row["url"], row["NSFW"], row["width"], row["has_image"]) == ("0-0", "0-0", "no", 640, True)
    assert verify(Store(tmp_path / "memory"), LocalRunner()) == []
    assert run(tmp_path / "laion", tmp_path / "memory", config=EmbedConfig(columns=("NSFW:string",))).n_embedded == 0
    with pytest.raises(EncoderError, match="imported without a model"):
        memory.search(text="a")


@pytest.mark.parametrize("width", [1, 5])
def test_any_numbering_and_one_modality_alone(tmp_path: Path, width: int) -> None:
    publish(tmp_path / "laion", [3] * 12, width=width, kinds="text")
    report = run(tmp_path / "laion", tmp_path / "memory")
    memory = Memory.open(tmp_path / "memory")
    commit = memory.commits[0]
    assert (report.n_rows, commit.n_images, commit.n_texts) == (36, 0, 3)
    assert memory.rows([1])["key"].to_pylist() == [f"{0:0{width}d}/000000001"]


def test_odd_vectors_are_normalised_or_left_blank_and_counted(tmp_path: Path) -> None:
    publish(tmp_path / "laion", [6])
    file = tmp_path / "laion" / "img_emb" / "img_emb_0000.npy"
    array = np.load(file).astype(np.float32)
    array[1] *= 7
    array[2, 0], array[3, 3], array[4] = np.nan, np.inf, 0
    np.save(file, array)
    report = run(tmp_path / "laion", tmp_path / "memory")
    assert report.notes == {"image vectors normalised": 1, "image vectors blank": 3}
    assert report.n_rows == 6
    memory = Memory.open(tmp_path / "memory")
    norms = np.linalg.norm(memory.vectors(np.arange(6)), axis=1)
    np.testing.assert_allclose(norms, [1, 1, 0, 0, 0, 1], atol=1e-3)
    assert memory.metadata([2])["has_image"].to_pylist() == [False]


def test_metadata_that_has_no_column_of_its_own_is_kept_and_what_cannot_be_read_counted(tmp_path: Path) -> None:
    publish(tmp_path / "laion", [3])
    table = {
        "caption": pa.array([b"one", b"caf\xe9", b"three"], pa.binary()).view(pa.string()),
        "width": ["unknown", "64", None],
        "height": [20.0, None, None],
        "original_height": [200, 200, 200],
    }
    pq.write_table(pa.table(table), tmp_path / "laion" / "metadata" / "metadata_0000.parquet")
    notes = run(tmp_path / "laion", tmp_path / "memory").notes
    assert notes == {"column caption cannot be read": 1, "rows have no caption": 1, "rows have no url": 3}
    rows = Memory.open(tmp_path / "memory").metadata(np.arange(3)).to_pylist()
    assert [row["caption"] for row in rows] == ["one", None, "three"]
    assert [(row["width"], row["height"]) for row in rows] == [(None, 20), (None, 200), (None, 200)]
    assert [json.loads(row["extra"]) for row in rows] == [
        {"width": "unknown", "original_height": 200},
        {"width": "64"},
        {},
    ]


def test_a_shard_whose_files_do_not_belong_together_fails_alone(tmp_path: Path) -> None:
    publish(tmp_path / "laion", [6, 6, 6, 6])
    images = tmp_path / "laion" / "img_emb"
    np.save(images / "img_emb_0001.npy", unit(5, 0).astype(np.float16))
    (images / "img_emb_0002.npy").write_bytes(b"no array")
    np.save(images / "img_emb_0003.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    report = run(tmp_path / "laion", tmp_path / "memory")
    assert report.n_rows == 6
    said = [report.failed[uri] for uri in sorted(report.failed)]
    assert "rows do not pair up" in said[0]
    assert "5 rows" in said[0]
    assert "cannot be read as an array of numbers" in said[1]
    assert "cannot be read as an array of numbers" in said[2]


def test_folders_that_miss_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no embeddings at"):
        run(tmp_path, tmp_path / "memory")
    publish(tmp_path / "laion", [6, 6])
    (tmp_path / "laion" / "text_emb" / "text_emb_0001.npy").unlink()
    with pytest.raises(SourceError, match="no text_emb for 0001"):
        run(tmp_path / "laion", tmp_path / "memory")


def test_with_a_model_texts_can_be_asked_for_and_another_width_is_refused(tmp_path: Path, model_dir: Path) -> None:
    publish(tmp_path / "laion", [6])
    encoder = EncoderConfig(model=f"local-dir:{model_dir}")
    run(tmp_path / "laion", tmp_path / "memory", encoder=encoder)
    assert Memory.open(tmp_path / "memory").encoder.d == D
    for file in (tmp_path / "laion").glob("*_emb/*.npy"):
        np.save(file, unit(6, 0, d=D // 2))
    with pytest.raises(EncoderError, match=r"vectors of width 192, .* have 96"):
        run(tmp_path / "laion", tmp_path / "other", encoder=encoder)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "merged"), [("IVF16,SQ8", False), ("IVF16_HNSW32,PQ16x4", True)])
def test_a_published_index_answers_as_it_did(tmp_path: Path, key: str, merged: bool) -> None:
    vectors = publish(tmp_path / "laion", [700, 700, 600])["image"]
    blank = np.load(tmp_path / "laion" / "img_emb" / "img_emb_0001.npy")
    blank[5] = 0  # its row stays in the numbering, and out of the index
    np.save(tmp_path / "laion" / "img_emb" / "img_emb_0001.npy", blank)
    index = published_index(tmp_path / "image.index", vectors, key, merged)
    run(tmp_path / "laion", tmp_path / "memory")
    adopt(
        str(tmp_path / "memory"), str(tmp_path / "laion"), tmp_path / "image.index", keys="image", runner=LocalRunner()
    )
    memory = Memory.open(tmp_path / "memory")
    queries = unit(20, 9)
    faiss.extract_index_ivf(index).nprobe = 16
    _, dense = index.search(queries, 11)
    starts = np.array([0, 700, 1400])
    shard = np.searchsorted(starts, dense, side="right") - 1
    expected = (shard << 32) | (dense - starts[shard])
    hits = memory.search(vectors=queries, k=11, nprobe=16, refine=0)
    without = [[row for row in rows if row != (1 << 32) + 5][:10] for rows in expected.tolist()]
    assert [rows[:10] for rows in hits.ids.tolist()] == without
    assert memory.index("image").n_rows == 1999
    assert verify(Store(tmp_path / "memory"), LocalRunner()) == []
    record = json.loads((tmp_path / "memory" / memory.snapshot.indexes["image"].index / "index.json").read_text())
    assert 0 < record["recall"]["image"]["recall@10"] <= 1
    appended = publish(tmp_path / "more", [50], seed=50)
    run(tmp_path / "more", tmp_path / "memory")
    again = memory.append()
    found = again.search(vectors=appended["image"][:3], k=100, nprobe=16, refine=10)
    assert found.ids[:, 0].tolist() == [(3 << 32) | row for row in range(3)]


@pytest.mark.parametrize("purge", [False, True], ids=["deleted", "purged"])
def test_deleted_rows_are_not_adopted(tmp_path: Path, purge: bool) -> None:
    vectors = publish(tmp_path / "laion", [300, 300])["image"]
    published_index(tmp_path / "image.index", vectors, "IVF4,Flat", False)
    run(tmp_path / "laion", tmp_path / "memory")
    gone = [*range(200), (1 << 32) + 299]
    memory = Memory.open(tmp_path / "memory").delete(ids=gone)
    if purge:
        memory.compact(purge=True)
    adopt(
        str(tmp_path / "memory"), str(tmp_path / "laion"), tmp_path / "image.index", keys="image", runner=LocalRunner()
    )
    memory = Memory.open(tmp_path / "memory")
    folder = memory.snapshot.indexes["image"].index
    assert memory.index("image").n_rows == 600 - 201
    assert not np.isin(np.load(tmp_path / "memory" / folder / "held_out.npy"), gone).any()
    assert memory.tuning("image")["sides"]["image"]["recall@10"] == 1
    snapshot = memory.snapshot
    assert memory.compact().snapshot == snapshot  # there is nothing to take out


def test_indexes_that_cannot_be_adopted_say_why(tmp_path: Path) -> None:
    vectors = publish(tmp_path / "laion", [700])["image"]
    run(tmp_path / "laion", tmp_path / "memory")

    def refuse(match: str, path: Path, kind: type[Exception] = IndexBuildError) -> None:
        with pytest.raises(kind, match=match):
            adopt(str(tmp_path / "memory"), str(tmp_path / "laion"), path, keys="image", runner=LocalRunner())

    refuse("no index at", tmp_path / "nowhere", UsageError)
    refuse("lacks populated.index", tmp_path / "laion", UsageError)
    (tmp_path / "noise").write_bytes(b"noise" * 99)
    refuse("cannot be read as a faiss index", tmp_path / "noise")
    published_index(tmp_path / "short", vectors[:600], "IVF4,Flat", False)
    refuse("600 vectors of width 192, the memory 700", tmp_path / "short")
    published_index(tmp_path / "flat", vectors, "Flat", False)
    refuse("not an IVF index", tmp_path / "flat")
    published_index(tmp_path / "fs", vectors, "IVF4,PQ16x4fs", False)
    refuse("packed", tmp_path / "fs")
    distance = faiss.index_factory(D, "IVF4,Flat", faiss.METRIC_L2)
    distance.train(vectors)
    distance.add(vectors)
    faiss.write_index(distance, str(tmp_path / "l2"))
    refuse("by distance", tmp_path / "l2")
