"""A stage runs a task over the items without a record; workers write their data first and the record last.

Every driver runs its work through here: progress is counted, full storage ends the stage, failures of single items are
handed to the driver or raised. Records state which items are done, so a stage can be killed at any moment and rerun.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic

from memory_builder.base.progress import Progress
from memory_builder.base.runner import Item, Result, Runner, Task
from memory_builder.errors import StorageFullError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Generic[Item, Result]):
    """A task over many items, with its runner and its name."""

    name: str
    """Prefix of progress lines."""
    task: Task[Item, Result]
    runner: Runner
    unit: str = "shards"
    """Name of the items in progress lines."""

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
            n_done: number of items that have one.
            n_pairs: counts the pairs of a result, for the rate.

        Raises:
            StorageFullError: the storage is full, so the other items would fail too.
        """
        progress = Progress(self.name, n_planned=n_done + len(pending), n_done=n_done, unit=self.unit)
        for item, result in self.runner.run(self.task, pending):
            if isinstance(result, StorageFullError):
                raise result
            yield item, result
            if isinstance(result, Exception):
                progress.advance(failed=True)
            else:
                progress.advance(n_pairs=n_pairs(result))

    def results(self, pending: Sequence[Item], *, n_done: int = 0) -> Iterator[tuple[Item, Result]]:
        """Run the task as ``outcomes`` does and raise the first exception, if partial results are useless."""
        for item, result in self.outcomes(pending, n_done=n_done):
            if isinstance(result, Exception):
                raise result
            yield item, result
