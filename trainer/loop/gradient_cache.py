"""Gradients of one step: those of the loss over the global batch, whatever number of pairs fits into memory.

``micro_batch`` is GradCache (Gao et al. 2021): embed every piece without its graph, take the loss's gradient with
respect to the embeddings of the whole batch, then embed each piece again and backpropagate its part of that gradient.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from trainer.loop.distributed import all_reduce
from trainer.loop.losses import Gathered, gather_all
from trainer.loop.train_state import Parameters

Batch = Mapping[str, Tensor]
"""Tensors with one row for each pair. ``group`` (i64[b]), if present, names positives of each other."""
Autocast = Callable[[], AbstractContextManager[object]]


class Learner(Protocol):
    """A model with its trainable parameters and its loss."""

    @property
    def parameters(self) -> Parameters:
        """Parameters that checkpoints hold, by name, always in the same order; trainable if they require a gradient."""
        ...

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """The embeddings that the loss compares, each [b, d]; every row depends on its own pair alone."""
        ...

    def loss(self, gathered: Gathered) -> Tensor:
        """This worker's part of the loss over the global batch."""
        ...

    def after_step(self) -> None:
        """Restore constraints once the parameters have moved, such as the bounds of the temperature."""
        ...

    def metrics(self) -> dict[str, float]:
        """Numbers to log beside the loss."""
        ...


def compute_gradients(learner: Learner, batch: Batch, micro_batch: int | None, autocast: Autocast) -> Tensor:
    """Set the gradient of every trainable parameter to that of the loss over the global batch; returns that loss.

    Args:
        learner: the model.
        batch: this worker's pairs, on its device.
        micro_batch: pairs embedded at a time; None: all at once.
        autocast: context in which pairs are embedded.
    """
    n = len(next(iter(batch.values())))
    if micro_batch is None or micro_batch >= n:
        with autocast():
            embeddings = learner.embed(batch)
        loss, gradients = _loss_and_gradients(learner, embeddings, batch)
        _backpropagate(embeddings, gradients)
    else:
        loss = _compute_in_pieces(learner, batch, micro_batch, autocast)
    for parameter in learner.parameters.values():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    all_reduce([*(own.grad for own in learner.parameters.values() if own.grad is not None), loss])
    return loss


def _compute_in_pieces(learner: Learner, batch: Batch, size: int, autocast: Autocast) -> Tensor:
    """Set the gradients of this worker's part of the loss, ``size`` pairs at a time; returns that part."""
    n = len(next(iter(batch.values())))
    pieces = [{name: rows[at : at + size] for name, rows in batch.items()} for at in range(0, n, size)]
    detached = []
    for piece in pieces:
        with autocast():  # with gradient, although its graph is dropped: both passes must compute alike
            detached.append(tuple(embedding.detach() for embedding in learner.embed(piece)))
    whole = tuple(torch.cat(rows) for rows in zip(*detached, strict=True))
    loss, gradients = _loss_and_gradients(learner, whole, batch)
    for start, piece in zip(range(0, n, size), pieces, strict=True):
        with autocast():
            embeddings = learner.embed(piece)
        _backpropagate(embeddings, [None if rows is None else rows[start : start + size] for rows in gradients])
    return loss


def _loss_and_gradients(
    learner: Learner, embeddings: tuple[Tensor, ...], batch: Batch
) -> tuple[Tensor, list[Tensor | None]]:
    """The loss, and its gradient with respect to each of the embeddings."""
    detached = tuple(rows.detach().requires_grad_() for rows in embeddings)
    loss = learner.loss(gather_all(detached, batch.get("group")))
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), [rows.grad for rows in detached]


def _backpropagate(embeddings: tuple[Tensor, ...], gradients: list[Tensor | None]) -> None:
    """Continue the backward pass from the embeddings; those of a frozen tower have no graph."""
    trained = [(rows, grad) for rows, grad in zip(embeddings, gradients, strict=True) if rows.requires_grad]
    torch.autograd.backward([rows for rows, _ in trained], [grad for _, grad in trained])
