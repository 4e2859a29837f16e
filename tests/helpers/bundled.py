"""The bundled sample and model, and the scripts of benchmarks/ as modules."""

import gzip
import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

HELPERS = Path(__file__).parent
ROOT = HELPERS.parents[1]
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
