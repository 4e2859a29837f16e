import contextlib
import gzip
import importlib.util
import io
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from memory_builder.cli import main

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "memory_builder" / "demo" / "sample"
MODEL = f"local-dir:{ROOT / 'memory_builder' / 'demo' / 'model'}"


def small_shard(packed: Path, target: Path, *, n_pairs: int, skip: int = 0) -> None:
    """A tar with some of the pairs of a bundled shard."""
    with gzip.open(packed) as plain, tarfile.open(fileobj=io.BytesIO(plain.read())) as source:
        members = source.getmembers()
        keys = sorted({member.name.split(".")[0] for member in members})[skip : skip + n_pairs]
        with tarfile.open(target, "w") as tar:
            for member in members:
                if member.name.split(".")[0] in keys:
                    tar.addfile(member, source.extractfile(member))


def load_benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


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
