"""AdamW with warm-up and cosine, and a moving average of what learns: all as named tensors, to be kept and restored."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.loop.config import OptimizerConfig

Tensors = Mapping[str, Tensor]
Parameters = Mapping[str, nn.Parameter]


def rate(config: OptimizerConfig, peak: float, step: int, n_steps: int) -> float:
    """The learning rate of step 0 … n_steps − 1."""
    n_warmup = round(config.warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def make_optimizer(parameters: Parameters, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the parameters in their order; matrices decay, what has fewer dimensions does not."""
    groups = [
        {"params": [some for some in parameters.values() if some.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [some for some in parameters.values() if some.ndim < 2], "weight_decay": 0.0},
    ]
    on_gpu = any(some.is_cuda for some in parameters.values())
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=on_gpu)


def take_step(
    optimizer: torch.optim.AdamW, parameters: Parameters, config: OptimizerConfig, learning_rate: float
) -> float:
    """Move the parameters along their gradients, and forget those; returns the gradient's length before any cut.

    Where that is no finite number nothing moves.
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
    """The optimizer's state as tensors named ``<parameter>/<what>``."""
    return {
        f"{name}/{what}": value
        for name, parameter in parameters.items()
        for what, value in sorted(optimizer.state[parameter].items())
    }


def optimizer_shapes(parameters: Parameters) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what ``optimizer_tensors`` gives once a step was taken."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape)
        shapes |= {f"{name}/step": (), f"{name}/exp_avg": shape, f"{name}/exp_avg_sq": shape}
    return shapes


def restore_optimizer(optimizer: torch.optim.AdamW, parameters: Parameters, tensors: Tensors) -> None:
    """Continue from what ``optimizer_tensors`` gave."""
    for name, parameter in parameters.items():
        state, step = optimizer.state[parameter], tensors[f"{name}/step"]
        state["step"] = step.to(parameter.device) if parameter.is_cuda else step
        for what in ("exp_avg", "exp_avg_sq"):  # laid out as the parameter is: the fused AdamW insists on it
            state[what] = torch.empty_like(parameter).copy_(tensors[f"{name}/{what}"])


def update_average(average: dict[str, Tensor], parameters: Parameters, decay: float) -> None:
    """Move the average a little towards the parameters, in place."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            average[name].lerp_(parameter, 1 - decay)
