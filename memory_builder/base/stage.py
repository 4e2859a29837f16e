"""A stage: the items that have no record yet go to workers, which write data first and the record last.

Every driver runs its work through here: progress is counted, a full storage ends the stage, failures of single items
are handed to the driver or raised. What is done is known by its records, so any stage can be killed at any moment and
run again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

from memory_builder.base.progress import Progress
from memory_builder.base.runner import Item, Result, Runner, Task
from memory_builder.errors import StorageFullError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Generic[Item, Result]):
    """One kind of work over many items."""

    name: str
    """Begins each line of progress."""
    task: Task[Item, Result]
    """Describes a worker."""
    runner: Runner
    unit: str = "shards"
    """What the items are, in lines of progress."""

    def outcomes(
        self,
        pending: Sequence[Item],
        *,
        n_done: int = 0,
        n_pairs: Callable[[Result], int] = lambda _: 0,
    ) -> Iterator[tuple[Item, Result | Exception]]:
        """Run the task over ``pending``; yield each item, as it finishes, with its result or its own exception.

        Args:
            pending: items without a record.
            n_done: items that have one.
            n_pairs: pairs that a result stands for, for the rate.

        Raises:
            StorageFullError: no item is at fault, and the others would fail alike.
        """
        progress = Progress(self.name, n_planned=n_done + len(pending), n_done=n_done, unit=self.unit)
        for item, result in self.runner.run(self.task, pending):
            if isinstance(result, StorageFullError):
                raise result
            if isinstance(result, Exception):
                yield item, result
                progress.advance(failed=True)
            else:
                yield item, result
                progress.advance(n_pairs=n_pairs(result))

    def results(self, pending: Sequence[Item], *, n_done: int = 0) -> Iterator[tuple[Item, Result]]:
        """As ``outcomes``, for work that is of no use in part: the exception of the first item that fails is raised."""
        for item, result in self.outcomes(pending, n_done=n_done):
            if isinstance(result, Exception):
                raise result
            yield item, result
