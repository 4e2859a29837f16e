"""Sampling of training pairs: a function of seed, epoch and step, for any number of workers."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from memory_builder.base.types import Ids
from memory_builder.errors import SourceError, UsageError
from trainer.loop.distributed import World

WHY_TWO = "as the other pairs of a batch are the negatives"


@dataclass(frozen=True, slots=True)
class BatchIndices:
    """The pairs of one worker at one step."""

    epoch: int
    pairs: Ids
    """i64[b] indices of the source's pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSampler:
    """A new permutation of all pairs in every epoch, cut into batches; the incomplete last batch is dropped."""

    n_pairs: int
    batch_size: int
    """Global batch size."""
    epochs: int
    seed: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.n_pairs < 2:
            raise SourceError(f"too few usable pairs to train on ({self.n_pairs}): at least 2, {WHY_TWO}")
        if self.batch_size < 2:
            raise UsageError(f"--batch-size {self.batch_size}: at least 2, {WHY_TWO}")
        if self.batch_size > self.n_pairs:
            raise UsageError(
                f"--batch-size {self.batch_size}: more than the {self.n_pairs:,} training pairs; name a smaller "
                "one, or retrieve more pairs"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.n_pairs // self.batch_size

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        n_steps = self.epochs * self.steps_per_epoch
        return n_steps if self.max_steps is None else min(n_steps, self.max_steps)

    def indices(self, world: World, start: int = 0) -> Iterator[BatchIndices]:
        """This worker's pairs of each step from ``start`` on.

        Raises:
            UsageError: see ``local_batch_size``.
        """
        n_local = local_batch_size(self.batch_size, world)
        epoch, order = -1, np.zeros(0, np.int64)
        for step in range(start, self.n_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.default_rng((self.seed, epoch)).permutation(self.n_pairs)
            first = step % self.steps_per_epoch * self.batch_size + world.rank * n_local
            yield BatchIndices(epoch, order[first : first + n_local])


def local_batch_size(batch_size: int, world: World) -> int:
    """Pairs of the global batch on each worker.

    Raises:
        UsageError: the workers cannot share the batch equally.
    """
    if batch_size % world.size:
        raise UsageError(f"--batch-size {batch_size} cannot be shared equally by {world.size} workers")
    return batch_size // world.size
