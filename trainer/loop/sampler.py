"""Which pairs each step trains on: a function of seed and epoch, whatever the number of workers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memory_builder.base.types import Ids
from memory_builder.errors import SourceError, UsageError
from trainer.loop.distributed import World


@dataclass(frozen=True, slots=True)
class Slice:
    """The pairs of one worker at one step."""

    epoch: int
    pairs: Ids
    """i64[b] places among the source's pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A new order of all pairs for every epoch, cut into batches; what is left over waits for the next epoch."""

    n_pairs: int
    batch_size: int
    epochs: int
    seed: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.n_pairs < 2:
            n = "not one usable pair" if self.n_pairs == 0 else "one usable pair alone"
            raise SourceError(f"there is {n} to train on: a pair is told from the others of its batch")
        if self.batch_size < 2:
            raise UsageError(
                f"--batch-size {self.batch_size}: at least 2, because a pair is told from the others of its batch"
            )
        if self.batch_size > self.n_pairs:
            raise UsageError(
                f"--batch-size {self.batch_size}: there are {self.n_pairs:,} pairs; name as many at most, or find more"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.n_pairs // self.batch_size

    @property
    def n_steps(self) -> int:
        """Of the whole run."""
        n_steps = self.epochs * self.steps_per_epoch
        return n_steps if self.max_steps is None else min(n_steps, self.max_steps)

    def slices(self, world: World, start: int = 0) -> Iterator[Slice]:
        """This worker's pairs at each step from ``start`` on.

        Raises:
            UsageError: the batch cannot be shared out equally.
        """
        share = share_of(self.batch_size, world)
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(start, self.n_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng((self.seed, epoch)).permutation(self.n_pairs)
            first = step % self.steps_per_epoch * self.batch_size + world.rank * share
            yield Slice(epoch, order[first : first + share])


def share_of(batch_size: int, world: World) -> int:
    """How many pairs of a batch each worker takes.

    Raises:
        UsageError: they cannot be shared out equally.
    """
    if batch_size % world.size:
        raise UsageError(f"--batch-size {batch_size} cannot be shared equally by {world.size} workers")
    return batch_size // world.size
