"""A memory from a stranger: records that name files elsewhere, fields of other types, indexes that do not fit."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

import memory_builder as mb
from memory_builder.ann.parts import write_faiss
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.snapshots import read_snapshot
from memory_builder.errors import CorruptMemoryError, MemoryBuilderError, StorageFullError
from memory_builder.export.faiss_ondisk import merge
from memory_builder.export.tables import read_hits
from memory_builder.indexing.config import IndexConfig
from memory_builder.maintenance.append import append
from memory_builder.maintenance.compact import compact
from memory_builder.maintenance.delete import delete
from memory_builder.maintenance.info import read_info
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.storage.formats import npy_bytes
from memory_builder.storage.store import Store, sha256

D = 8
RUNNER = LocalRunner()
VICTIMS = (
    "parts/thesis.docx",
    "parts/00000-00000.faiss",
    "parts/00000-00000.json",
    "keep.json",
    "9.npy",
    "trained.json",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_memory, clustered) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "memory"
    store = write_memory(root, *clustered(300, D, 0), shard_rows=100)
    config = IndexConfig(index_key="IVF4,Flat", part_rows=100)
    mb.index(store, keys=("image", "text"), config=config, runner=RUNNER)
    delete(store, ids=[1, 2])
    return root


@pytest.fixture
def memory(made, tmp_path) -> Store:
    shutil.copytree(made, tmp_path / "memory")
    return Store(tmp_path / "memory")


@pytest.fixture(autouse=True)
def victim(tmp_path) -> Iterator[Path]:
    """A folder beside the memory, of which nothing may change."""
    folder = tmp_path / "victim"
    for name in VICTIMS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine {name}")
        os.utime(folder / name, (1.0, 1.0))
    yield folder
    there = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert there == {name: f"mine {name}" for name in VICTIMS}


def change(store: Store, path: str, change_fields: Any) -> None:
    fields = json.loads(store.read(path))
    change_fields(fields)
    store.put(path, json.dumps(fields).encode())


def use(store: Store) -> list[str]:
    """What every command does; the messages of its errors, which must all be ours."""
    told = []
    for step in (
        lambda: Memory.open(store.root).search(vectors=np.eye(D)[:2], k=3, keys="image"),
        lambda: Memory.open(store.root).search(vectors=np.eye(D)[:2], k=3, keys="text"),
        lambda: Memory.open(store.root).metadata([0, 5]),
        lambda: read_info(store),
        lambda: verify(store, RUNNER),
        lambda: merge(store, "image", runner=RUNNER),
        lambda: delete(store, ids=[7]),
        lambda: append(store, runner=RUNNER),
        lambda: compact(store, runner=RUNNER),
        lambda: compact(store, runner=RUNNER, purge=True),
    ):
        try:
            step()
        except MemoryBuilderError as error:
            told.append(str(error))
    return told


def newest(store: Store) -> str:
    return f"snapshots/{read_snapshot(store).number}.json"


ELSEWHERE = [
    "../victim",
    "index/../../victim",
    "{victim}",
    "index/..",
    "/",
    "",
    ".",
    "INDEX/AB",
    "index/ab/../../../victim",
]


@pytest.mark.parametrize("index", ELSEWHERE)
def test_an_index_elsewhere_is_neither_read_nor_compacted(memory, victim, index, capsys):
    def elsewhere(fields):
        fields["indexes"]["image"]["index"] = index.replace("{victim}", str(victim))

    path = newest(memory)
    change(memory, path, elsewhere)
    use(memory)
    assert (
        f"{memory.root}/{path} is damaged (indexes.image.index: String should match pattern" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["../../../../victim/parts/00000-00000", "thesis", "0-0", "00000-00000\n"])
def test_a_part_elsewhere_is_not_opened(memory, name, capsys):
    path = newest(memory)
    change(memory, path, lambda fields: fields["indexes"]["image"].update(segments=[[name]]))
    use(memory)
    assert f"{path} is damaged (indexes.image.segments.0.0: String should match" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["tombstones", "tuning"])
@pytest.mark.parametrize("name", ["../victim/9.npy", "/etc/passwd", "tombstones/../../victim/9.npy"])
def test_tombstones_and_settings_elsewhere_are_not_opened(memory, field, name, capsys):
    def elsewhere(fields):
        if field == "tombstones":
            fields["tombstones"] = name
        else:
            fields["indexes"]["image"]["tuning"] = name

    change(memory, newest(memory), elsewhere)
    use(memory)
    assert "is damaged" in capsys.readouterr().err


def test_a_shard_record_names_the_files_of_its_own_shard_alone(memory):
    memory.remove("manifest.parquet")
    for name in ("../victim/keep.json", "/etc/passwd", "img_emb/img_emb_00001.npy", "plan.parquet"):
        change(memory, "commits/00000.json", lambda fields, name=name: fields["checksums"].update({name: "0" * 64}))
        told = use(memory)
        assert all("commits/00000.json is damaged (checksums" in one for one in told if "image" not in one)
        assert "commits/00000.json" in {problem.file for problem in verify(memory, RUNNER)}
        change(memory, "commits/00000.json", lambda fields, name=name: fields["checksums"].pop(name))
    assert use(memory) == []


def test_the_folded_records_are_held_to_the_same(memory, capsys):
    table = pq.read_table(memory.full("manifest.parquet"))
    checksums = table["checksums"].to_pylist()
    checksums[0] = json.dumps({"../victim/keep.json": "0" * 64})
    at = table.schema.get_field_index("checksums")
    pq.write_table(table.set_column(at, table.schema.field(at), [checksums]), memory.full("manifest.parquet"))
    assert use(memory) == []
    assert "manifest.parquet is damaged (checksums" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["index/{index}/parts", "tombstones", "snapshots", ".tmp", "img_emb", "purges"])
def test_nothing_is_written_or_removed_through_a_link_that_leads_out(memory, tmp_path, folder):
    index = read_snapshot(memory).indexes["image"].index.partition("/")[2]
    place = Path(memory.full(folder.replace("{index}", index)))
    outside = tmp_path / "outside"
    shutil.move(place, outside) if place.exists() else outside.mkdir()
    place.symlink_to(outside)
    (outside / "00007-00007.faiss").write_text("mine")
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    assert any("a link to" in one for one in use(memory)) or folder == "purges"
    if folder != "purges":
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


JUNK: list[Any] = [7, "x", None, True, [], {}, [[]], -1, 1 << 70, 1.5, {"a": {"b": [None]}}, float("nan")]


@pytest.mark.parametrize("junk", JUNK, ids=str)
def test_fields_of_another_type_are_told_as_damage(memory, junk, capsys):
    path = newest(memory)
    sound = memory.read(path)
    for place in (["segments"], ["n_rows"], ["index"], ["tuning"]):
        change(memory, path, lambda fields, place=place: fields["indexes"]["image"].update({place[0]: junk}))
        use_readers(memory)
        memory.put(path, sound)
    for field in ("number", "manifest_version", "indexes", "tombstones", "written_s", "format_version"):
        change(memory, path, lambda fields, field=field: fields.update({field: junk}))
        use_readers(memory)
        memory.put(path, sound)
    capsys.readouterr()


def use_readers(store: Store) -> None:
    for step in (lambda: read_info(store), lambda: verify(store, RUNNER), lambda: Memory.open(store.root)):
        try:
            step()
        except MemoryBuilderError:
            continue


def test_a_part_of_another_width_metric_or_kind_is_refused_before_faiss_meets_it(memory):
    view = read_snapshot(memory).indexes["image"]
    path = f"{view.index}/parts/{view.parts[0]}.faiss"
    sound = faiss.read_index(memory.full(path))
    vectors = np.random.default_rng(0).standard_normal((sound.ntotal, 2 * D)).astype(np.float32)

    def flat(index: Any, some: Any) -> Any:
        index = faiss.IndexIDMap2(index)
        index.add_with_ids(some, np.arange(len(some)))
        return index

    others = {
        "width": flat(faiss.IndexFlatIP(2 * D), vectors),
        "metric": flat(faiss.IndexFlatL2(D), vectors[:, :D].copy()),
        "kind": flat(faiss.IndexFlatIP(D), vectors[:, :D].copy()),
    }
    for other in others.values():
        size, digest = write_faiss(memory, path, other)
        record = path.replace(".faiss", ".json")
        change(memory, record, lambda fields, size=size, digest=digest: fields.update(bytes=size, sha256=digest))
        with pytest.raises(CorruptMemoryError, match="is not a part of this index"):
            Memory.open(memory.root).search(vectors=np.eye(D)[:1], k=3)


def test_a_quantizer_of_another_width_is_told_as_damage(memory):
    view = read_snapshot(memory).indexes["image"]
    quantizer = faiss.index_factory(2 * D, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    quantizer.train(np.random.default_rng(0).standard_normal((200, 2 * D)).astype(np.float32))
    _, digest = write_faiss(memory, f"{view.index}/trained.faiss", quantizer)
    change(memory, f"{view.index}/trained.json", lambda fields: fields.update(sha256=digest))
    for name in view.parts:
        change(memory, f"{view.index}/parts/{name}.json", lambda fields: fields.update(quantizer_sha256=digest))
    with pytest.raises(CorruptMemoryError, match="is not a part of this index"):
        Memory.open(memory.root).search(vectors=np.eye(D)[:1], k=3)


def test_row_ids_that_no_row_has_are_told_as_damage(memory):
    view = read_snapshot(memory).indexes["image"]
    path = f"{view.index}/parts/{view.parts[0]}.faiss"
    index = faiss.clone_index(faiss.read_index(memory.full(f"{view.index}/trained.faiss")))
    n = json.loads(memory.read(path.replace(".faiss", ".json")))["n_rows"]
    index.add_with_ids(np.random.default_rng(0).standard_normal((n, D)).astype(np.float32), np.arange(n) + (77 << 32))
    size, digest = write_faiss(memory, path, index)
    change(memory, path.replace(".faiss", ".json"), lambda fields: fields.update(bytes=size, sha256=digest))
    change(memory, newest(memory), lambda fields: fields.update(tombstones=None, tombstones_sha256=None))
    with pytest.raises(CorruptMemoryError, match="names rows that the memory does not have"):
        Memory.open(memory.root).search(vectors=np.eye(D)[:2], k=50, nprobe=4)


@pytest.mark.parametrize("device", ["/dev/full"])
def test_a_disk_that_fills_inside_faiss_is_told_as_such(tmp_path, monkeypatch, device):
    store = Store(tmp_path)
    monkeypatch.setattr(store, "_temporary", lambda: tmp_path / "full")
    os.symlink(device, tmp_path / "full")
    index = faiss.index_factory(D, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(np.zeros((50_000, D), np.float32))
    with pytest.raises(StorageFullError, match=r"no space to write .*/index/part\.faiss \(No space left on device\)"):
        write_faiss(store, "index/part.faiss", index)


def test_deleted_rows_that_no_row_is_are_told_as_damage(memory):
    data = npy_bytes(np.array([1, 2, 77 << 32], np.int64))
    memory.put("tombstones/9.npy", data)
    named = {"tombstones": "tombstones/9.npy", "tombstones_sha256": sha256(data)}
    change(memory, newest(memory), lambda fields: fields.update(named))
    for purge in (False, True):
        with pytest.raises(CorruptMemoryError, match=r"tombstones/9\.npy names rows that the memory does not have"):
            compact(memory, runner=RUNNER, purge=purge)


HITS = {
    "a path": '{"hits": "/etc/passwd"}',
    "a text for an id": '{"hits": [{"id": "../x"}]}',
    "no object": "[1, 2]",
    "null": "null",
    "huge": '{"hits": [{"id": 1' + "0" * 400 + "}]}",
    "not finite": '{"hits": [{"id": NaN}]}',
    "deep": "[" * 100_000,
    "bytes": "\udcff",
}


@pytest.mark.parametrize("kind", HITS)
def test_hits_of_a_stranger_are_refused(tmp_path, kind):
    path = tmp_path / "hits.jsonl"
    path.write_text(HITS[kind], errors="surrogateescape")
    with pytest.raises(MemoryBuilderError, match="--hits"):
        read_hits(path)
