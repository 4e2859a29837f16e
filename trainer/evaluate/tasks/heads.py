"""Training of a linear head on frozen features, initialised with the zero-shot classifier."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, normalize

from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.numbers.metrics import SCALE


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadParams:
    """Hyperparameters: AdamW with a cosine to zero."""

    learning_rate: float
    weight_decay: float = 0.01
    epochs: int = 10
    batch_size: int = 32


def train_head(features: Floats, labels: Labels, initial: Floats, params: HeadParams, seed: int) -> Floats:
    """Minimise the cross-entropy of a cosine classifier → f32[c, d] unit rows.

    Args:
        features: f32[n, d] unit rows; n = 0 returns ``initial``.
        labels: i64[n].
        initial: f32[c, d] unit rows.
        params: hyperparameters.
        seed: seed of the order of the rows.
    """
    n_steps = params.epochs * -(-len(labels) // params.batch_size)
    if not n_steps:
        return initial
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    weights = torch.from_numpy(initial.copy()).requires_grad_()
    optimizer = torch.optim.AdamW([weights], lr=params.learning_rate, weight_decay=params.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(seed)
    with _one_thread():
        for _ in range(params.epochs):
            for batch in torch.split(torch.randperm(len(y), generator=generator), params.batch_size):
                logits = SCALE * x[batch] @ normalize(weights, dim=-1).T  # f32[b, c]
                optimizer.zero_grad()
                cross_entropy(logits, y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    head: Floats = normalize(weights.detach(), dim=-1).numpy()
    return head


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread: with products this small, threads that wait for each other cost ten times as much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
