"""The training loop: the same in this process and on every worker of a cluster.

It knows two things of what it trains: a ``Learner`` (what learns, its embeddings, its loss) and a ``Source`` (batches
of given pairs). The same seed, workers and threads give the same bytes, through any number of kills.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Protocol

import torch

from memory_builder.base.progress import say
from memory_builder.errors import LossError
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import Progressed
from trainer.loop.config import LoopConfig
from trainer.loop.distributed import wait_for_all, world
from trainer.loop.gradient_cache import Batch, Learner, compute_gradients
from trainer.loop.metrics_log import Log
from trainer.loop.optimizer import rate, take_step
from trainer.loop.sampler import Order, Slice

Report = Callable[[dict[str, float]], None]
"""Called by every worker at every checkpoint."""


class Source(Protocol):
    """Where batches come from."""

    @property
    def n_pairs(self) -> int:
        """Pairs there are, numbered from 0."""
        ...

    def batches(self, slices: Iterable[Slice]) -> Iterator[Batch]:
        """The batch of each slice, in order; read ahead as the source sees fit."""
        ...


def order_of(config: LoopConfig, n_pairs: int) -> Order:
    """Which pairs each step trains on.

    Raises:
        SourceError, UsageError: there are too few for the batch.
    """
    return Order(
        n_pairs=n_pairs,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        max_steps=config.max_steps,
    )


def is_bf16(config: LoopConfig, device: torch.device) -> bool:
    """Whether embeddings are computed under bf16 autocast."""
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def autocast(config: LoopConfig, device: torch.device) -> AbstractContextManager[object]:
    """What embeddings are computed under."""
    return torch.autocast(device.type, torch.bfloat16) if is_bf16(config, device) else nullcontext()


def train(
    learner: Learner,
    source: Source,
    config: LoopConfig,
    run: Store,
    *,
    learning_rate: float,
    device: torch.device,
    report: Report = lambda _: None,
) -> None:
    """Train to the end, from the newest checkpoint on if there is one.

    Args:
        learner, source, config, run: what is trained, on which pairs, how, and where checkpoints and metrics go.
        learning_rate: its peak, if ``config.optimizer`` names none.
        device: where the learner is and batches are sent.
        report: called by every worker at every checkpoint.

    Raises:
        LossError: the loss or its gradient is not finite; the last checkpoint is as it was.
        SourceError, UsageError: there are too few pairs for the batch.
        StorageFullError: no room for a checkpoint; the one before is as it was.
    """
    order, here = order_of(config, source.n_pairs), world()
    progress = Progressed.resume(run, learner.parameters, config)
    bf16 = is_bf16(config, device)
    if progress.step and here.is_first:
        say(f"going on from step {progress.step:,} of {order.n_steps:,}")
        if progress.bf16 not in (None, bf16):
            say(f"{run.root}: bf16 was {progress.bf16} so far and is {bf16} from here on, on a {device.type} device")
    progress.bf16 = bf16
    peak = config.optimizer.learning_rate or learning_rate
    log = Log(run, progress.step, order.n_steps, config.batch_size) if here.is_first else None
    with closing(log) if log else nullcontext():
        for batch in source.batches(order.slices(here, progress.step)):
            lr = rate(config.optimizer, peak, progress.step, order.n_steps)
            figures = _step(learner, batch, config, progress, lr, device, run)
            figures["epoch"] = progress.step / order.steps_per_epoch
            is_last = progress.step == order.n_steps
            if log and (is_last or progress.step == 1 or progress.step % config.log_every == 0):
                log.add(progress.step, figures | learner.figures())
            if is_last or progress.step % config.checkpoint_every == 0:
                if log:
                    log.write()
                    progress.save(run, order.n_steps, figures["loss"], config.keep)
                wait_for_all()  # what a worker is told has been saved
                report({"step": progress.step} | figures)


def _step(
    learner: Learner,
    batch: Batch,
    config: LoopConfig,
    progress: Progressed,
    learning_rate: float,
    device: torch.device,
    run: Store,
) -> dict[str, float]:
    """Take one; what came of it."""
    on_device = {name: rows.to(device, non_blocking=True) for name, rows in batch.items()}
    loss = float(compute_gradients(learner, on_device, config.micro_batch, partial(autocast, config, device)))
    refuse = partial(_refuse_infinite, step=progress.step + 1, learning_rate=learning_rate, run=run)
    refuse("loss", loss)
    norm = take_step(progress.optimizer, learner.parameters, config.optimizer, learning_rate)
    refuse("gradient's length", norm)
    learner.after_step()
    progress.advance(config.optimizer.ema)
    return {"loss": loss, "lr": learning_rate, "gradient_norm": norm}


def _refuse_infinite(what: str, value: float, *, step: int, learning_rate: float, run: Store) -> None:
    if not math.isfinite(value):
        raise LossError(
            f"the {what} of step {step:,} is {value}, at learning rate {learning_rate:.1e}: the checkpoints in "
            f"{run.root} are as they were. Train into another --out with a lower --learning-rate, a longer --warmup or "
            "--max-norm 1"
        )
