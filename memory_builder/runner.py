"""How the work of a stage is spread: a Runner takes a task and its items, and yields what came of each.

A task is a picklable description of a worker; ``start`` is called once where the work is done (it loads the model),
and what it returns is called once an item. The same tasks run in this process here and on a cluster's actors in
``cluster.runner``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
TaskItem = TypeVar("TaskItem", contravariant=True)
TaskResult = TypeVar("TaskResult", covariant=True)


class Task(Protocol[TaskItem, TaskResult]):
    """What a worker needs to know before its first item."""

    @property
    def wants_gpu(self) -> bool:
        """Give each worker a whole GPU where the cluster has any."""
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
        work = task.start()
        for item in items:
            try:
                result = work(item)
            except Exception as error:
                yield item, error
            else:
                yield item, result


def available_threads() -> int:
    """Threads this worker may use: what its runner reserved for it, else the CPUs of the machine."""
    reserved = os.environ.get("OMP_NUM_THREADS", "")
    return int(reserved) if reserved.isdecimal() and int(reserved) else os.cpu_count() or 1


def run_one(runner: Runner, task: Task[Item, Result], item: Item) -> Result:
    """Run a stage that is a single piece of work; its exception is raised here."""
    ((_, result),) = runner.run(task, [item])
    if isinstance(result, Exception):
        raise result
    return result
