"""A training step of gated blocks: text cached, lower layers cached too, against forwarding both towers every step.

    uv run python benchmarks/react_step.py [--model ViT-B-32] [--last-k 6] [--batch 32] [--rounds 5]

All contenders take the same step of the same learner on the same pairs, with random weights, in turns. ``both towers``
is our loop that embeds its captions every step. ``official`` does what the released code does with checkpointing:
captions are embedded every step, blocks above the first gated one are computed again in the backward pass, and the
gated block inside each of them once more. The data pipeline is measured apart. The limit is the rate at which this
machine multiplies square matrices of the same precision: a step's share of it counts what the step really multiplies.
"""

import io
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import open_clip
import torch
import tyro
from matrix_rate import matrix_rate
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from memory_builder.model.images import decode_image
from memory_builder.storage.store import Store
from trainer.loop.config import OptimizerConfig
from trainer.loop.gradient_cache import Batch, compute_gradients
from trainer.loop.train_state import make_optimizer, take_step
from trainer.react.array_cache import ArrayCache
from trainer.react.augment import AugmentConfig, augmented
from trainer.react.config import GatedConfig, ReactConfig
from trainer.react.gated import NAME
from trainer.react.learner import ReactLearner

CONTEXT = 77


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured."""

    model: str = "ViT-B-32"
    """open_clip's name."""
    last_k: int = 6
    """Gated blocks."""
    batch: int = 32
    """Pairs a step."""
    rounds: int = 5
    """Steps of each contender that count, after one that does not."""
    bf16: bool = False
    """Under bf16 autocast, as on a GPU."""


class EmbedsCaptions(ReactLearner):
    """Our learner, told captions as tokens although nothing learns from them but the image tower."""

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        with torch.no_grad():
            text = self.model.encode_text(batch["text_tokens"])
        return super().embed({"pixels": batch["pixels"], "text_embeddings": text})


class Official(EmbedsCaptions):
    """Checkpointed as in the released code."""

    def _upper(self, x: Tensor) -> Tensor:
        assert self.tower is not None
        blocks = self.tower.blocks
        for block in blocks[self.first :]:
            x = checkpoint(_nested, block, x, use_reentrant=False) if x.requires_grad else _nested(block, x)
        return self.tower.upper(x, len(blocks))


def _nested(block: Any, x: Tensor) -> Tensor:
    gated = getattr(block, NAME)
    x = checkpoint(gated, x, use_reentrant=False) if x.requires_grad else gated(x)
    return type(block).forward(block, x)  # without the hook, which would go through the gates again


def contenders(config: Config, device: torch.device) -> dict[str, tuple[ReactLearner, Batch]]:
    """Each with the batch it is given."""
    react = ReactConfig(gated=GatedConfig(last_k=config.last_k))
    with device:
        model = open_clip.create_model(config.model)
    plain = ReactLearner(model, react)
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    pixels = torch.randint(0, 256, (config.batch, height, width, 3), dtype=torch.uint8, device=device)
    tokens = torch.randint(1, model.vocab_size - 1, (config.batch, CONTEXT), device=device)
    with torch.no_grad():
        text = model.encode_text(tokens)
    learners = {"text cached": plain}
    for name, kind in (("both towers", EmbedsCaptions), ("official", Official)):
        learner = object.__new__(kind)  # the same model and parameters: only what a step computes differs
        learner.__dict__ |= plain.__dict__
        learner._from_pixels = learner._whole_image
        learners[name] = learner
    batches: dict[str, Batch] = {
        name: {"pixels": pixels, "text_embeddings": text, "text_tokens": tokens} for name in learners
    }
    lower = plain.frozen_outputs(pixels)
    found = {name: (learner, batches[name]) for name, learner in learners.items()}
    return found | {"text and lower layers cached": (plain, {"image_tokens": lower, "text_embeddings": text})}


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What a step took, the medians of some."""

    wall_s: float
    cpu_s: float
    """Of all threads: where other programs want the same cores, the steadier of the two."""
    multiply_adds: float


def steps(config: Config, device: torch.device) -> dict[str, Spent]:
    """Each contender's, taken in turns. What they multiply is counted in the round that is not timed."""
    found = contenders(config, device)
    optimizer_config = OptimizerConfig()
    parameters = next(iter(found.values()))[0].parameters
    optimizer = make_optimizer(parameters, optimizer_config)
    wall_s: dict[str, list[float]] = {name: [] for name in found}
    cpu_s: dict[str, list[float]] = {name: [] for name in found}
    multiply_adds = {}
    for number in range(config.rounds + 1):
        for name, (learner, batch) in found.items():
            _wait(device)
            started, cpu = time.perf_counter(), time.process_time()
            with nullcontext() if number else FlopCounterMode(display=False) as counter:
                compute_gradients(learner, batch, None, _autocast(config, device))
            take_step(optimizer, parameters, optimizer_config, 1e-4)
            _wait(device)
            if counter:
                multiply_adds[name] = counter.get_total_flops() / 2
            else:
                wall_s[name].append(time.perf_counter() - started)
                cpu_s[name].append(time.process_time() - cpu)
    medians = {name: (float(np.median(wall_s[name])), float(np.median(cpu_s[name]))) for name in found}
    return {
        name: Spent(wall_s=wall, cpu_s=cpu, multiply_adds=multiply_adds[name]) for name, (wall, cpu) in medians.items()
    }


