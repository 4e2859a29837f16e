"""A file appears whole or not at all, one writer wins a name, and nobody's leftovers stay."""

import hashlib
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import memory_builder as mb
from helpers.processes import python
from memory_builder import Memory
from memory_builder.base.runner import LocalRunner
from memory_builder.export.faiss_ondisk import merge
from memory_builder.indexing.config import IndexConfig
from memory_builder.maintenance.verify import verify
from memory_builder.readers.discover import find_sources
from memory_builder.storage.store import TEMPORARY, Store, sha256

if TYPE_CHECKING:
    from helpers.s3 import S3

WRITERS = 8
WRITE_FOREVER = """
import sys, time
from memory_builder.storage.store import Store
with Store(sys.argv[1]).writing("folder/file.bin") as temporary:
    temporary.write_bytes(b"x" * 100_000)
    print("half-way", flush=True)
    time.sleep(60)
"""
CREATE_ALL = """
import sys
from memory_builder.storage.store import Store
store = Store(sys.argv[1])
sys.stdin.readline()
for n in range(40):
    try:
        store.create(f"names/{n}", sys.argv[2].encode() * 1000)
        print(n)
    except FileExistsError:
        pass
"""


def test_one_folder_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "x.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "a")
    assert Store("b").root == Store("../a/b/").root == str(tmp_path / "a" / "b")
    for named in ("../*.tar", "b/../../x.tar", ".."):
        assert [source.uri for source in find_sources([named])] == [str(tmp_path / "x.tar")], named


def test_what_is_put_is_read_back_and_replaced(store: Store) -> None:
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"two!")
    assert store.read("a/b.bin") == b"two!"
    assert store.size("a/b.bin") == 4
    assert store.exists("a/b.bin")
    with store.open("a/b.bin") as file:
        file.seek(1)
        assert file.read(2) == b"wo"
    store.remove("a/b.bin")
    assert not store.exists("a/b.bin")
    with pytest.raises(FileNotFoundError):
        store.read("a/b.bin")


def test_list_names_files_only_sorted_and_never_stale(store: Store) -> None:
    assert store.list("a") == []
    for name in ("c.json", "b.json", "deeper/d.json"):
        store.put(f"a/{name}", b"x")
    assert store.list("a") == ["b.json", "c.json"]
    store.put("a/a.json", b"")
    assert store.list("a") == ["a.json", "b.json", "c.json"]
    store.remove("a/b.json")
    assert store.list("a") == ["a.json", "c.json"]


def test_an_empty_file_can_be_put_and_created(store: Store) -> None:
    store.put("empty", b"")
    store.create("empty too", b"")
    assert store.read("empty") == store.read("empty too") == b""


def test_writing_appears_only_when_the_block_ends_well(store: Store) -> None:
    temporary = fail_half_way(store)
    assert not store.exists("file")
    assert not temporary.exists()
    with store.writing("file") as temporary:
        temporary.write_bytes(b"whole")
        assert not store.exists("file")
    assert store.read("file") == b"whole"
    assert not temporary.exists()


def fail_half_way(store: Store) -> Path:
    """Returns the temporary file."""
    try:
        with store.writing("file") as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("half-way")
    except RuntimeError:
        return temporary


def test_a_reader_never_sees_half_of_a_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    size = 1 << 20
    store.put("file", b"a" * size)
    done = threading.Event()

    def replace_often() -> None:
        for i in range(60):
            store.put("file", b"ab"[i % 2 :][:1] * size)
        done.set()

    writer = threading.Thread(target=replace_often)
    writer.start()
    while not done.is_set():
        data = store.read("file")
        assert len(data) == size
        assert data.count(data[:1]) == size
    writer.join()


def test_a_killed_writer_leaves_nothing_but_a_leftover_that_sweep_removes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with python("-c", WRITE_FOREVER, tmp_path, stdout=PIPE) as process, store.writing("mine") as mine:
        assert process.stdout is not None
        assert process.stdout.readline() == "half-way\n"
        mine.write_bytes(b"still at work")
        store.sweep()
        assert len(list((tmp_path / TEMPORARY).iterdir())) == 2  # both writers live
        process.kill()
        process.wait()
        assert not store.exists("folder/file.bin")
        store.sweep()
        assert list((tmp_path / TEMPORARY).iterdir()) == [mine]
    assert store.read("mine") == b"still at work"


def test_sweep_leaves_what_it_does_not_know(tmp_path: Path) -> None:
    store = Store(tmp_path)
    strangers = [tmp_path / TEMPORARY / name for name in ("notes", ".nfs0001", "another-host-1-abc", "-")]
    strangers[0].parent.mkdir()
    for stranger in strangers:
        stranger.write_bytes(b"")
    store.sweep()
    assert all(stranger.exists() for stranger in strangers)
    Store(tmp_path / "nothing here").sweep()


