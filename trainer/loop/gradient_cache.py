"""One step's gradients: of the whole batch over all workers, however small the pieces that fit into memory.

In pieces it is GradCache (Gao et al. 2021): embed every piece, find the loss's gradient with respect to the embeddings
of the whole batch, then embed each piece again and pass its part of that gradient on.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from trainer.loop.distributed import add_up
from trainer.loop.losses import Gathered, gather_all
from trainer.loop.optimizer import Parameters

Batch = Mapping[str, Tensor]
"""What a source yields: tensors with a row a pair. ``group`` (i64[b]) names right answers to each other."""
Autocast = Callable[[], AbstractContextManager[object]]


class Learner(Protocol):
    """What is trained."""

    @property
    def parameters(self) -> Parameters:
        """What checkpoints keep, by name, always in the same order; what of it requires a gradient learns."""
        ...

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """The embeddings that the loss is made of, each [b, d], from some pairs, each on its own."""
        ...

    def loss(self, gathered: Gathered) -> Tensor:
        """This worker's share of the loss over all workers' pairs."""
        ...

    def after_step(self) -> None:
        """What must hold again once the parameters have moved, such as a bound."""
        ...

    def figures(self) -> dict[str, float]:
        """What to log beside the loss."""
        ...


def compute_gradients(learner: Learner, batch: Batch, micro_batch: int | None, autocast: Autocast) -> Tensor:
    """Set the gradient of every parameter that learns to that of the loss over all workers' pairs; returns that loss.

    Args:
        learner: what is trained.
        batch: this worker's pairs, on its device.
        micro_batch: pairs embedded at a time; None: all at once.
        autocast: entered wherever pairs are embedded.
    """
    pieces = _pieces(batch, micro_batch)
    embedded = []
    for piece in pieces:
        with autocast():
            embedded.append(learner.embed(piece))
        if len(pieces) > 1:  # its graph goes; kept on until here so that this pass computes as the next one will
            embedded[-1] = tuple(embedding.detach() for embedding in embedded[-1])
    leaves = tuple(torch.cat(side).detach().requires_grad_() for side in zip(*embedded, strict=True))
    loss = learner.loss(gather_all(leaves, batch.get("group")))
    loss.backward()  # type: ignore[no-untyped-call]
    start = 0
    for piece, ours in zip(pieces, embedded, strict=True):
        if len(pieces) > 1:
            with autocast():
                ours = learner.embed(piece)
        _pass_on(ours, leaves, start)
        start += len(ours[0])
    return _add_up(learner.parameters, loss.detach())


def _pieces(batch: Batch, size: int | None) -> list[Batch]:
    n = len(next(iter(batch.values())))
    if size is None or size >= n:
        return [batch]
    return [{name: rows[at : at + size] for name, rows in batch.items()} for at in range(0, n, size)]


def _pass_on(ours: tuple[Tensor, ...], leaves: tuple[Tensor, ...], start: int) -> None:
    """Send the gradient that reached the leaves on to what the embeddings were computed from."""
    learnt, gradients = [], []
    for embedding, leaf in zip(ours, leaves, strict=True):
        if embedding.requires_grad and leaf.grad is not None:
            learnt.append(embedding)
            gradients.append(leaf.grad[start : start + len(embedding)])
    torch.autograd.backward(learnt, gradients)


def _add_up(parameters: Parameters, loss: Tensor) -> Tensor:
    for parameter in parameters.values():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    add_up([*(parameter.grad for parameter in parameters.values() if parameter.grad is not None), loss])
    return loss
