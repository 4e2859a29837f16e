"""The state of a training: parameters, AdamW, moving average and step, and how checkpoints hold it as named tensors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memory_builder.storage.store import Store
from trainer.loop.checkpoint import (
    AVERAGE,
    OPTIMIZER,
    TRAINABLE,
    assign,
    newest_sound_checkpoint,
    read_tensors,
    refuse_other_shapes,
    write_checkpoint,
)
from trainer.loop.config import LoopConfig, OptimizerConfig

Tensors = Mapping[str, Tensor]
Parameters = Mapping[str, nn.Parameter]


class TrainState:
    """Parameters, their optimizer, their moving average, and the number of steps taken."""

    def __init__(self, parameters: Parameters, config: LoopConfig) -> None:
        self.parameters, self.config, self.step = parameters, config, 0
        self.bf16: bool | None = None
        self.trainable: Parameters = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
        self.optimizer = make_optimizer(self.trainable, config.optimizer)
        self.average: dict[str, Tensor] | None = None
        if config.optimizer.ema is not None:
            self.average = {name: tensor.detach().clone() for name, tensor in parameters.items()}

    @classmethod
    def resume(cls, run: Store, parameters: Parameters, config: LoopConfig) -> "TrainState":
        """The state of the newest sound checkpoint, or the initial one.

        Raises:
            ConfigMismatchError: the checkpoint holds other parameters.
        """
        state, record = cls(parameters, config), newest_sound_checkpoint(run)
        if record is not None:
            assign(parameters, read_tensors(run, record, TRAINABLE), run.root)
            stored = read_tensors(run, record, OPTIMIZER)
            refuse_other_shapes(stored, optimizer_shapes(state.trainable), run.root)
            restore_optimizer(state.optimizer, state.trainable, stored)
            if state.average is not None:
                average = read_tensors(run, record, AVERAGE)
                refuse_other_shapes(average, {name: tuple(own.shape) for name, own in parameters.items()}, run.root)
                state.average.update(average)
                state.average = {name: own.to(parameters[name].device) for name, own in state.average.items()}
            state.step, state.bf16 = record.step, record.bf16
        return state

    def advance(self) -> None:
        """Count a step, and move the average towards the parameters."""
        self.step += 1
        ema = self.config.optimizer.ema
        if self.average is not None and ema is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    self.average[name].lerp_(parameter, 1 - ema)

    def save(self, run: Store, n_steps: int, loss: float, keep: int) -> None:
        """Write a checkpoint, then remove all but the newest ``keep``."""
        tensors: dict[str, Tensors] = {
            TRAINABLE: self.parameters,
            OPTIMIZER: optimizer_tensors(self.optimizer, self.trainable),
        }
        if self.average is not None:
            tensors[AVERAGE] = self.average
        write_checkpoint(run, tensors, keep, step=self.step, n_steps=n_steps, loss=loss, bf16=self.bf16)


def lr_at(config: OptimizerConfig, peak: float, step: int, n_steps: int) -> float:
    """Learning rate of a step (0 … n_steps − 1): linear warm-up, then a cosine to zero."""
    n_warmup = round(config.warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def make_optimizer(parameters: Parameters, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters in their order, with weight decay on tensors of two or more dimensions."""
    groups = [
        {"params": [own for own in parameters.values() if own.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [own for own in parameters.values() if own.ndim < 2], "weight_decay": 0.0},
    ]
    on_gpu = any(own.is_cuda for own in parameters.values())
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=on_gpu)


def take_step(
    optimizer: torch.optim.AdamW, parameters: Parameters, config: OptimizerConfig, learning_rate: float
) -> float:
    """Take an optimizer step and clear the gradients; returns the gradient norm before clipping.

    A norm that is not finite moves nothing.
    """
    limit = math.inf if config.max_norm is None else config.max_norm
    norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad()
    return norm


def optimizer_tensors(optimizer: torch.optim.AdamW, parameters: Parameters) -> dict[str, Tensor]:
    """The optimizer's state as tensors named ``<parameter>/<entry>``."""
    return {
        f"{name}/{entry}": value
        for name, parameter in parameters.items()
        for entry, value in sorted(optimizer.state[parameter].items())
    }


def optimizer_shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ``optimizer_tensors`` after a step."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape)
        shapes |= {f"{name}/step": (), f"{name}/exp_avg": shape, f"{name}/exp_avg_sq": shape}
    return shapes


def restore_optimizer(optimizer: torch.optim.AdamW, parameters: Parameters, tensors: Tensors) -> None:
    """Set the optimizer's state to tensors that ``optimizer_tensors`` returned."""
    for name, parameter in parameters.items():
        state, step = optimizer.state[parameter], tensors[f"{name}/step"]
        state["step"] = step.to(parameter.device) if parameter.is_cuda else step
        for entry in ("exp_avg", "exp_avg_sq"):  # the fused AdamW wants the parameter's memory layout
            state[entry] = torch.empty_like(parameter).copy_(tensors[f"{name}/{entry}"])
