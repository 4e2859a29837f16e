"""Filesystems that other systems share: without hard links, and with names that differ by more than case."""

import errno
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import memory_builder as mb
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.create_memory import create_memory
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import read_numbered_snapshot, read_snapshot
from memory_builder.indexing.config import IndexConfig
from memory_builder.maintenance.compact import compact
from memory_builder.maintenance.delete import delete
from memory_builder.maintenance.verify import verify
from memory_builder.memory import Memory
from memory_builder.storage.store import Store

REFUSALS = [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS]


def refuse_links(patch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, "link", link)


@pytest.mark.parametrize("number", REFUSALS, ids=[errno.errorcode[number] for number in REFUSALS])
def test_a_memory_is_written_changed_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, write_memory, clustered
) -> None:
    refuse_links(monkeypatch, number)
    store = write_memory(tmp_path, *clustered(120, 8, 0), shard_rows=40)
    mb.index(store, keys=("image",), config=IndexConfig(), runner=LocalRunner())
    delete(store, ids=[3, 5])
    compact(store, runner=LocalRunner())
    assert len(Memory.open(tmp_path)) == 118
    assert verify(store, LocalRunner()) == []
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".lock", ".claim")]


def test_one_of_many_threads_wins_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_links(monkeypatch)
    store, barrier = Store(tmp_path), threading.Barrier(8)

    def compete(writer: int) -> list[int]:
        won = []
        for n in range(20):
            barrier.wait()
            try:
                store.create(f"names/{n}", str(writer).encode() * 1000)
                won.append(n)
            except FileExistsError:
                pass
        return won

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(compete, range(8)))
    assert sorted(n for names in won for n in names) == list(range(20))
    for writer, names in enumerate(won):
        assert all(store.read(f"names/{n}") == str(writer).encode() * 1000 for n in names)


CRASH = """
import os, sys
from memory_builder.storage.store import Store
def link(*_, **__): raise PermissionError(1, "Operation not permitted")
os.link = link
os.replace = lambda *_: os._exit(9)
Store(sys.argv[1]).create(sys.argv[2], b"{}")
"""


def crash_between_name_and_content(root: Path, path: str) -> None:
    """Leave what a writer leaves that is killed there: an empty file, of ten seconds ago."""
    done = subprocess.run([sys.executable, "-c", CRASH, str(root), path], check=False)
    assert done.returncode == 9
    assert (root / path).read_bytes() == b""
    os.utime(root / path, (time.time() - 60,) * 2)


@pytest.mark.parametrize("links", [True, False], ids=["links by now", "no links"])
def test_a_name_without_content_is_no_record_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, write_memory, clustered
) -> None:
    store = write_memory(tmp_path, *clustered(40, 8, 0), shard_rows=20)
    mb.index(store, keys=("image",), config=IndexConfig(), runner=LocalRunner())
    if not links:
        refuse_links(monkeypatch)
    number = read_snapshot(store).number + 1
    crash_between_name_and_content(tmp_path, f"snapshots/{number}.json")
    crash_between_name_and_content(tmp_path, "snapshots.lock")
    crash_between_name_and_content(tmp_path, f"tombstones/{number + 1}.npy")
    crash_between_name_and_content(tmp_path, "commits/00002.json")
    memory = Memory.open(tmp_path)
    assert (len(memory), list(memory.snapshot.indexes)) == (40, ["image"])
    after = delete(store, ids=[1])
    assert (after.number, after.tombstones, len(Memory.open(tmp_path))) == (
        number + 1,
        f"tombstones/{number + 1}.npy",
        39,
    )
    assert read_numbered_snapshot(store, number + 1) == after
    left = [problem.file for problem in verify(store, LocalRunner())]
    assert left == ["commits/00002.json", f"snapshots/{number}.json"]


def test_a_memory_json_without_content_is_written_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_memory, clustered
) -> None:
    refuse_links(monkeypatch)
    description = read_description(write_memory(tmp_path / "other", *clustered(20, 8, 0)))
    crash_between_name_and_content(tmp_path, "memory.json")
    create_memory(Store(tmp_path), description)
    assert read_description(Store(tmp_path)) == description


def test_two_writers_that_find_an_abandoned_name_do_not_both_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_links(monkeypatch)
    store = Store(tmp_path)
    for n in range(10):
        (tmp_path / f"{n}").write_bytes(b"")
        os.utime(tmp_path / f"{n}", (time.time() - 60,) * 2)
        barrier = threading.Barrier(4)

        def take(writer: int, n: int = n, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                store.create(f"{n}", f"of {writer}".encode())
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(4) as threads:
            won = list(threads.map(take, range(4)))
        assert won.count(True) == 1
        assert store.read(f"{n}") == f"of {won.index(True)}".encode()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [str(n) for n in range(10)]


def test_a_young_name_without_content_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_builder.storage.store.CLAIM_S", 1.0)
    store = Store(tmp_path)
    (tmp_path / "name").write_bytes(b"")
    threading.Timer(0.3, lambda: (tmp_path / "name").write_bytes(b"whole")).start()
    with pytest.raises(FileExistsError):
        store.create("name", b"mine")
    assert store.read("name") == b"whole"
    (tmp_path / "other").write_bytes(b"")
    began = time.monotonic()
    store.create("other", b"mine")
    assert time.monotonic() - began > 0.9
    assert store.read("other") == b"mine"


def test_no_two_names_of_a_memory_differ_by_case_alone(tmp_path: Path, write_memory, clustered) -> None:
    store = write_memory(tmp_path, *clustered(1_200, 8, 0), shard_rows=400)
    mb.index(store, keys=("image", "text"), config=IndexConfig(index_key="IVF4,PQ4"), runner=LocalRunner())
    delete(store, ids=np.arange(5))
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")]
    assert len({name.casefold() for name in names}) == len(names) > 30
    assert len(Manifest.read(store).commits) == 3
