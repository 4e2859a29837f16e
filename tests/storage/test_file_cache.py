"""Copies of remote files have a bound: the least recently used go first."""

import os
from pathlib import Path

import pytest

from memory_builder.errors import UsageError
from memory_builder.storage.file_cache import cached_file, folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_BUILDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEMORY_BUILDER_CACHE_BYTES", "250")


def fetched(name: str, n_bytes: int = 100) -> Path:
    return cached_file(name, lambda target: Path(target).write_bytes(b"x" * n_bytes) and None)


def test_the_least_recently_used_copies_go() -> None:
    for age, name in ((30, "a"), (20, "b")):
        path = fetched(name)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert cached_file("a", lambda _: pytest.fail("it is there")).read_bytes() == b"x" * 100
    fetched("c")
    assert sorted(path.name for path in folder().iterdir()) == ["a", "c"]
    fetched("larger than all", 400)  # the one that is needed now stays
    assert [path.name for path in folder().iterdir()] == ["larger than all"]


def test_a_fetch_that_fails_leaves_nothing() -> None:
    def fails(target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("broken off")

    with pytest.raises(OSError, match="broken off"):
        cached_file("a", fails)
    assert list(folder().iterdir()) == []


def test_a_bound_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORY_BUILDER_CACHE_BYTES", "50G")
    with pytest.raises(UsageError, match="MEMORY_BUILDER_CACHE_BYTES=50G: expected a number of bytes"):
        fetched("a")