def test_one_of_many_threads_wins_a_name(store: Store) -> None:
    barrier = threading.Barrier(WRITERS)

    def compete(writer: int) -> list[int]:
        won = []
        for n in range(10):
            barrier.wait()
            try:
                store.create(f"names/{n}", str(writer).encode())
                won.append(n)
            except FileExistsError:
                pass
        return won

    with ThreadPoolExecutor(WRITERS) as threads:
        won = list(threads.map(compete, range(WRITERS)))
    assert sorted(n for names in won for n in names) == list(range(10))
    for writer, names in enumerate(won):
        assert all(store.read(f"names/{n}") == str(writer).encode() for n in names)


def test_one_of_many_processes_wins_a_name(tmp_path: Path) -> None:
    with ExitStack() as all_of_them:
        processes = [
            all_of_them.enter_context(python("-c", CREATE_ALL, tmp_path, writer, stdin=PIPE, stdout=PIPE))
            for writer in range(WRITERS)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        won = [process.communicate()[0].split() for process in processes]
    assert sorted(int(n) for names in won for n in names) == list(range(40))
    for writer, names in enumerate(won):
        assert all(Store(tmp_path).read(f"names/{n}") == str(writer).encode() * 1000 for n in names)
    assert not list((tmp_path / TEMPORARY).iterdir())


def test_create_keeps_what_was_there(store: Store) -> None:
    store.create("name", b"first")
    with pytest.raises(FileExistsError):
        store.create("name", b"second")
    assert store.read("name") == b"first"


def test_a_local_file_is_fetched_as_itself(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a/b", b"x")
    assert store.fetch("a/b") == tmp_path / "a/b"


def test_a_remote_file_is_fetched_once_for_each_content(s3: "S3", tmp_path: Path) -> None:
    store = s3.store()
    store.put("a/b", b"one")
    first = store.fetch("a/b")
    assert first.read_bytes() == b"one"
    assert tmp_path in first.parents
    inode = first.stat().st_ino
    assert store.fetch("a/b") == first
    assert first.stat().st_ino == inode
    store.put("a/b", b"two")
    second = store.fetch("a/b")
    assert second != first
    assert second.read_bytes() == b"two"
    assert sorted(first.parent.iterdir()) == sorted([first, second])
    with pytest.raises(FileNotFoundError):
        store.fetch("a/c")


def test_the_checksum_is_sha256_of_the_content(store: Store) -> None:
    data = os.urandom(3 << 20) + b"end"
    store.put("file", data)
    assert store.checksum("file") == sha256(data) == hashlib.sha256(data).hexdigest()


def test_a_store_says_where_it_is(tmp_path: Path, s3: "S3") -> None:
    assert Store(f"{tmp_path}/a/").root == str(tmp_path / "a")
    assert Store(f"file://{tmp_path}/a").root == str(tmp_path / "a")
    assert s3.store("a").root == f"{s3.url}/a"
    assert repr(Store(tmp_path)) == f"Store({str(tmp_path)!r})"


class Locked(MemoryFileSystem):  # type: ignore[misc]
    """A filesystem that does nothing without an option."""

    protocol = "locked"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def __init__(self, password: str = "", **options: Any) -> None:
        if password != "sesame":
            raise PermissionError("locked")
        super().__init__(**options)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.register_implementation("locked", Locked)
    yield "locked://memory"
    Locked.store.clear()


def test_a_store_goes_to_another_process_with_its_options(locked: str) -> None:
    store = Store(locked, password="sesame")
    store.put("a", b"a")
    for again in (Store(store), pickle.loads(pickle.dumps(store))):
        assert (again.root, again.options) == (store.root, {"password": "sesame"})
        assert again.read("a") == b"a"
    with pytest.raises(PermissionError, match="locked"):
        Store(locked)


def test_a_memory_opened_with_options_is_changed_with_them(locked: str, write_memory: Any, clustered: Any) -> None:
    images, texts = clustered(400, 16, seed=0)
    store = write_memory(locked, images[:300], texts[:300], shard_rows=100, password="sesame")
    mb.index(store, keys=("image",), config=IndexConfig(index_key="IVF4,Flat", train_threads=1), runner=Elsewhere())
    write_memory(locked, images, texts, shard_rows=100, password="sesame")
    memory = Memory.open(locked, storage_options={"password": "sesame"}).append(runner=Elsewhere()).delete(ids=[0])
    memory = memory.compact(purge=True, runner=Elsewhere())
    assert memory.index("image").n_rows == 399
    assert merge(memory.store, "image", runner=Elsewhere()).n_rows == 399
    assert verify(memory.store, Elsewhere()) == []


class Elsewhere(LocalRunner):
    """Hands tasks over as to another process."""

    def run(self, task: Any, items: Any) -> Iterator[Any]:
        yield from super().run(pickle.loads(pickle.dumps(task)), items)
