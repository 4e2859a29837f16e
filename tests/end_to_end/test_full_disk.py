"""A disk without room: one clear error at once, and the same command goes on when there is room again."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_builder.errors import StorageFullError
from memory_builder.storage.store import TEMPORARY, Store


def mount(*arguments: object) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A filesystem of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", disk):
        pytest.skip("no right to mount a small filesystem here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_stops_the_run_at_once_and_is_no_fault_of_the_shards(
    command, small_disk, small_shards, built_memory, model
):
    embed = ("embed", small_shards, "--memory", small_disk / "memory", "--model", model)
    ran = command(*embed)
    assert ran.code == 1
    (line,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert f"no space to write {small_disk}/memory/" in line
    assert "No space left on device" in line
    assert "free some or raise the limit, then run the same command again" in line
    info = json.loads(command("info", small_disk / "memory", "--json").out)
    n_done = info["shards"]["done"]
    assert 0 < n_done < 10
    assert info["shards"]["failed"] == 0
    assert not list((small_disk / "memory" / TEMPORARY).iterdir())
    assert mount("-o", "remount,size=64m", small_disk)
    ran = command(*embed)
    assert (ran.code, f"10/10 shards ({10 - n_done} embedded now)" in ran.out) == (0, True)
    assert command("verify", small_disk / "memory").code == 0
    for folder in ("img_emb", "text_emb", "metadata", "rows", "rejects"):
        for file in (built_memory / folder).iterdir():
            assert (small_disk / "memory" / folder / file.name).read_bytes() == file.read_bytes()


WRITE = """
import sys
from memory_builder.storage.store import Store
store, data = Store(sys.argv[1]), b"x" * 200_000
for write in (store.put, store.create):
    try:
        write("folder/file", data)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_file_larger_than_allowed_is_told_as_such(tmp_path):
    # Where nothing may be mounted, a limit of the kernel on the size of files says the same.
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    script = [sys.executable, "-c", WRITE, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=True, preexec_fn=limit)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"StorageFullError no space to write {tmp_path}/folder/file (File too large): free some")
    assert not list((tmp_path / TEMPORARY).iterdir())
    assert not (tmp_path / "folder").exists()


def test_a_device_that_is_always_full(tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr(store, "_temporary", lambda: tmp_path / "full")
    os.symlink("/dev/full", tmp_path / "full")
    with pytest.raises(StorageFullError, match="No space left on device"):
        store.put("file", b"x")
