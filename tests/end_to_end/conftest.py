import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.bundled import MODEL, SAMPLE, small_shard
from memory_builder.cli import main


@pytest.fixture(scope="session")
def model() -> str:
    return MODEL


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> Path:
    """Ten shards of 50 real pairs each."""
    folder = tmp_path_factory.mktemp("small-shards")
    for i, packed in enumerate(sorted(SAMPLE.glob("*.tar.gz"))):
        for half in range(2):
            small_shard(packed, folder / f"{2 * i + half:05d}.tar", n_pairs=50, skip=50 * half)
    return folder


@dataclass(frozen=True)
class Ran:
    """What a command printed and returned."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def command() -> Callable[..., Ran]:
    """The command, in this process."""

    def run(*arguments: object) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as exit_:  # tyro's own errors
                code = int(exit_.code or 0)
        return Ran(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def built_memory(tmp_path_factory, small_shards, command) -> Path:
    """A memory of 500 real pairs with both indexes, made by the command. Read only: copy it to change it."""
    memory = tmp_path_factory.mktemp("built") / "memory"
    assert command("embed", small_shards, "--memory", memory, "--model", MODEL).code == 0
    assert command("index", memory).code == 0
    return memory


@pytest.fixture
def memory_copy(built_memory, tmp_path) -> Path:
    """A memory to damage."""
    return Path(shutil.copytree(built_memory, tmp_path / "memory"))
