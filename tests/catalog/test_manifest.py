"""The plan only grows, a commit record makes a shard, a snapshot makes a state."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from memory_builder.catalog.commits import Commit, write_commit
from memory_builder.catalog.create_memory import create_memory
from memory_builder.catalog.description import Description, read_description
from memory_builder.catalog.manifest import FORMAT_VERSION, Manifest
from memory_builder.catalog.paths import shard_name
from memory_builder.catalog.plan import extend_plan, read_plan, read_plan_strictly
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_snapshot, write_snapshot
from memory_builder.errors import ConcurrentWriterError, ConfigMismatchError, CorruptMemoryError, UsageError
from memory_builder.maintenance.verify import damaged_records
from memory_builder.memory import Memory
from memory_builder.readers.shard import MAX_ORDINAL, Shard, Source
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store


class CountedFileSystem(MemoryFileSystem):
    """Files in this process behind a protocol of their own, with every call that a remote server would see counted."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    calls: ClassVar[Counter[str]] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("counted://"))

    def ls(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.calls["ls"] += 1
        return super().ls(path, *args, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        self.calls["info"] += 1
        return super().info(path, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.calls["cat_file"] += 1
        return super().cat_file(path, *args, **kwargs)

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.calls["open"] += 1
        return super().open(path, *args, **kwargs)

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.calls["find"] += 1
        return super().find(path, *args, **kwargs)


@pytest.fixture
def counted() -> Iterator[Counter[str]]:
    fsspec.register_implementation("counted", CountedFileSystem, clobber=True)
    CountedFileSystem.calls.clear()
    yield CountedFileSystem.calls
    CountedFileSystem.store.clear()


def described(**config: Any) -> Description:
    config = config or {"a": 1}
    return Description(
        model="m",
        pretrained=None,
        fingerprint="f" * 64,
        d=4,
        columns={},
        config=config,
        config_hash=content_hash(config),
    )


def source(name: str, etag: str = "1") -> Source:
    return Source(uri=f"/in/{name}.tar", bytes=10, etag=etag)


def commit_of(ordinal: int, uri: str = "/in/a.tar", etag: str = "1") -> Commit:
    return Commit(
        ordinal=ordinal,
        uri=uri,
        etag=etag,
        config_hash="0" * 16,
        n_read=12,
        n_written=10,
        n_images=9,
        n_texts=8,
        reasons={"not an image": 1, "no caption": 1},
        partial="breaks off at byte 7: «ends»",
        checksums={f"img_emb/img_emb_{shard_name(ordinal)}.npy": "ab" * 32},
        seconds={"decode": 1.0, "forward": 2.0, "total": 3.5},
    )


def test_sources_are_planned_in_order_behind_those_that_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = extend_plan(store, [source("b"), source("c")])
    assert [(shard.ordinal, shard.uri) for shard in first] == [(0, "/in/b.tar"), (1, "/in/c.tar")]
    second = extend_plan(store, [source("a"), source("c"), source("d")])
    assert second[:2] == first
    assert [shard.uri for shard in second[2:]] == ["/in/a.tar", "/in/d.tar"]
    assert read_plan(store) == second
    written = (tmp_path / "plan.parquet").stat().st_ino
    assert extend_plan(store, [source("d"), source("b")]) == second
    assert (tmp_path / "plan.parquet").stat().st_ino == written  # nothing new, nothing written


def test_a_changed_source_replaces_its_entry_until_that_is_committed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    extend_plan(store, [source("a"), source("b")])
    write_commit(store, commit_of(0, "/in/a.tar"))
    plan = extend_plan(store, [source("a", "2"), source("b", "2")])
    assert [(shard.ordinal, shard.uri, shard.etag) for shard in plan] == [
        (0, "/in/a.tar", "1"),
        (1, "/in/b.tar", "2"),
        (2, "/in/a.tar", "2"),
    ]
    again = extend_plan(store, [source("a", "3"), source("b", "2")])  # the newest entry is the one that counts
    assert [(shard.ordinal, shard.etag) for shard in again] == [(0, "1"), (1, "2"), (2, "3")]
    Manifest.read(store).fold(store)
    write_commit(store, commit_of(2, "/in/a.tar", "3"))
    assert len(extend_plan(store, [source("a", "4")])) == 4
    assert read_plan(store)[0].etag == "1"


def test_a_source_that_is_again_what_it_was_is_not_planned_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for ordinal, etag in enumerate(("1", "2")):
        extend_plan(store, [source("a", etag)])
        write_commit(store, commit_of(ordinal, "/in/a.tar", etag))
    plan = extend_plan(store, [source("a", "1"), source("b")])
    assert [(shard.uri, shard.etag) for shard in plan] == [("/in/a.tar", "1"), ("/in/a.tar", "2"), ("/in/b.tar", "1")]


def test_an_ordinal_fits_a_row_id_that_is_exact_in_javascript() -> None:
    assert Shard(ordinal=MAX_ORDINAL - 1, uri="x", bytes=1, etag="").ordinal << 32 < 1 << 53
    for ordinal in (-1, MAX_ORDINAL):
        with pytest.raises(UsageError, match="at most"):
            Shard(ordinal=ordinal, uri="x", bytes=1, etag="")


def test_shard_names_sort_as_numbers_up_to_a_hundred_thousand() -> None:
    assert [shard_name(n) for n in (0, 42, 99_999, 123_456)] == ["00000", "00042", "99999", "123456"]


def test_a_commit_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    written = write_commit(store, commit_of(7))
    assert written.finished_s > 0
    assert replace(written, finished_s=0.0) == commit_of(7)
    assert Manifest.read(store).commits == {7: written}
    assert Commit.from_json(written.to_json()) == written


def test_folded_and_later_records_read_as_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    written = {n: write_commit(store, commit_of(n)) for n in (3, 1, 100_000)}
    manifest = Manifest.read(store)
    assert (manifest.version, manifest.folded) == (0, frozenset())
    manifest.fold(store)
    assert Manifest.read_folded(store).version == 1
    written[2] = write_commit(store, commit_of(2))
    both = Manifest.read(store)
    assert list(both.commits) == [1, 2, 3, 100_000]
    assert both.folded == {1, 3, 100_000}
    assert both.n_rows == 40
    for ordinal, commit in both.commits.items():
        assert commit == written[ordinal]
    both.fold(store)
    assert Manifest.read_folded(store).commits == both.commits
    assert Manifest.read_folded(store).version == 2


def test_folding_nothing_new_writes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_commit(store, commit_of(0))
    Manifest.read(store).fold(store)
    before = (tmp_path / "manifest.parquet").stat().st_ino
    Manifest.read(store).fold(store)
    assert (tmp_path / "manifest.parquet").stat().st_ino == before


@pytest.mark.slow
@pytest.mark.usefixtures("counted")
def test_opening_a_memory_costs_the_same_for_ten_shards_and_for_ten_thousand() -> None:
    calls = {n: calls_to_open(n) for n in (10, 10_000)}
    assert calls[10] == calls[10_000]
    assert 0 < sum(calls[10].values()) < 15


def calls_to_open(n_shards: int) -> Counter[str]:
    """What opening a folded memory of so many shards asks of the filesystem."""
    store = Store(f"counted://memory-{n_shards}")
    create_memory(store, described())
    for ordinal in range(n_shards):
        store.put(f"commits/{shard_name(ordinal)}.json", commit_of(ordinal, f"/in/{ordinal}.tar").to_json())
    Manifest.read(store).fold(store)
    write_snapshot(store, Snapshot(number=1, manifest_version=1, indexes={}))
    CountedFileSystem.calls.clear()
    memory = Memory.open(f"counted://memory-{n_shards}")
    assert len(memory) == 10 * n_shards
    return Counter(CountedFileSystem.calls)


def test_the_highest_snapshot_is_current(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert read_snapshot(store) == Snapshot(number=0, manifest_version=0, indexes={})
    view = IndexView(index="index/abc", segments=[["00000-00001"], ["00002-00002"]], n_rows=5)
    for number in (1, 2, 9, 10):
        write_snapshot(store, Snapshot(number=number, manifest_version=number, indexes={"image": view}))
    store.put("snapshots/notes.txt", b"not a snapshot")
    assert read_snapshot(store) == Snapshot(number=10, manifest_version=10, indexes={"image": view})


def test_one_of_two_writers_of_a_state_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def write(version: int) -> str | None:
        try:
            write_snapshot(store, Snapshot(number=1, manifest_version=version, indexes={}))
        except ConcurrentWriterError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(8) as threads:
        refusals = list(threads.map(write, range(8)))
    assert refusals.count(None) == 1
    assert all("snapshot 1" in refusal for refusal in refusals if refusal)
    assert read_snapshot(store).manifest_version == refusals.index(None)


def test_the_config_hash_ignores_order_and_nothing_else() -> None:
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert len({content_hash(c) for c in ({}, {"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1})}) == 5


def test_a_memory_keeps_the_description_it_was_made_with(tmp_path: Path) -> None:
    store = Store(tmp_path)
    create_memory(store, described(batch_size=256))
    create_memory(store, described(batch_size=256))
    assert read_description(store) == described(batch_size=256)
    before = (tmp_path / "memory.json").read_bytes()
    there, asked = described(batch_size=256).config_hash, described(batch_size=128, require="text").config_hash
    with pytest.raises(ConfigMismatchError) as error:
        create_memory(store, described(batch_size=128, require="text"))
    for said in (there, asked, "batch_size: 256 before, 128 now", "require: None before, 'text' now", str(tmp_path)):
        assert said in str(error.value)
    assert (tmp_path / "memory.json").read_bytes() == before


def test_no_memory_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"memory\.json is missing \(memory-builder embed"):
        read_description(Store(tmp_path))
    with pytest.raises(UsageError, match="no memory at"):
        Memory.open(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["memory.json", "snapshots/1.json"])
def test_a_newer_format_is_refused(tmp_path: Path, file: str) -> None:
    store = whole_memory(tmp_path)
    fields = json.loads(store.read(file))
    fields |= {"format_version": FORMAT_VERSION + 1, "new in the next version": {}}
    store.put(file, json.dumps(fields).encode())
    with pytest.raises(UsageError, match="install a newer memory-builder"):
        Memory.open(tmp_path)


def whole_memory(root: Path) -> Store:
    store = Store(root)
    create_memory(store, described())
    extend_plan(store, [source("a")])
    write_commit(store, commit_of(0))
    Manifest.read(store).fold(store)
    write_snapshot(store, Snapshot(number=1, manifest_version=1, indexes={}))
    return store


DAMAGE = {
    "empty": b"",
    "text": b"hello",
    "not UTF-8": b"\xff\xfe\x00{",
    "list": b"[1, 2]",
    "null": b"null",
    "other object": b'{"format_version": 1, "indexes": 3}',
    "version is a text": b'{"format_version": "one"}',
    "nothing in it": b"{}",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["memory.json", "snapshots/1.json", "manifest.parquet"])
def test_a_damaged_file_is_named_and_another_stands_in_for_it(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = whole_memory(tmp_path)
    before = Memory.open(tmp_path)
    assert len(before) == 10
    capsys.readouterr()
    store.put(file, DAMAGE[damage])
    memory = Memory.open(tmp_path)
    assert (len(memory), memory.description, memory.commits) == (10, before.description, before.commits)
    said = capsys.readouterr().err
    assert f"{tmp_path}/{file}" in said
    assert said.startswith("warning: ")
    assert [problem.file for problem in damaged_records(store)] == [file]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_description_without_a_copy_is_told_with_what_helps(tmp_path: Path, damage: str) -> None:
    store = whole_memory(tmp_path)
    store.remove("manifest.parquet")
    store.put("memory.json", DAMAGE[damage])
    with pytest.raises(CorruptMemoryError, match=r"memory\.json is damaged .* run the embed or import command"):
        Memory.open(tmp_path)
    with pytest.raises(ConfigMismatchError, match=r"memory\.json is lost"):
        create_memory(store, described())
    create_memory(store, replace(described(), config_hash=commit_of(0).config_hash))
    assert len(Memory.open(tmp_path)) == 10


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
@pytest.mark.parametrize("file", ["plan.parquet", "manifest.parquet"])
def test_a_plan_goes_on_over_a_file_cut_short(tmp_path: Path, file: str, keep: float) -> None:
    store = whole_memory(tmp_path)
    extend_plan(store, [source("c")])
    write_commit(store, commit_of(1, source("c").uri))
    data = store.read(file)
    store.put(file, data[: int(len(data) * keep)])
    plan = extend_plan(store, [source("a"), source("b")])
    assert [(shard.ordinal, shard.uri) for shard in plan] == [(0, "/in/a.tar"), (1, "/in/c.tar"), (2, "/in/b.tar")]
    Manifest.read(store).fold(store)
    assert list(Manifest.read_strictly(store).commits) == [0, 1]
    assert read_plan_strictly(store) == plan


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_commit_record_cut_short_is_named(tmp_path: Path, keep: float) -> None:
    store = whole_memory(tmp_path)
    write_commit(store, commit_of(1))
    data = store.read("commits/00001.json")
    store.put("commits/00001.json", data[: int(len(data) * keep)])
    with pytest.raises(CorruptMemoryError, match=r"commits/00001\.json is damaged .*--repair"):
        extend_plan(store, [source("b")])


def test_an_empty_commit_record_is_none(tmp_path: Path) -> None:
    store = whole_memory(tmp_path)
    store.put("commits/00001.json", b"")
    os.utime(tmp_path / "commits/00001.json", (0, 0))
    assert list(Manifest.read(store).commits) == [0]
    write_commit(store, commit_of(1))
    assert list(Manifest.read(store).commits) == [0, 1]


def test_the_manifest_keeps_a_copy_of_the_description_and_its_version_when_it_is_lost(tmp_path: Path) -> None:
    store = whole_memory(tmp_path)
    description = read_description(store)
    store.remove("memory.json")
    assert read_description(store) == description
    write_snapshot(store, Snapshot(number=2, manifest_version=7, indexes={}))
    store.put("manifest.parquet", b"")
    Manifest.read(store).fold(store)
    assert Manifest.read_strictly(store).version == 7


def test_a_lost_or_older_manifest_is_made_up_for_by_the_commit_records(tmp_path: Path) -> None:
    store = whole_memory(tmp_path)
    n_rows = len(Memory.open(tmp_path))
    assert n_rows > 0
    write_snapshot(store, Snapshot(number=2, manifest_version=2, indexes={}))
    assert len(Memory.open(tmp_path)) == n_rows
    store.remove("manifest.parquet")
    assert len(Memory.open(tmp_path)) == n_rows


def test_a_driver_folds_what_another_folded_meanwhile(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_commit(store, commit_of(0))
    mine = Manifest.read(store)
    write_commit(store, commit_of(1))
    Manifest.read(store).fold(store)
    mine.add(write_commit(store, commit_of(2)))
    mine.fold(store)
    assert list(Manifest.read_folded(store).commits) == [0, 1, 2]
    assert Manifest.read_folded(store).version == 2


def test_drivers_that_fold_at_the_same_time_lose_no_commit(tmp_path: Path) -> None:
    def fold(n: int) -> None:
        mine = Manifest({}, 0, frozenset())
        mine.add(write_commit(Store(tmp_path), commit_of(n)))
        mine.fold(Store(tmp_path))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fold, range(8)))
    folded = Manifest.read_folded(Store(tmp_path))
    assert list(folded.commits) == list(range(8))
    assert 1 <= folded.version <= 8  # whoever is first finds what others committed by then
    assert not Store(tmp_path).exists("manifest.lock")


def test_drivers_that_plan_at_the_same_time_lose_no_shard(tmp_path: Path) -> None:
    def plan(n: int) -> None:
        extend_plan(Store(tmp_path), [Source(uri=f"{n}-{i}", bytes=1, etag="x") for i in range(3)])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(plan, range(8)))
    shards = read_plan(Store(tmp_path))
    assert [shard.ordinal for shard in shards] == list(range(24))
    assert {shard.uri for shard in shards} == {f"{n}-{i}" for n in range(8) for i in range(3)}
    assert not Store(tmp_path).exists("plan.lock")


def test_the_lock_of_a_dead_driver_is_taken_over(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = {"host": socket.gethostname(), "pid": dead.pid, "since_s": time.time()}
    Store(tmp_path).create("plan.lock", json.dumps(lock).encode())
    assert len(extend_plan(Store(tmp_path), [Source(uri="a", bytes=1, etag="x")])) == 1


def test_a_place_that_another_driver_committed_is_not_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = write_commit(store, commit_of(0))
    assert write_commit(store, commit_of(0)) == first  # the same work twice is harmless
    with pytest.raises(ConcurrentWriterError, match="another driver committed"):
        write_commit(store, replace(commit_of(0), uri="other.tar"))
    assert Manifest.read(store).commits[0] == first


def test_processes_that_end_right_after_reading_a_plan_end_well(tmp_path):
    code = (
        "import sys\n"
        "from memory_builder.catalog.plan import read_plan\n"
        "from memory_builder.storage.store import Store\n"
        "assert len(read_plan(Store(sys.argv[1]))) == 3\n"
    )
    extend_plan(Store(tmp_path), [Source(uri=f"{i}.tar", bytes=1, etag="1") for i in range(3)])
    codes = [subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode for _ in range(10)]
    assert codes == [0] * 10
