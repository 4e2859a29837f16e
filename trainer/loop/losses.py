"""Contrastive losses over the pairs of all workers.

Each worker computes the rows of its own pairs against everyone's; the sum over workers is the loss of the whole batch,
and so is the sum of their gradients.
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
    """Embeddings of this worker's pairs beside those of everyone's."""

    ours: tuple[Tensor, ...]
    """Each [b, d], unit rows; what they are, the learner knows."""
    everyones: tuple[Tensor, ...]
    """Each [n, d], ours among them."""
    group: Tensor | None = None
    """i64[b]: pairs of one group are right answers to each other; NO_GROUP: only the pair itself."""
    groups: Tensor | None = None
    """i64[n], everyone's."""

    @property
    def place(self) -> Tensor:
        """i64[b] where our rows stand among everyone's."""
        first = self.ours[0]
        return torch.arange(len(first), device=first.device) + world().rank * len(first)


def gather_all(ours: tuple[Tensor, ...], group: Tensor | None = None) -> Gathered:
    """Exchange embeddings, and groups if there are any, with all workers."""
    everyones = tuple(gather(embedding) for embedding in ours)
    return Gathered(ours, everyones, group, None if group is None else gather(group))


def info_nce(gathered: Gathered, a: int, b: int, scale: Tensor) -> Tensor:
    """This worker's share of the symmetric InfoNCE between embeddings ``a`` and ``b`` of ``gathered``.

    With groups a pair has several right answers, each with an equal share of the probability (UniCL, Yang et al. 2022).

    Args:
        gathered: embeddings of all workers.
        a, b: which of them.
        scale: factor of the cosines.
    """
    n = len(gathered.everyones[a])
    one = scale * gathered.ours[a] @ gathered.everyones[b].T  # [rows of ours, n]
    if world().size == 1:  # alone, the other way round is the same matrix: half of the loss's work
        other, rows = one, 0
    else:
        other, rows = scale * gathered.ours[b] @ gathered.everyones[a].T, 1
    all_answers = torch.logsumexp(one, dim=1).sum() + torch.logsumexp(other, dim=rows).sum()
    return (all_answers - _right_answers(gathered, a, b, scale, one, other if rows else other.T)) / (2 * n)


def _right_answers(gathered: Gathered, a: int, b: int, scale: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The logits of the right answers both ways, summed: of the pair itself, or the mean of its group's."""
    if gathered.group is None or gathered.groups is None:
        return 2 * scale * (gathered.ours[a] * gathered.ours[b]).sum()
    place = gathered.place
    right = (gathered.group[:, None] == gathered.groups[None, :]) & (gathered.group != NO_GROUP)[:, None]
    right[torch.arange(len(place), device=place.device), place] = True
    share = right / right.sum(dim=1, keepdim=True)  # [rows of ours, n], rows add up to 1
    return (share * (one + other)).sum()


def clamp_logit_scale(logit_scale: nn.Parameter) -> None:
    """Keep the temperature where CLIP keeps it: cosines are multiplied by 1 to 100."""
    with torch.no_grad():
        logit_scale.clamp_(0, MAX_LOGIT_SCALE)
