"""Contrastive losses over the global batch.

Each worker computes the logits of its own pairs against the pairs of all workers. The sum over workers is the loss of
the global batch, and the sum of the workers' gradients is its gradient.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.loop.config import NO_GROUP
from trainer.loop.distributed import gather, world

MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Embeddings of this worker's pairs, and those of all workers."""

    ours: tuple[Tensor, ...]
    """Each [b, d], unit rows, in the order of ``Learner.embed``."""
    everyones: tuple[Tensor, ...]
    """Each [n, d], those of all workers in order of rank."""
    group: Tensor | None = None
    """i64[b]: pairs of one group are positives of each other; NO_GROUP: the pair alone."""
    groups: Tensor | None = None
    """i64[n], those of all workers."""

    @property
    def own_rows(self) -> Tensor:
        """i64[b] rows of this worker's pairs among those of all workers."""
        first = self.ours[0]
        return torch.arange(len(first), device=first.device) + world().rank * len(first)


def gather_all(ours: tuple[Tensor, ...], group: Tensor | None = None) -> Gathered:
    """Exchange embeddings, and groups if there are any, with all workers."""
    if world().size == 1:
        return Gathered(ours, ours, group, group)
    everyones = tuple(gather(embedding) for embedding in ours)
    return Gathered(ours, everyones, group, None if group is None else gather(group))


def info_nce(gathered: Gathered, a: int, b: int, scale: Tensor) -> Tensor:
    """This worker's part of the symmetric InfoNCE between embeddings ``a`` and ``b``.

    With groups a pair has several positives, each with an equal part of the target probability (UniCL, Yang et al.
    2022).

    Args:
        gathered: embeddings of all workers.
        a, b: indices of the two embeddings, such as images and texts.
        scale: factor of the cosines.
    """
    n = len(gathered.everyones[a])
    logits_ab = scale * gathered.ours[a] @ gathered.everyones[b].T  # [rows of ours, n]
    # One worker alone has the logits of b against a in the transpose: half of the loss's work.
    logits_ba = None if world().size == 1 else scale * gathered.ours[b] @ gathered.everyones[a].T
    normalisers_ab = torch.logsumexp(logits_ab, dim=1).sum()
    normalisers_ba = (torch.logsumexp(logits_ab, 0) if logits_ba is None else torch.logsumexp(logits_ba, 1)).sum()
    if gathered.group is None or gathered.groups is None:
        positives = 2 * scale * (gathered.ours[a] * gathered.ours[b]).sum()
    else:
        targets = _target_probabilities(gathered.group, gathered.groups, gathered.own_rows)
        positives = (targets * (logits_ab + (logits_ab.T if logits_ba is None else logits_ba))).sum()
    return (normalisers_ab + normalisers_ba - positives) / (2 * n)


def _target_probabilities(group: Tensor, groups: Tensor, own_rows: Tensor) -> Tensor:
    """[rows of ours, n]: equal probabilities of each row's positives."""
    is_positive = (group[:, None] == groups[None, :]) & (group != NO_GROUP)[:, None]
    is_positive[torch.arange(len(own_rows), device=own_rows.device), own_rows] = True
    return is_positive / is_positive.sum(dim=1, keepdim=True)


def clamp_logit_scale(logit_scale: nn.Parameter) -> None:
    """Clamp the temperature as CLIP does: the factor of the cosines stays between 1 and 100."""
    with torch.no_grad():
        logit_scale.clamp_(0, MAX_LOGIT_SCALE)
