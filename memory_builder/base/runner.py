"""Runners: run a task over the items of a stage and yield each item's result or exception.

A task is a picklable description of a worker. ``start`` is called once per worker (it loads the model) and returns a
function that is called once per item. The same tasks run in this process here and on Ray actors in ``cluster.runner``.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

from memory_builder.base.arguments import check
from memory_builder.base.prefetch import map_ahead
from memory_builder.errors import UsageError

ITEMS_ON_A_GPU = 2
"""Items per GPU at a time: one shard is encoded while another is read or written."""

Item = TypeVar("Item")
Result = TypeVar("Result")
TaskItem = TypeVar("TaskItem", contravariant=True)
TaskResult = TypeVar("TaskResult", covariant=True)


class Task(Protocol[TaskItem, TaskResult]):
    """A picklable description of a worker."""

    @property
    def wants_gpu(self) -> bool:
        """Whether each worker gets a whole GPU, if there are GPUs, and runs ITEMS_ON_A_GPU items at once."""
        ...

    def start(self) -> Callable[[TaskItem], TaskResult]:
        """Prepare a worker. If this raises, the whole run fails and no item is recorded as failed."""
        ...


class Runner(Protocol):
    """Runs tasks somewhere."""

    def run(self, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        """Yield every item exactly once, as it finishes, with its result or the exception that it raised.

        Raises:
            Any exception of ``task.start``, or WorkerError when workers keep dying without any success between.
        """
        ...


class LocalRunner:
    """Runs items in order in this process. torch, faiss and the decoders use threads."""

    def run(self, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        if not items:
            return
        attempt = partial(_attempt, task.start())
        if task.wants_gpu and len(items) > 1 and has_gpu():
            with ThreadPoolExecutor(ITEMS_ON_A_GPU) as threads:
                yield from map_ahead(attempt, items, threads, ITEMS_ON_A_GPU)
        else:
            yield from map(attempt, items)


def _attempt(work: Callable[[Item], Result], item: Item) -> tuple[Item, Result | Exception]:
    try:
        return item, work(item)
    except Exception as error:
        return item, error


GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Device files of the Linux drivers whose GPUs torch can use: NVIDIA's, WSL's, AMD's."""


def has_gpu() -> bool:
    """Whether torch sees a device in this process."""
    # Importing torch takes seconds, and building an index on a CPU needs no torch.
    if sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES)):
        return False
    import torch

    return torch.cuda.is_available()


def available_threads() -> int:
    """Threads this worker may use: those its runner reserved, else the CPUs of the machine."""
    reserved = os.environ.get("OMP_NUM_THREADS", "")
    return int(reserved) if reserved.isdecimal() and int(reserved) else os.cpu_count() or 1


def run_all(runner: Runner, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Run a task and raise the first exception, for stages whose partial results are useless."""
    for item, result in runner.run(task, items):
        if isinstance(result, Exception):
            raise result
        yield item, result


def run_one(runner: Runner, task: Task[Item, Result], item: Item) -> Result:
    """Run a task on a single item and raise its exception."""
    ((_, result),) = runner.run(task, [item])
    if isinstance(result, Exception):
        raise result
    return result


@dataclass(frozen=True, kw_only=True)
class RunnerConfig:
    """Run in this process or on a Ray cluster."""

    runner: Literal["local", "ray"] = "local"
    """local: in this process. ray: on workers of a Ray cluster."""
    address: str | None = None
    """Ray cluster to join, as for ray.init (default: RAY_ADDRESS; without it a cluster starts on this machine)."""
    cpus_per_worker: int | None = None
    """CPUs, and so threads, of each Ray worker (default: as many as leave room for all workers)."""

    def __post_init__(self) -> None:
        for name in ("address", "workers", "cpus_per_worker", "gpu"):  # of this class or its subclass
            if self.runner == "local" and getattr(self, name, None) is not None:
                raise UsageError(f"--{name.replace('_', '-')} needs --runner ray")
        check(self, "at least 1", lambda value: value >= 1, "cpus_per_worker")
