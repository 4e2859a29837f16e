"""Fine-tuning: train the image tower, or its last layers, and the head on a few pictures of each class.

AdamW, cosine, ten epochs, 3e-5 and weight decay 0.1, head started from the class names: Wortsman et al., Robust
fine-tuning of zero-shot models (2022). The text tower only initialises the head.
"""

import copy
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
from trainer.evaluate.tasks.linear_probe import FewShotSplit
from trainer.evaluate.tasks.shots import draw


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneParams:
    """Hyperparameters: AdamW with a cosine to zero."""

    learning_rate: float = 3e-5
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.1
    epochs: int = 10
    batch_size: int = 32
    last_layers: int | None = None
    """Number of last transformer blocks to train, with pooling and projection; None: the whole tower."""


def grid(last_layers: int | None) -> tuple[TuneParams, ...]:
    """Hyperparameters to choose from, the default first."""
    default = TuneParams(last_layers=last_layers)
    return (default, *(replace(default, learning_rate=lr) for lr in (1e-5, 1e-4)))


def tune(towers: Towers, split: FewShotSplit, shots: str, seed: int, params: TuneParams) -> Answers:
    """Train a copy of the image tower on one draw of pictures, and predict with it.

    Raises:
        UsageError: the tower has fewer blocks than ``last_layers``, or none that can be counted.
        EncoderError: an embedding of the trained tower is not finite.
    """
    labels = split.train.labels
    chosen = draw(labels, shots, seed)
    keys = split.train.keys
    visual = copy.deepcopy(towers.model.visual)
    head = torch.tensor(split.classifier, device=towers.device, requires_grad=True)
    model = _Trained(visual=visual, parameters=_unfreeze(visual, params.last_layers), head=head)
    by_key = {keys[i]: int(labels[i]) for i in chosen}
    pixels, truth = _read(split.train.dataset, towers, by_key)
    _train(towers, model, pixels, truth, params, seed)
    images = _encode(towers, visual, split.test.dataset)
    unit_head: Floats = normalize(head.detach(), dim=-1).cpu().numpy()
    return answers(linear(images, unit_head), split.test.labels, len(unit_head))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    visual: Any
    parameters: list[torch.nn.Parameter]
    """Trained parameters of ``visual``."""
    head: torch.Tensor


def _unfreeze(visual: Any, last_layers: int | None) -> list[torch.nn.Parameter]:
    """Let the last layers of an image tower require a gradient; returns their parameters."""
    if last_layers is None:
        visual.requires_grad_(True)
        return list(visual.parameters())
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or not 0 < last_layers <= len(blocks):
        reason = "is no open_clip transformer" if blocks is None else f"has {len(blocks)} blocks"
        raise UsageError(f"--last-layers {last_layers}: the image tower {reason}; leave it out to train all of it")
    visual.requires_grad_(False)
    trained = [parameter for block in blocks[-last_layers:] for parameter in block.parameters()]
    trained += [*visual.ln_post.parameters(), *([visual.proj] if visual.proj is not None else [])]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def _train(towers: Towers, model: _Trained, pixels: Any, truth: Labels, params: TuneParams, seed: int) -> None:
    """Minimise the cross-entropy. The tower stays in evaluation mode: no dropout, no statistics of few pictures."""
    n_steps = params.epochs * -(-len(truth) // params.batch_size)
    groups = [
        {"params": model.parameters, "lr": params.learning_rate},
        {"params": [model.head], "lr": params.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=params.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(truth).to(towers.device)
    for _ in range(params.epochs):
        for batch in torch.split(torch.randperm(len(truth), generator=generator), params.batch_size):
            features = normalize(_pooled(model.visual(towers.normalised(pixels[batch.numpy()]))), dim=-1)  # f32[b, d]
            loss = cross_entropy(SCALE * features @ normalize(model.head, dim=-1).T, labels[batch.to(towers.device)])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _read(dataset: Dataset, towers: Towers, by_key: dict[str, int]) -> tuple[Any, Labels]:
    """(u8[n, h, w, 3] pictures of these keys in the set's order, i64[n] their labels)."""
    batches, labels = [], []
    for examples, pixels in picture_batches(dataset, towers, 64, frozenset(by_key)):
        batches.append(pixels)
        labels += [by_key[example.key] for example in examples]
    return np.concatenate(batches), np.array(labels, np.int64)


def _encode(towers: Towers, visual: Any, dataset: Dataset) -> Floats:
    """f32[n, d] unit rows of all pictures of a set, encoded with ``visual``."""
    rows = []
    with torch.inference_mode():
        for _, pixels in picture_batches(dataset, towers, 64):
            rows.append(normalize(_pooled(visual(towers.normalised(pixels))), dim=-1).float().cpu().numpy())
    return finite(np.concatenate(rows), f"{towers.name}, fine-tuned,", "pictures")


def _pooled(output: Any) -> torch.Tensor:
    """f32[b, d] of an image tower's output; CoCa's is a tuple with the tokens."""
    pooled: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return pooled
