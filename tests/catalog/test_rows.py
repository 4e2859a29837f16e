"""Any row is found by its id: vector, caption, metadata, in the order asked for, from any filesystem."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from memory_builder.base.types import NO_ROW, row_ids, split_ids
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import MAPPED_FILES, Rows, open_vectors, present_rows
from memory_builder.errors import CorruptMemoryError, UsageError
from memory_builder.storage.formats import arrow_bytes
from memory_builder.storage.store import Store

if TYPE_CHECKING:
    from helpers.s3 import S3

N, D, SHARD_ROWS = 250, 16, 60
Write = Callable[..., Store]


@pytest.fixture(scope="module")
def sides(clustered: Callable[..., Any]) -> Any:
    images, texts = clustered(N, D, seed=0)
    images[5] = texts[7] = 0  # pairs that lack a side
    return images, texts


@pytest.fixture(params=["local", "s3", "s3 by ranges"])
def rows(
    request: pytest.FixtureRequest, write_memory: Write, sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Rows:
    if request.param == "s3 by ranges":
        monkeypatch.setattr("memory_builder.catalog.rows.REQUEST_BYTES", 0)
    if request.param == "local":
        store = write_memory(tmp_path / "memory", *sides, shard_rows=SHARD_ROWS)
    else:
        s3: S3 = request.getfixturevalue("s3")
        store = write_memory(s3.url, *sides, shard_rows=SHARD_ROWS, **s3.options)
    return open_rows(store)


def open_rows(store: Store) -> Rows:
    return Rows(store, Manifest.read_folded(store).commits, D)


def ids_of(positions: np.ndarray) -> np.ndarray:
    return (positions // SHARD_ROWS << 32) | positions % SHARD_ROWS


def test_an_id_is_shard_and_row() -> None:
    ids = row_ids(2**21 - 1, np.array([0, 7, 2**32 - 1]))
    assert ids.dtype == np.int64
    assert ids.max() < 2**53
    ordinals, rows = split_ids(ids)
    assert ordinals.tolist() == [2**21 - 1] * 3
    assert rows.tolist() == [0, 7, 2**32 - 1]


def test_vectors_come_in_the_order_asked_for(rows: Rows, sides: Any) -> None:
    positions = np.random.default_rng(0).integers(0, N, 100)  # some twice
    ids = ids_of(positions)
    ids[::9] = NO_ROW
    for keys, side in zip(("image", "text"), sides, strict=True):
        found = rows.vectors(ids, keys)
        expected = side[positions].astype(np.float16).astype(np.float32)
        expected[::9] = 0
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_captions_and_metadata_come_in_the_order_asked_for(rows: Rows) -> None:
    positions = np.random.default_rng(1).integers(0, N, 40)
    ids = ids_of(positions)
    ids[::7] = NO_ROW
    blank = set(range(0, 40, 7))
    keys = [None if i in blank else f"{p:08d}" for i, p in enumerate(positions)]
    captions = [None if i in blank or p == 7 else f"caption {p}" for i, p in enumerate(positions)]
    table = rows.table(ids)
    assert table.column_names == ["id", "key", "caption", "url"]
    assert table["id"].to_pylist() == ids.tolist()
    assert table["key"].to_pylist() == keys
    assert table["caption"].to_pylist() == captions
    assert rows.table(ids, ["url", "key"]).column_names == ["id", "url", "key"]
    assert rows.table(ids, ["key"])["key"].to_pylist() == keys
    metadata = rows.metadata(ids)
    assert metadata["key"].to_pylist() == keys
    assert metadata["has_image"].to_pylist() == [None if i in blank else p != 5 for i, p in enumerate(positions)]
    some = rows.metadata(ids, ["caption", "key"])
    assert some.column_names == ["caption", "key"]
    assert some["caption"].to_pylist() == captions


def test_no_ids_and_blank_ids_give_tables_of_the_same_columns(rows: Rows) -> None:
    for ids in (np.zeros(0, np.int64), np.full(3, NO_ROW)):
        assert rows.vectors(ids, "image").tolist() == [[0] * D] * len(ids)
        for table in (rows.table(ids), rows.metadata(ids)):
            assert table.num_rows == len(ids)
            assert table["caption"].to_pylist() == [None] * len(ids)
        assert rows.metadata(ids, ["key"]).column_names == ["key"]


def test_an_id_that_is_not_there_is_an_error_that_names_it(rows: Rows) -> None:
    last = int(ids_of(np.array([N - 1]))[0])
    for wrong in (last + 1, SHARD_ROWS, 99 << 32, -2, -(1 << 40), 2**62):
        for ask in (rows.table, rows.metadata, lambda ids: rows.vectors(ids, "image")):
            with pytest.raises(UsageError, match=f"row id {wrong} is not in"):
                ask(np.array([0, wrong, -1]))
    assert rows.table(np.array([last]))["key"].to_pylist() == [f"{N - 1:08d}"]


def test_rows_are_found_by_their_keys_beside_a_shard_without_rows(rows: Rows) -> None:
    name = "rows/rows_00001.arrow"
    rows.store.put(name, arrow_bytes(rows.table(np.zeros(0, np.int64)).drop_columns("id")))
    ids, unknown = rows.with_keys(["00000003", f"{N - 1:08d}", "nobody"])
    assert ids.tolist() == ids_of(np.array([3, N - 1])).tolist()
    assert unknown == ["nobody"]


def test_an_unknown_column_is_an_error_that_names_those_there_are(rows: Rows) -> None:
    with pytest.raises(UsageError, match=r"no column colour .* it has key, caption, url, width"):
        rows.metadata(np.array([0]), ["key", "colour"])
    with pytest.raises(UsageError, match=r"no column colour .* it has key, caption, url, width"):
        rows.table(np.array([0]), ["key", "width", "colour"])


def test_a_row_knows_the_shard_it_came_from(rows: Rows) -> None:
    assert rows.source(0) == "/synthetic/000000000.tar"
    assert rows.source(2 << 32) == f"/synthetic/{2 * SHARD_ROWS:09d}.tar"


def test_rows_without_a_side_are_not_present(rows: Rows) -> None:
    commit = rows.commits[0]
    vectors = open_vectors(rows.store, commit, "image", D)
    assert present_rows(commit, vectors, "image").tolist() == [n for n in range(SHARD_ROWS) if n != 5]
    assert present_rows(rows.commits[1], vectors, "image").tolist() == list(range(SHARD_ROWS))


def test_looking_at_many_shards_keeps_few_files_open(
    write_memory: Write, sides: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * MAPPED_FILES < 1024 - 256  # of what a process may usually open
    monkeypatch.setattr("memory_builder.catalog.rows.MAPPED_FILES", 4)
    rows = open_rows(write_memory(tmp_path, *(side[:40] for side in sides), shard_rows=1))
    before = len(os.listdir("/proc/self/fd"))
    ids = np.arange(40) << 32
    assert rows.table(ids)["key"].to_pylist()[-1] == "00000039"
    rows.vectors(ids, "image")
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 4


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "text", "other shape", "other type"])
def test_damaged_vectors_are_named(rows: Rows, damage: str) -> None:
    path = "img_emb/img_emb_00000.npy"
    spoil(rows.store, path, damage)
    with pytest.raises(CorruptMemoryError, match=path):
        open_vectors(rows.store, rows.commits[0], "image", D)


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "text"])
@pytest.mark.parametrize("path", ["rows/rows_00000.arrow", "metadata/metadata_00000.parquet"])
def test_damaged_tables_are_made_up_for_or_refused(
    write_memory: Write, sides: Any, tmp_path: Path, path: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_rows(write_memory(tmp_path, *sides, shard_rows=SHARD_ROWS))
    sound = rows.table(np.array([1])).to_pylist()
    rows = open_rows(rows.store)
    spoil(rows.store, path, damage)
    if path.startswith("rows"):  # the metadata say the same
        assert rows.table(np.array([1])).to_pylist() == sound
        assert f"{path} is damaged" in capsys.readouterr().err
        rows = open_rows(rows.store)
        spoil(rows.store, "metadata/metadata_00000.parquet", "text")
    ask = rows.table if path.startswith("rows") else rows.metadata
    with pytest.raises(CorruptMemoryError, match="metadata/metadata_00000"):
        ask(np.array([0]))
    assert ask(np.array([1 << 32])).num_rows == 1  # other shards are not affected


def spoil(store: Store, path: str, damage: str) -> None:
    from memory_builder.storage.formats import npy_bytes

    data = store.read(path)
    if damage == "missing":
        store.remove(path)
        return
    spoilt = {
        "empty": b"",
        "half": data[: len(data) // 2],
        "text": b"hello" * 100,
        "other shape": npy_bytes(np.zeros((SHARD_ROWS, D - 1), np.float16)),
        "other type": npy_bytes(np.zeros((SHARD_ROWS, D), np.float32)),
    }
    store.put(path, spoilt[damage])
