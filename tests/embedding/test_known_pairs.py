"""A source that gained pairs, or was fetched again, adds what is new; a pair that changed replaces its row."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.tars import good_pairs, pair, picture, tar_bytes
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.plan import REPLACED
from memory_builder.embedding import driver
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import EmbedReport, embed, import_embeddings
from memory_builder.embedding.known_pairs import SHARED_KEY
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.maintenance.repair import repair
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers import linked_pictures, listing, published
from memory_builder.readers.pairs import UNCHANGED_NOTE
from memory_builder.storage.store import Store, sha256

Run = Callable[..., EmbedReport]


@pytest.fixture
def run(tmp_path: Path, model_dir: Path) -> Run:
    """Embeds into one memory; sources are named below tmp_path."""

    def once(*sources: str, retry_rejects: bool = False, **config: Any) -> EmbedReport:
        return embed(
            [str(tmp_path / source) for source in sources],
            str(tmp_path / "memory"),
            encoder=EncoderConfig(model=f"local-dir:{model_dir}"),
            config=EmbedConfig(**config),
            runner=LocalRunner(),
            retry_rejects=retry_rejects,
        )

    return once


def rows(tmp_path: Path) -> dict[str, tuple[str | None, str | None]]:
    """Key → caption and checksum of the picture of every row that is not deleted."""
    memory = Memory.open(tmp_path / "memory")
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    table = memory.metadata(ids, ["key", "caption", "sha256"]).to_pylist()
    assert len({row["key"] for row in table}) == len(table)
    return {row["key"]: (row["caption"], row["sha256"]) for row in table}


def keys(tmp_path: Path) -> list[str]:
    """The key of every row that is not deleted."""
    memory = Memory.open(tmp_path / "memory")
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    return [row["key"] for row in memory.metadata(ids, ["key"]).to_pylist()]


def touch(path: Path) -> None:
    """The same bytes, written at another time, in another file."""
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    path.unlink()
    copy.rename(path)
    os.utime(path, (1_700_000_000, 1_700_000_000))


def write(tmp_path: Path, kind: str, texts: dict[str, str]) -> None:
    """A source of this kind that holds these captions, each with a picture of its own."""
    pictures = {key: picture(sum(key.encode())) for key in texts}
    (tmp_path / "p").mkdir(exist_ok=True)
    for key, text in texts.items():
        (tmp_path / "p" / f"{key}.png").write_bytes(pictures[key])
        if kind == "folder":
            (tmp_path / "p" / f"{key}.txt").write_text(text)
    if kind == "tar":
        members = [
            m for key, text in texts.items() for m in ((f"{key}.png", pictures[key]), (f"{key}.txt", text.encode()))
        ]
        (tmp_path / "s.tar").write_bytes(tar_bytes(members))
    if kind == "csv":
        lines = [f"{key},p/{key}.png,{text}\n" for key, text in texts.items()]
        (tmp_path / "s.csv").write_text("key,image,caption\n" + "".join(lines))
    if kind == "parquet":
        columns = {"key": list(texts), "image": [pictures[key] for key in texts], "caption": list(texts.values())}
        pq.write_table(pa.table(columns), tmp_path / "s.parquet")


SOURCES = {"folder": "p", "tar": "s.tar", "csv": "s.csv", "parquet": "s.parquet"}


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_new_is_added_and_what_changed_replaces(tmp_path: Path, run: Run, kind: str) -> None:
    source = SOURCES[kind]
    write(tmp_path, kind, {"a": "one", "b": "two", "c": "three"})
    assert run(source).n_rows == 3
    before = rows(tmp_path)

    write(tmp_path, kind, {"a": "one", "b": "two", "c": "three", "d": "four"})
    report = run(source)
    assert (report.n_rows, report.notes) == (4, {UNCHANGED_NOTE: 3})
    assert rows(tmp_path).keys() == {"a", "b", "c", "d"}
    assert rows(tmp_path) | before == rows(tmp_path)

    write(tmp_path, kind, {"a": "one", "b": "another two", "c": "three", "d": "four"})
    report = run(source)
    assert report.notes == {UNCHANGED_NOTE: 3, REPLACED: 1}
    assert {key: caption for key, (caption, _) in rows(tmp_path).items()} == {
        "a": "one",
        "b": "another two",
        "c": "three",
        "d": "four",
    }
    assert len(Memory.open(tmp_path / "memory")) == 4
    assert run(source).n_embedded == 0
    assert verify(Store(tmp_path / "memory"), LocalRunner()) == []


def test_a_changed_picture_replaces_the_one_of_its_name(tmp_path: Path, run: Run) -> None:
    for kind in ("folder", "csv"):
        write(tmp_path, kind, {"a": "one", "b": "two"})
    run("s.csv")
    (tmp_path / "p" / "b.png").write_bytes(picture(99))
    touch(tmp_path / "s.csv")  # its own bytes are the same
    assert run("s.csv").notes == {UNCHANGED_NOTE: 1, REPLACED: 1}
    assert len(rows(tmp_path)) == 2


def listed(tmp_path: Path, lines: list[tuple[str, str]], kind: str) -> str:
    """A table without keys of (picture, caption): its rows have their numbers for keys."""
    for name, _ in lines:
        (tmp_path / f"{name}.png").write_bytes(picture(sum(name.encode())))
    if kind == "csv":
        text = "".join(f"{name}.png,{caption}\n" for name, caption in lines)
        (tmp_path / "s.csv").write_text("image,caption\n" + text)
        return "s.csv"
    pictures = [picture(sum(name.encode())) for name, _ in lines]
    pq.write_table(pa.table({"image": pictures, "caption": [caption for _, caption in lines]}), tmp_path / "s.parquet")
    return "s.parquet"


def live(tmp_path: Path) -> list[tuple[str, str]]:
    """(picture, caption) of every row that is not deleted, by the checksum of the picture."""
    memory = Memory.open(tmp_path / "memory")
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    names = {sha256(picture(sum(name.encode()))): name for name in "abcdef"}
    return sorted((names[row["sha256"]], row["caption"]) for row in memory.metadata(ids).to_pylist())


CHANGES: dict[str, tuple[list[tuple[str, str]], int]] = {
    # what the table of a 1, b 2, c 3 becomes, and how many rows are embedded
    "a row at the end": ([("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")], 1),
    "a row in between": ([("a", "1"), ("d", "4"), ("b", "2"), ("c", "3")], 1),
    "a row at the beginning": ([("d", "4"), ("a", "1"), ("b", "2"), ("c", "3")], 1),
    "a row gone from the beginning": ([("b", "2"), ("c", "3")], 0),
    "sorted otherwise": ([("c", "3"), ("b", "2"), ("a", "1")], 0),
    "another caption": ([("a", "1"), ("b", "other"), ("c", "3")], 1),
    "a second caption behind": ([("a", "1"), ("a", "one"), ("b", "2"), ("c", "3")], 1),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_without_keys_are_known_by_what_they_hold(tmp_path: Path, run: Run, kind: str, name: str) -> None:
    """A line that was put in between gave every line behind it another number."""
    run(listed(tmp_path, [("a", "1"), ("b", "2"), ("c", "3")], kind))
    lines, n_embedded = CHANGES[name]
    assert run(listed(tmp_path, lines, kind)).n_rows == 3 + n_embedded
    assert live(tmp_path) == sorted({*lines, ("a", "1")} if "gone" in name else lines)  # what is gone stays


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_second_caption_before_the_first_loses_neither(tmp_path: Path, run: Run, kind: str) -> None:
    run(listed(tmp_path, [("a", "1"), ("b", "2")], kind))
    run(listed(tmp_path, [("a", "one"), ("a", "1"), ("b", "2")], kind))
    assert live(tmp_path) == [("a", "1"), ("a", "one"), ("b", "2")]


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_bytes_fetched_again_add_nothing(tmp_path: Path, run: Run, kind: str) -> None:
    source = SOURCES[kind]
    write(tmp_path, kind, {"a": "one", "b": "two"})
    run(source, columns=("n:int",))
    before = rows(tmp_path)
    for path in [*(tmp_path / "p").iterdir(), *tmp_path.glob("s.*")]:
        touch(path)
    report = run(source, columns=("n:int",))
    assert (report.n_rows, report.notes[UNCHANGED_NOTE]) == (2, 2)
    assert rows(tmp_path) == before


def test_what_was_deleted_stays_so_though_its_source_has_it_still(tmp_path: Path, run: Run) -> None:
    write(tmp_path, "folder", {"a": "one", "b": "two"})
    run("p")
    Memory.open(tmp_path / "memory").delete(keys=["a"])
    write(tmp_path, "folder", {"a": "one", "b": "two", "c": "three"})
    run("p")
    assert rows(tmp_path).keys() == {"b", "c"}


def test_a_change_that_was_cut_short_is_made_by_the_same_command(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the new rows are committed and the old ones not deleted yet."""

    write(tmp_path, "folder", {"a": "one", "b": "two"})
    run("p")
    write(tmp_path, "folder", {"a": "other", "b": "two"})
    with monkeypatch.context() as patch:
        patch.setattr(driver, "delete_replaced", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("p")
    run("p")
    assert {key: caption for key, (caption, _) in rows(tmp_path).items()} == {"a": "other", "b": "two"}


def test_what_is_again_what_it_was_replaces_too(tmp_path: Path, run: Run) -> None:
    (tmp_path / "s.tar").write_bytes(tar_bytes(good_pairs(["a"])))
    (tmp_path / "first.tar").write_bytes((tmp_path / "s.tar").read_bytes())
    os.utime(tmp_path / "s.tar", (1, 1))
    run("s.tar")
    first = rows(tmp_path)
    (tmp_path / "s.tar").write_bytes(tar_bytes([("a.png", picture(0)), ("a.txt", b"changed")]))
    run("s.tar")
    assert rows(tmp_path) != first
    shutil.copy(tmp_path / "first.tar", tmp_path / "s.tar")
    os.utime(tmp_path / "s.tar", (1, 1))
    run("s.tar")
    assert rows(tmp_path) == first


def test_a_folder_reached_by_a_link_is_the_same_source(tmp_path: Path, run: Run) -> None:
    write(tmp_path, "folder", {"a": "one"})
    write(tmp_path, "tar", {"b": "two"})
    run("p", "s.tar")
    (tmp_path / "linked").symlink_to(tmp_path)
    assert run("linked/p", "linked/s.tar").n_embedded == 0


def test_rows_that_name_addresses_are_not_fetched_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(target: Any) -> bytes:
        fetched.append(target.uri)
        return picture(len(target.uri))

    monkeypatch.setattr(linked_pictures, "fetch_target", fetch)
    urls = [f"https://example.org/{i}.png" for i in range(3)]
    (tmp_path / "s.csv").write_text("url,caption\n" + "".join(f"{url},text\n" for url in urls[:2]))
    run("s.csv")
    (tmp_path / "s.csv").write_text("url,caption\n" + "".join(f"{url},text\n" for url in urls))
    fetched.clear()
    assert run("s.csv").n_rows == 3
    assert fetched == [urls[2]]


def test_a_purged_pair_leaves_no_address_and_does_not_come_back(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linked_pictures, "fetch_target", lambda target: picture(len(target.uri)))
    lines = [f"https://example.org/{'secret' * i}.png,text {i}\n" for i in range(3)]
    (tmp_path / "s.csv").write_text("url,caption\n" + "".join(lines[:2]))
    run("s.csv")
    index(str(tmp_path / "memory"), keys=("image",), config=IndexConfig(), runner=LocalRunner())
    Memory.open(tmp_path / "memory").delete(ids=[1]).compact(purge=True)
    shard = pq.ParquetFile(tmp_path / "memory" / "metadata" / "metadata_00000.parquet").read().to_pylist()
    assert [(row["member"], row["url"]) for row in shard] == [(lines[0].split(",")[0],) * 2, (None, None)]
    (tmp_path / "s.csv").write_text("url,caption\n" + "".join(lines))
    assert run("s.csv").notes[UNCHANGED_NOTE] == 2
    assert {caption for caption, _ in rows(tmp_path).values()} == {"text 0", "text 2"}


def publish(root: Path, name: int, n: int, seed: int = 0) -> None:
    for folder in ("img_emb", "metadata"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    vectors = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    np.save(root / "img_emb" / f"img_emb_{name}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    table = pa.table({"image_path": [f"{name}/{i}" for i in range(n)], "caption": [f"row {i}" for i in range(n)]})
    pq.write_table(table, root / "metadata" / f"metadata_{name}.parquet")


def test_an_import_that_goes_on_copies_what_is_new_alone(tmp_path: Path) -> None:
    root = tmp_path / "laion"

    def run_import() -> EmbedReport:
        return import_embeddings(
            str(root), str(tmp_path / "memory"), encoder=None, config=EmbedConfig(), runner=LocalRunner()
        )

    publish(root, 0, 5)
    publish(root, 1, 4)
    run_import()
    touch(root / "img_emb" / "img_emb_0.npy")
    publish(root, 10, 3)
    report = run_import()
    assert (report.n_rows, report.notes[UNCHANGED_NOTE]) == (12, 5)
    publish(root, 1, 6, seed=9)  # other vectors, and more of them
    assert run_import().notes[REPLACED] == 6
    memory = Memory.open(tmp_path / "memory")
    assert len(memory) == 14
    assert len(rows(tmp_path)) == 14


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_shard_that_holds_what_was_new_is_repaired(tmp_path: Path, run: Run, kind: str) -> None:
    write(tmp_path, kind, {"a": "one", "b": "two"})
    run(SOURCES[kind])
    write(tmp_path, kind, {"a": "one", "b": "other", "c": "three"})
    run(SOURCES[kind])
    before = rows(tmp_path)
    (tmp_path / "memory" / "img_emb" / "img_emb_00001.npy").unlink()
    (tmp_path / "memory" / "metadata" / "metadata_00001.parquet").write_bytes(b"")
    repaired = repair(Store(tmp_path / "memory"), LocalRunner())
    assert (len(repaired.files), repaired.problems) == (2, [])
    assert rows(tmp_path) == before


def test_a_pair_that_was_rejected_is_tried_again_when_its_source_changed(tmp_path: Path, run: Run) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"no picture")
    (tmp_path / "p" / "a.txt").write_text("a")
    assert run("p").n_rejects == 1
    buffer = io.BytesIO(picture(5))
    (tmp_path / "p" / "a.png").write_bytes(buffer.getvalue())
    assert run("p").n_rows == 1
    assert rows(tmp_path).keys() == {"a"}


def test_a_source_that_is_again_what_it_was_does_not_double_what_never_changed(tmp_path: Path, run: Run) -> None:
    first = tar_bytes(good_pairs(["a", "b"]))
    for content in (first, tar_bytes([*pair("a", 9), *pair("b", 1)]), first):
        (tmp_path / "s.tar").write_bytes(content)
        os.utime(tmp_path / "s.tar", (1, len(content) if content is first else 2))
        run("s.tar")
    assert {key: digest for key, (_, digest) in rows(tmp_path).items()} == {
        "a": sha256(picture(0)),
        "b": sha256(picture(1)),
    }


def test_a_second_picture_of_a_stem_does_not_double_the_first(tmp_path: Path, run: Run) -> None:
    """Its key gains a suffix by that, and loses it when the other goes."""
    write(tmp_path, "folder", {"a": "one", "b": "two"})
    run("p")
    first = (tmp_path / "p" / "a.png").read_bytes()
    (tmp_path / "p" / "a.jpg").write_bytes(picture(7, kind="JPEG"))
    assert run("p").notes == {UNCHANGED_NOTE: 2}
    assert rows(tmp_path).keys() == {"a", "a.jpg", "b"}
    (tmp_path / "p" / "a.png").write_bytes(picture(8))
    assert run("p").notes == {UNCHANGED_NOTE: 2, REPLACED: 1}
    assert rows(tmp_path).keys() == {"a.png", "a.jpg", "b"}
    (tmp_path / "p" / "a.jpg").unlink()
    run("p")
    assert rows(tmp_path).keys() == {"a.png", "a.jpg", "b"}
    assert rows(tmp_path)["a.png"][1] == sha256(picture(8))
    (tmp_path / "p" / "a.png").write_bytes(first)  # which was a row once, and is no more
    run("p")
    assert rows(tmp_path).keys() == {"a", "a.jpg", "b"}
    assert rows(tmp_path)["a"][1] == sha256(first)


def test_pairs_of_one_key_in_several_pieces_are_neither_lost_nor_doubled(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAIRS_A_SHARD", 2)
    write(tmp_path, "folder", {"a": "one", "b": "two", "c": "three", "d": "four"})
    lines = ["a,p/a.png,one", "l,p/b.png,two", "a,p/c.png,three", "n,p/d.png,four"]

    def captions() -> list[str]:
        (tmp_path / "s.csv").write_text("\n".join(["key,image,caption", *lines, ""]))
        notes.append(run("s.csv").notes)
        memory = Memory.open(tmp_path / "memory")
        ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
        return sorted(row["caption"] for row in memory.metadata(ids, ["caption"]).to_pylist())

    notes: list[dict[str, int]] = []
    assert captions() == ["four", "one", "three", "two"]
    lines.append("o,p/a.png,five")
    assert captions() == ["five", "four", "one", "three", "two"]
    lines[0] = "a,p/a.png,other"
    assert captions() == ["five", "four", "one", "other", "three", "two"]
    assert notes[1:] == [{UNCHANGED_NOTE: 4}, {UNCHANGED_NOTE: 4, SHARED_KEY: 1}]


def test_a_link_to_a_shard_is_the_same_source(tmp_path: Path, run: Run) -> None:
    write(tmp_path, "tar", {"b": "two"})
    run("s.tar")
    (tmp_path / "latest.tar").symlink_to(tmp_path / "s.tar")
    assert run("latest.tar").n_embedded == 0
    assert len(rows(tmp_path)) == 1


def test_a_lance_dataset_of_several_shards_that_grows_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lance = pytest.importorskip("lance")
    monkeypatch.setattr(published, "ROWS_A_SHARD", 4)
    vectors = np.eye(16, dtype=np.float32)

    def append(start: int, stop: int) -> EmbedReport:
        flat = pa.array(vectors[start:stop].ravel())
        columns = {
            "key": [f"k{i}" for i in range(start, stop)],
            "vector": pa.FixedSizeListArray.from_arrays(flat, 16),
        }
        lance.write_dataset(pa.table(columns), str(tmp_path / "d.lance"), mode="append" if start else "create")
        return import_embeddings(
            str(tmp_path / "d.lance"),
            str(tmp_path / "memory"),
            encoder=None,
            config=EmbedConfig(),
            runner=LocalRunner(),
        )

    append(0, 8)
    assert append(8, 10).notes[UNCHANGED_NOTE] == 8
    assert append(10, 13).notes[REPLACED] == 4
    assert rows(tmp_path).keys() == {f"k{i}" for i in range(13)}


@pytest.mark.slow
def test_pairs_that_were_rejected_are_tried_again_in_the_newest_state_alone(tmp_path: Path, run: Run) -> None:
    """Whichever comes first: the second try at what was rejected, or the source that grew."""
    for name, first in (("retried", True), ("grown", False)):
        folder = tmp_path / name / "p"
        folder.mkdir(parents=True)
        for key, content in (("a", picture(1)), ("b", b"no picture"), ("c", b"no picture")):
            (folder / f"{key}.png").write_bytes(content)
            (folder / f"{key}.txt").write_text(key)
        run(f"{name}/p")
        (folder / "b.png").write_bytes(picture(2))
        run(f"{name}/p", retry_rejects=first)
        report = run(f"{name}/p", retry_rejects=not first)
        assert report.reasons == {"not an image": 1}  # c
        (folder / "c.png").write_bytes(picture(3))
        run(f"{name}/p", retry_rejects=True)
        assert run(f"{name}/p").n_rejects == 0
    assert sum(key == "b" for key in keys(tmp_path)) == sum(key == "c" for key in keys(tmp_path)) == 2


def test_a_picture_that_was_broken_for_a_while_is_no_second_row(tmp_path: Path, run: Run) -> None:
    write(tmp_path, "folder", {"a": "one", "b": "two"})
    run("p")
    whole = (tmp_path / "p" / "b.png").read_bytes()
    (tmp_path / "p" / "b.png").write_bytes(b"no picture")
    assert run("p").n_rejects == 1
    (tmp_path / "p" / "b.png").write_bytes(whole)
    assert run("p", retry_rejects=True).notes == {UNCHANGED_NOTE: 1}
    assert run("p").n_rejects == 0
    assert rows(tmp_path).keys() == {"a", "b"}


def test_a_picture_called_like_another_with_a_suffix_is_another(tmp_path: Path, run: Run) -> None:
    write(tmp_path, "folder", {"a": "one", "b": "two"})
    run("p")
    write(tmp_path, "folder", {"a.png": "of a.png.png", "b": "changed"})
    assert run("p").notes == {UNCHANGED_NOTE: 1, REPLACED: 1}
    assert {key: caption for key, (caption, _) in rows(tmp_path).items()} == {
        "a": "one",
        "a.png": "of a.png.png",
        "b": "changed",
    }
