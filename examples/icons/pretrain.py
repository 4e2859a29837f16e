"""Train the base model: a small CLIP from scratch, of open_clip's own parts, on the base-training split alone.

    uv run python examples/icons/pretrain.py --pairs ~/icons/benchmark/base --dev ~/icons/benchmark --out ~/icons/base

The same command goes on where it was killed: a step depends on the seed, its number and the state before it, and the
state is saved every few minutes. It runs on one GPU if there is one. What it leaves: `checkpoint.pt`, `metrics.jsonl`,
and `model/`, an open_clip `local-dir:` folder.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from base_data import Pairs, batch_of, decode, load_pairs
from base_model import DEV_SETS, accuracy, card, export, new_model, tokenize
from command import run
from iconify import IconsError
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Train the base model, or go on with it."""

    pairs: Path
    """Folder of the tars of base training."""
    dev: Path
    """Folder that benchmark.py wrote; its dev sets are read."""
    out: Path
    """Folder of the model, the checkpoint and the measurements."""
    pairs_seen: int = 1_000_000
    """Pairs to see, however often each."""
    batch: int = 96
    """Pairs of a step."""
    learning_rate: float = 1e-3
    """Greatest learning rate."""
    weight_decay: float = 0.2
    """Of AdamW, on matrices."""
    warmup_steps: int = 300
    """Steps until the greatest learning rate."""
    all_easy_until: float = 0.2
    """Share of all steps in which every pair is shown the easy way: black on white, by its name."""
    easy_until: float = 0.6
    """Share of all steps from which no pair is; in between fewer and fewer are."""
    start_from: Path | None = None
    """An open_clip local-dir folder to begin with; random weights unless given."""
    checkpoint_s: float = 180
    """Seconds between checkpoints."""
    evaluate_pairs: int = 50_000
    """Pairs between two measurements on the dev sets."""
    compare: Path | None = None
    """An open_clip local-dir folder to measure once on the same dev sets."""
    threads: int = 2
    """CPU threads of torch."""
    seed: int = 0
    """Seed of the weights, the order and the jitter."""
    stop_after_steps: int | None = None
    """Stop, with a checkpoint, after so many steps in all."""

    @property
    def steps(self) -> int:
        """Return the number of the last step."""
        return self.pairs_seen // self.batch


@contextmanager
def fast_matrices(device: torch.device) -> Iterator[None]:
    """On a CPU, multiply float32 matrices in bfloat16, and nothing else; a GPU has autocast for it.

    Two cores with AMX do 311 pairs/s so, 300 by autocast and 240 in float32. In that mode torch's fused attention takes
    13 times as long as its plain one, so the plain one is asked for.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class Training:
    """The model, its optimizer and the step they have reached."""

    def __init__(self, config: Pretrain, device: torch.device) -> None:
        self.config, self.device, self.step = config, device, 0
        torch.manual_seed(config.seed)
        self.model = new_model().to(device)
        if config.start_from:
            weights = load_file(config.start_from / "open_clip_model.safetensors")
            self.model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        self.optimizer = self._optimizer()
        self.loss = open_clip.ClipLoss()

    def _optimizer(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": self.config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def rate(self) -> float:
        """Return the step's learning rate: a linear start, then half a cosine to a hundredth."""
        start = (self.step + 1) / self.config.warmup_steps
        done = self.step / self.config.steps
        return self.config.learning_rate * min(1.0, start) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    def easy(self) -> float:
        """Return the share of the step's pairs that are shown without colours and by name: first all, in the end none.

        Icons come in any two colours, so what a pixel is tells nothing, and for some hundred thousand pairs nothing is
        learnt but that; of black drawings on white as much is learnt from a quarter of the pairs.
        """
        done, first, last = self.step / self.config.steps, self.config.all_easy_until, self.config.easy_until
        return float(done < last) * min(1.0, (last - done) / max(last - first, 1e-9))

    def advance(self, pairs: Pairs) -> float:
        """Do one step and return its loss."""
        given = {"batch": self.config.batch, "seed": self.config.seed, "easy": self.easy()}
        pictures, texts = batch_of(pairs, self.step, **given)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with fast_matrices(self.device):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                image, text, scale = self.model(pictures.to(self.device), texts.to(self.device))
            loss = self.loss(image.float(), text.float(), scale)
            self.optimizer.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.step += 1
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write the state whole or not at all."""
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)

    def load(self, path: Path) -> None:
        """Take up a state that was saved."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def record(out: Path, values: dict[str, Any]) -> None:
    """Add a line to `metrics.jsonl` and show it."""
    line = json.dumps(values)
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write(line + "\n")
    print(line, file=sys.stderr, flush=True)


def speed(training: Training, since: tuple[int, float]) -> float:
    """Return the pairs per second since a step and its time."""
    return (training.step - since[0]) * training.config.batch / (time.perf_counter() - since[1])


def measure(training: Training, config: Pretrain, since: tuple[int, float], losses: list[float]) -> None:
    """Measure on the dev sets, and export the model."""
    values: dict[str, Any] = {"step": training.step, "pairs": training.step * config.batch}
    values |= {"loss": round(sum(losses) / max(1, len(losses)), 4), "rate": training.rate()}
    values |= {"pairs_per_s": round(speed(training, since), 1)}
    for name in DEV_SETS:
        values[name] = round(accuracy(training.model, config.dev / name, training.device), 4)
    export(training.model, config.out / "model")
    (config.out / "model" / "README.md").write_text(card(config.start_from, config.seed, values), encoding="utf-8")
    record(config.out, values)


def compare(config: Pretrain, device: torch.device) -> None:
    """Measure another model on the same dev sets."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{config.compare}", device=device)
    values = {name: round(accuracy(model, config.dev / name, device), 4) for name in DEV_SETS}
    record(config.out, {"model": config.compare.name} | values)


def pretrain(config: Pretrain) -> str:
    """Do the whole of it, or the rest of it, and return the summary line."""
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config.out.mkdir(parents=True, exist_ok=True)
    decode(config.pairs, config.out / "pixels")
    pairs = load_pairs(config.out / "pixels", tokenize)
    if len(pairs.recolour) < config.batch:
        raise IconsError(f"{config.pairs} holds {len(pairs.recolour)} pairs, fewer than --batch {config.batch}")
    training, checkpoint = Training(config, device), config.out / "checkpoint.pt"
    if checkpoint.exists():
        training.load(checkpoint)
    elif config.compare:
        compare(config, device)
    record(config.out, {"start": training.step, "pairs": len(pairs.recolour), "device": device.type} | _plain(config))
    last = min(config.steps, config.stop_after_steps or config.steps)
    between = max(1, config.evaluate_pairs // config.batch)
    saved, since, losses = time.perf_counter(), (training.step, time.perf_counter()), []
    while training.step < last:
        losses.append(training.advance(pairs))
        if training.step % between == 0 or training.step == last:
            measure(training, config, since, losses)
            since, losses = (training.step, time.perf_counter()), []
        if time.perf_counter() - saved > config.checkpoint_s or training.step == last:
            training.save(checkpoint)
            saved = time.perf_counter()
            print(
                f"checkpoint at step {training.step}, {speed(training, since):.0f} pairs/s", file=sys.stderr, flush=True
            )
    return f"{training.step * config.batch} pairs seen; the model is in {config.out / 'model'}"


def _plain(config: Pretrain) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | float | None) else str(value)
        for name, value in asdict(config).items()
        if name != "pairs"
    }


if __name__ == "__main__":
    sys.exit(run(pretrain, Pretrain, __doc__))
