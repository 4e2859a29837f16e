"""The training loop: the same in one process and on every worker of a cluster.

A ``Learner`` says what is trained and with which loss, a ``BatchSource`` yields the batches. The same seed, workers and
threads give the same bytes, through any number of kills.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from typing import Protocol

import torch

from memory_builder.base.log import logger
from memory_builder.errors import LossError
from memory_builder.storage.store import Store
from trainer.loop.config import LoopConfig
from trainer.loop.distributed import wait_for_all, world
from trainer.loop.gradient_cache import Batch, Learner, compute_gradients
from trainer.loop.metrics_log import MetricsLog
from trainer.loop.sampler import BatchIndices, BatchSampler
from trainer.loop.train_state import TrainState, lr_at, take_step

Report = Callable[[dict[str, float]], None]
"""Called by every worker at every checkpoint, with the metrics of the step."""


class BatchSource(Protocol):
    """Training pairs, numbered from 0."""

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        ...

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """The batches of these indices, in order; the source may read ahead."""
        ...


def make_sampler(config: LoopConfig, n_pairs: int) -> BatchSampler:
    """The sampler of a training on ``n_pairs`` pairs.

    Raises:
        SourceError, UsageError: there are fewer pairs than the batch holds.
    """
    return BatchSampler(
        n_pairs=n_pairs,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=config.seed,
        max_steps=config.max_steps,
    )


def is_bf16(config: LoopConfig, device: torch.device) -> bool:
    """Whether pairs are embedded under bf16 autocast."""
    return config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")


def train(
    learner: Learner,
    source: BatchSource,
    config: LoopConfig,
    run: Store,
    *,
    learning_rate: float,
    device: torch.device,
    report: Report = lambda _: None,
) -> None:
    """Train to the last step, from the newest sound checkpoint if there is one.

    Args:
        learner, source, config, run: the model, its training pairs, the settings, and the folder for checkpoints and
            metrics.
        learning_rate: peak learning rate, unless ``config.optimizer`` names one.
        device: the learner's device, to which batches are sent.
        report: called by every worker at every checkpoint.

    Raises:
        LossError: the loss or the gradient norm is not finite; the last checkpoint stays as it was.
        SourceError, UsageError: there are fewer pairs than the batch holds.
        StorageFullError: no room for a checkpoint; the one before stays as it was.
    """
    sampler, here = make_sampler(config, source.n_pairs), world()
    state = TrainState.resume(run, learner.parameters, config)
    bf16 = is_bf16(config, device)
    if state.step and here.is_first:
        logger.info(f"resuming at step {state.step:,} of {sampler.n_steps:,}")
        if state.bf16 not in (None, bf16):
            logger.info(
                f"{run.root}: bf16 was {state.bf16} so far and is {bf16} from here on, on a {device.type} device"
            )
    state.bf16 = bf16
    peak = config.optimizer.learning_rate or learning_rate
    log = MetricsLog(run, state.step, sampler.n_steps, config.batch_size) if here.is_first else None
    with closing(log) if log else nullcontext():
        for batch in source.batches(sampler.indices(here, state.step)):
            lr = lr_at(config.optimizer, peak, state.step, sampler.n_steps)
            metrics = _step(learner, batch, state, lr, device, run)
            metrics["epoch"] = state.step / sampler.steps_per_epoch
            is_last = state.step == sampler.n_steps
            if log and (is_last or state.step == 1 or state.step % config.log_every == 0):
                log.add(state.step, metrics | learner.metrics())
            if is_last or state.step % config.checkpoint_every == 0:
                if log:
                    log.write()
                    state.save(run, sampler.n_steps, metrics["loss"], config.keep)
                wait_for_all()  # what a worker reports has been saved
                report({"step": state.step} | metrics)


def _step(
    learner: Learner, batch: Batch, state: TrainState, learning_rate: float, device: torch.device, run: Store
) -> dict[str, float]:
    """Move the parameters along the gradient of the global batch; returns the metrics of the step."""
    config = state.config
    on_device = {name: rows.to(device, non_blocking=True) for name, rows in batch.items()}
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=bool(state.bf16))
    loss = float(compute_gradients(learner, on_device, config.micro_batch, autocast))
    norm = take_step(state.optimizer, learner.parameters, config.optimizer, learning_rate)
    for what, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise LossError(
                f"the {what} of step {state.step + 1:,} is {value}, at learning rate {learning_rate:.1e}: the "
                f"checkpoints in {run.root} are as they were. Train into another --out with a lower --learning-rate, a "
                "longer --warmup or --max-norm 1"
            )
    learner.after_step()
    state.advance()
    return {"loss": loss, "lr": learning_rate, "gradient_norm": norm}
