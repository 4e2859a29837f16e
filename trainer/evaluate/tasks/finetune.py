"""Fine-tuning: the image tower, or its last layers, learns with the head from a few pictures of each class.

AdamW, cosine, ten epochs, 3e-5 and weight decay 0.1, head started from the class names: Wortsman et al., Robust
fine-tuning of zero-shot models (2022). The text tower is not used again once the head has been made.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from memory_builder.errors import UsageError
from trainer.evaluate.numbers.arrays import Floats, Labels, finite
from trainer.evaluate.numbers.metrics import SCALE, Answers, answers, linear
from trainer.evaluate.sets.datasets import Dataset
from trainer.evaluate.sets.features import picture_batches
from trainer.evaluate.sets.towers import Towers
from trainer.evaluate.tasks.linear_probe import Lesson
from trainer.evaluate.tasks.shots import draw


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneParams:
    """AdamW with a cosine to zero."""

    learning_rate: float = 3e-5
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.1
    epochs: int = 10
    batch_size: int = 32
    last_layers: int | None = None
    """Transformer blocks that learn, with what follows them; None: the whole tower."""


def grid(last_layers: int | None) -> tuple[TuneParams, ...]:
    """The settings to choose from, the default first."""
    default = TuneParams(last_layers=last_layers)
    return (default, *(replace(default, learning_rate=rate) for rate in (1e-5, 1e-4)))


def tune(towers: Towers, lesson: Lesson, shots: str, seed: int, params: TuneParams) -> Answers:
    """Train a copy of the image tower on one draw and answer with it; the model that was given stays as it is.

    Raises:
        UsageError: the tower has no blocks to count, or not so many.
        EncoderError: what was trained makes vectors that are not finite.
    """
    labels = lesson.train.labels
    chosen = draw(labels, shots, seed)
    keys = lesson.train.keys
    visual = copy.deepcopy(towers.model.visual)
    trained = _learning(visual, params.last_layers)
    head = torch.tensor(lesson.classifier, device=towers.device, requires_grad=True)
    by_key = {keys[i]: int(labels[i]) for i in chosen}
    pixels, truth = _read(lesson.train.dataset, towers, by_key)
    _train(towers, visual, trained, head, pixels, truth, params, seed)
    images = _encode(towers, visual, lesson.test.dataset)
    unit_head: Floats = normalize(head.detach(), dim=-1).cpu().numpy()
    return answers(linear(images, unit_head), lesson.test.labels, len(unit_head))


def _learning(visual: Any, last_layers: int | None) -> list[torch.nn.Parameter]:
    """Mark what learns, and list it."""
    if last_layers is None:
        visual.requires_grad_(True)
        return list(visual.parameters())
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or not 0 < last_layers <= len(blocks):
        there = "is no open_clip transformer" if blocks is None else f"has {len(blocks)} blocks"
        raise UsageError(f"--last-layers {last_layers}: the image tower {there}; leave it out to train all of it")
    visual.requires_grad_(False)
    learning = [parameter for block in blocks[-last_layers:] for parameter in block.parameters()]
    learning += [*visual.ln_post.parameters(), *([visual.proj] if visual.proj is not None else [])]
    for parameter in learning:
        parameter.requires_grad_(True)
    return learning


def _train(
    towers: Towers,
    visual: Any,
    trained: list[torch.nn.Parameter],
    head: torch.Tensor,
    pixels: Any,
    truth: Labels,
    params: TuneParams,
    seed: int,
) -> None:
    """The tower stays in evaluation mode: no dropout, no statistics of these few pictures."""
    n_steps = params.epochs * -(-len(truth) // params.batch_size)
    groups = [{"params": trained, "lr": params.learning_rate}, {"params": [head], "lr": params.head_learning_rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=params.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(truth).to(towers.device)
    for _ in range(params.epochs):
        for batch in torch.split(torch.randperm(len(truth), generator=generator), params.batch_size):
            features = normalize(_pooled(visual(towers.normalised(pixels[batch.numpy()]))), dim=-1)  # f32[b, d]
            loss = cross_entropy(SCALE * features @ normalize(head, dim=-1).T, labels[batch.to(towers.device)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _read(dataset: Dataset, towers: Towers, by_key: dict[str, int]) -> tuple[Any, Labels]:
    """(u8[n, h, w, 3], i64[n]) the chosen pictures, decoded, in the set's order."""
    batches, labels = [], []
    for examples, pixels in picture_batches(dataset, towers, 64, frozenset(by_key)):
        batches.append(pixels)
        labels += [by_key[example.key] for example in examples]
    return np.concatenate(batches), np.array(labels, np.int64)


def _encode(towers: Towers, visual: Any, dataset: Dataset) -> Floats:
    """f32[n, d] unit rows of all pictures of a set, through another image tower."""
    rows = np.concatenate(list(_encoded(towers, visual, dataset)))
    return finite(rows, f"{towers.name}, fine-tuned,", "pictures")


def _encoded(towers: Towers, visual: Any, dataset: Dataset) -> Iterator[Floats]:
    for _, pixels in picture_batches(dataset, towers, 64):
        with torch.inference_mode():
            yield normalize(_pooled(visual(towers.normalised(pixels))), dim=-1).float().cpu().numpy()


def _pooled(made: Any) -> torch.Tensor:
    """f32[b, d] of what an image tower gives: CoCa's gives its tokens too."""
    pooled: torch.Tensor = made[0] if isinstance(made, tuple) else made
    return pooled
