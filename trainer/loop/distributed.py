"""The workers that train together, as torch.distributed knows them: rank, size, and what they tell each other.

Without an initialised process group there is one worker, and nothing is sent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """Which worker this is, of how many."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def world() -> World:
    """This worker's place."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def wait_for_all() -> None:
    """Return when every worker has come here."""
    if world().size > 1:
        dist.barrier()


def gather(ours: Tensor) -> Tensor:
    """[b, …] → [b · workers, …] in order of rank; differentiable, and every worker's loss reaches every row.

    The gradient of our rows is the sum of what all workers ask of them: with each worker's share of the loss, that of
    the whole batch on one worker.
    """
    if world().size == 1:
        return ours
    gathered: Tensor = _Gather.apply(ours)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ours: Tensor) -> Tensor:
        pieces = [torch.empty_like(ours) for _ in range(world().size)]
        dist.all_gather(pieces, ours.contiguous())
        ctx.n = len(ours)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = world().rank * ctx.n
        return total[start : start + ctx.n]


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all workers, with one message."""
    if world().size == 1:
        return
    tensors = list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()
