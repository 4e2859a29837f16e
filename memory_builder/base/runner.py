"""How the work of a stage is spread: a Runner takes a task and its items, and yields what came of each.

A task is a picklable description of a worker; ``start`` is called once where the work is done (it loads the model),
and what it returns is called once an item. The same tasks run in this process here and on a cluster's actors in
``cluster.runner``.
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
"""While one shard is on the GPU, another is read or written."""

Item = TypeVar("Item")
Result = TypeVar("Result")
TaskItem = TypeVar("TaskItem", contravariant=True)
TaskResult = TypeVar("TaskResult", covariant=True)


class Task(Protocol[TaskItem, TaskResult]):
    """What a worker needs to know before its first item."""

    @property
    def wants_gpu(self) -> bool:
        """Give each worker a whole GPU where there are any, and let it do ITEMS_ON_A_GPU items at once."""
        ...

    def start(self) -> Callable[[TaskItem], TaskResult]:
        """Prepare a worker; an exception here fails the run and blames no item."""
        ...


class Runner(Protocol):
    """Runs tasks somewhere."""

    def run(self, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        """Yield every item exactly once, as it finishes, with its result or the exception that is its own fault.

        Raises:
            Whatever ``task.start`` raises, or WorkerError when workers keep dying without any success between.
        """
        ...


class LocalRunner:
    """One worker in this process, items in order. Its threads are those of torch, faiss and the decoders."""

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
"""On Linux a device that torch could see has made one of these: NVIDIA's driver, that of WSL, AMD's."""


def has_gpu() -> bool:
    """Whether torch sees a device in this process."""
    # Importing torch takes seconds, which an index that is built on a CPU has no other need to spend.
    if sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES)):
        return False
    import torch

    return torch.cuda.is_available()


def available_threads() -> int:
    """Threads this worker may use: what its runner reserved for it, else the CPUs of the machine."""
    reserved = os.environ.get("OMP_NUM_THREADS", "")
    return int(reserved) if reserved.isdecimal() and int(reserved) else os.cpu_count() or 1


def run_all(runner: Runner, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """As ``Runner.run``, for work that is of no use in part: the first exception is raised."""
    for item, result in runner.run(task, items):
        if isinstance(result, Exception):
            raise result
        yield item, result


def run_one(runner: Runner, task: Task[Item, Result], item: Item) -> Result:
    """Run a stage that is a single piece of work; its exception is raised here."""
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
