"""The process group of a training: rank, size, barrier, and the collectives that the loss needs.

Without an initialised process group there is one worker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """Rank of this worker, and the number of workers."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def world() -> World:
    """Rank and size of this process in torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(0, 1)


def wait_for_all() -> None:
    """Barrier: return when every worker has called it."""
    if world().size > 1:
        dist.barrier()


def gather(ours: Tensor) -> Tensor:
    """All-gather with gradient: [b, …] → [b · workers, …] in order of rank.

    The gradient of ``ours`` is the sum over all workers. As each worker computes its part of the loss, that is the
    gradient of the whole batch on one worker.
    """
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


def all_reduce(tensors: Iterable[Tensor]) -> None:
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