def _autocast(config: Config, device: torch.device) -> Callable[[], Any]:
    return (lambda: torch.autocast(device.type, torch.bfloat16)) if config.bf16 else nullcontext


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def pipeline(n: int = 64) -> dict[str, float]:
    """Pictures a second of one reader."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(noise).resize((512, 384), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    look = AugmentConfig(size=224, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0)
    resize = open_clip.image_transform(224, is_train=False).transforms[0]
    with TemporaryDirectory() as folder:
        rows = ArrayCache(Store(Path(folder)), "rows", n, n)
        rows.fill("lower layers", lambda places: np.zeros((len(places), 50, 768), np.float16))
        works: dict[str, Callable[[int], object]] = {
            "augmented (react)": lambda i: augmented(buffer.getvalue(), look, 0, i),
            "decoded and resized (none)": lambda _: np.array(resize(decode_image(buffer.getvalue()))),
            "lower layers read from the cache": lambda i: rows.read(np.array([i])),
        }
        rates = {}
        for name, work in works.items():
            work(0)
            started = time.perf_counter()
            for i in range(n):
                work(i)
            rates[name] = n / (time.perf_counter() - started)
    return rates


def main(config: Config) -> None:
    """Print seconds a step and ratios of medians."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{config.model}, last_k {config.last_k}, batch {config.batch}, {device}, {torch.get_num_threads()} threads")
    found = steps(config, device)
    limit = matrix_rate(torch.bfloat16 if config.bf16 else torch.float32, device)
    for name, step in sorted(found.items(), key=lambda each: -each[1].wall_s):
        times = f"{step.wall_s:8.3f} s a step, {step.cpu_s:8.3f} s of CPU   {config.batch / step.wall_s:8.1f} pairs/s"
        share = step.multiply_adds / step.wall_s / limit
        print(f"{name:32} {times}   {step.multiply_adds / 1e9:8.1f} G multiply-adds, {share:.2f} of the limit")
    print(f"limit: {limit / 1e9:,.0f} G multiply-adds/s")
    for ours in ("text cached", "text and lower layers cached"):
        for other in ("both towers", "official"):
            one, two = found[ours], found[other]
            ratios = f"{two.wall_s / one.wall_s:.2f} x, by CPU time {two.cpu_s / one.cpu_s:.2f} x"
            print(
                f"{ours}: {ratios} {other}, which multiplies {two.multiply_adds / one.multiply_adds:.2f} times as much"
            )
    if device.type == "cuda":
        print(f"most memory on the GPU: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    for name, rate in pipeline().items():
        print(f"data pipeline, one reader: {rate:,.0f} pictures/s {name}")


if __name__ == "__main__":
    main(tyro.cli(Config))
