"""Tasks that workers import by name."""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memory_builder.catalog.commits import Commit
from memory_builder.embedding.embed_shard import EmbedTask
from memory_builder.errors import EncoderError
from memory_builder.readers.shard import Shard


class TwoArgumentsError(Exception):
    """Survives pickling, but not unpickling."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Squares:
    """Squares numbers; ``do`` says what else some of them do."""

    do: dict[int, str]
    seconds: float = 0.0
    marks: str | None = None
    """Folder where each started item leaves a file with the worker's pid."""
    wants_gpu: bool = False

    def start(self) -> Callable[[int], int]:
        return self._work

    def _work(self, item: int) -> int:
        if self.marks:
            (Path(self.marks) / f"{item}-{time.time_ns()}").write_text(str(os.getpid()))
        time.sleep(self.seconds)
        match self.do.get(item):
            case "raise":
                raise ValueError(f"item {item}")
            case "raise what cannot travel":
                raise TwoArgumentsError(str(item), "because")
            case "die":
                os._exit(1)
            case "run out of memory":
                run_out_of_memory()
            case "run out of memory once" if len(list(Path(str(self.marks)).glob(f"{item}-*"))) == 1:
                run_out_of_memory()
            case "be refused memory":
                resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
                try:
                    bytearray(1 << 30)
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return item * item


CGROUP = Path("/sys/fs/cgroup/memory")
"""Of version 1, where a process may be given a limit of its own."""


def run_out_of_memory() -> None:
    """Let the kernel kill this process, as it does where a machine or a container has no memory left."""
    group = CGROUP / f"memory-builder-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(32 << 20))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    held = [bytearray(os.urandom(1 << 20)) for _ in range(1_000)]
    raise AssertionError(f"{len(held)} MiB were there")


@dataclass(frozen=True, kw_only=True, slots=True)
class NeverStarts:
    """Its model cannot be loaded."""

    wants_gpu: bool = True

    def start(self) -> Callable[[int], int]:
        raise EncoderError("cannot load model 'nowhere'")


@dataclass(frozen=True, kw_only=True, slots=True)
class DiesStarting:
    """Too large for the memory of any worker."""

    wants_gpu: bool = False

    def start(self) -> Callable[[int], int]:
        os._exit(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """Says how many threads the libraries of its worker use."""

    wants_gpu: bool = False

    def start(self) -> Callable[[int], tuple[int, int]]:
        import faiss
        import torch

        return lambda _: (torch.get_num_threads(), faiss.omp_get_max_threads())


@dataclass(frozen=True, kw_only=True, slots=True)
class Poisoned:
    """Embeds shards, but one whose name says ``poison`` kills its process, as a fault in a decoder may."""

    task: EmbedTask
    marks: str
    """Folder where each started shard leaves a file with the worker's pid."""
    wants_gpu: bool = True

    def start(self) -> Callable[[Shard], Commit]:
        return partial(self._work, self.task.start())

    def _work(self, work: Callable[[Shard], Commit], shard: Shard) -> Commit:
        name = Path(shard.uri).name
        (Path(self.marks) / f"{name}-{time.time_ns()}").write_text(str(os.getpid()))
        if "poison" in name:
            os._exit(1)
        return work(shard)
