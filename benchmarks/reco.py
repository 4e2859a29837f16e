"""RECO's training step and inference, beside the same model on torch's own encoder layer and beside CLIP alone.

    uv run python benchmarks/reco.py                        # steps at d = 512, k = 10, batch 4,096
    uv run python benchmarks/reco.py --memory MEMORY        # also neighbour search beside bare faiss, and inference

A step is whole: reading float16 vectors that lie in memory, both fusions, three losses, backward, AdamW. The peer calls
``nn.TransformerEncoderLayer`` on [query; neighbours] and takes the first position; everything else is the same code.
The floor is the arithmetic that cannot be left out, about 6.3 d² multiply-adds a side and three products of the batch
with itself, three times for forward and backward, at the rate this machine multiplies square matrices.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
import tyro
from matrix_rate import matrix_rate
from torch import Tensor
from torch.nn.functional import normalize

from memory_builder import Memory
from memory_builder.base.types import NO_ROW
from memory_builder.storage.store import Store
from trainer.loop.gradient_cache import compute_gradients
from trainer.reco.config import FusionConfig, LookupConfig
from trainer.reco.fusion import Fusion, Reco
from trainer.reco.learner import RecoLearner
from trainer.reco.lookup import look_up
from trainer.reco.model import RecoModel

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is timed."""

    d: int = 512
    k: int = 10
    batch: int = 4_096
    steps: int = 5
    """Steps of each contender, by turns; medians count."""
    threads: int = 2
    memory: str | None = None
    """A memory with both sides indexed, for search and inference; its own width counts there."""
    queries: int = 4_096


class WholeLayer(Fusion):
    """The same fusion, computed for every position by torch's own layer."""

    def forward(self, query: Tensor, neighbours: Tensor, missing: Tensor) -> Tensor:
        """See ``Fusion``."""
        sequence = torch.cat([query[:, None], neighbours], dim=1)
        padding = torch.cat([missing.new_zeros(len(query), 1), missing], dim=1)
        assert self.layer is not None
        return normalize(self.layer(sequence, src_key_padding_mask=padding)[:, 0], dim=-1)


def learner(config: Bench, fusion: type[Fusion]) -> RecoLearner:
    """A learner with this kind of fusion, the same weights for all."""
    torch.manual_seed(0)
    reco = Reco(FusionConfig(k=config.k), config.d)
    settings = FusionConfig(k=config.k)
    others = [fusion(settings, config.d) for _ in range(2)]
    for other, own in zip(others, (reco.image, reco.text), strict=True):
        other.load_state_dict(own.state_dict())
    reco.image, reco.text = others
    return RecoLearner(reco.train())


def step_of(some: RecoLearner, vectors: Tensor, bf16: bool) -> Callable[[], float]:
    """One whole step."""
    optimizer = torch.optim.AdamW(some.parameters.values(), lr=1e-4)

    def step() -> float:
        autocast = (lambda: torch.autocast("cpu", torch.bfloat16)) if bf16 else nullcontext
        loss = compute_gradients(some, {"vectors": vectors}, None, autocast)
        optimizer.step()
        optimizer.zero_grad()
        some.after_step()
        return float(loss)

    return step


def by_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, one after another in every round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(some) for name, some in seconds.items()}


def training(config: Bench) -> None:
    """Print steps a second of both, in both precisions."""
    drawn = torch.randn(config.batch, 2 + 2 * config.k, config.d, generator=torch.Generator().manual_seed(0))
    vectors = normalize(drawn, dim=-1).half()
    d, b = config.d, config.batch
    positions = (config.k + 1) * 16 / d  # scores and mixture: eight heads over query and neighbours, there and back
    products = 2 * b * (6 + positions) * d**2
    losses = 3 * b**2 * d
    for bf16 in (False, True):
        contenders = {
            name: step_of(learner(config, fusion), vectors, bf16)
            for name, fusion in (("ours", Fusion), ("whole layer", WholeLayer))
        }
        found = by_turns(contenders, config.steps)
        loss_rate = matrix_rate(torch.float32, CPU)  # the loss is computed in float32 either way
        floor = 3 * (products / matrix_rate(torch.bfloat16 if bf16 else torch.float32, CPU) + losses / loss_rate)
        name = "bf16" if bf16 else "fp32"
        print(
            f"{name}, d {d}, k {config.k}, batch {b}: ours {found['ours']:.2f} s a step, whole layer "
            f"{found['whole layer']:.2f} s, {found['whole layer'] / found['ours']:.2f} times as fast "
            f"(≥ {2.5 if bf16 else 3}); floor {floor:.2f} s, share {floor / found['ours']:.2f}; "
            f"{vectors.nbytes / 1e6:.0f} MB of vectors a step, {vectors.nbytes / found['ours'] / 1e9:.2f} GB/s"
        )


def searching(config: Bench, memory: Memory) -> None:
    """Print the rate of looking neighbours up beside faiss's own search of the same parts."""
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    drawn = np.random.default_rng(0).choice(ids, config.queries, replace=False)
    images = memory.vectors(drawn)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    view = memory.snapshot.view("image", memory.store.root)
    setting = memory.tuning("image")["sides"]["image"]
    parts = [
        faiss.read_index(str(Path(Store(memory.store.root).full(view.index)) / "parts" / f"{name}.faiss"))
        for name in view.parts
    ]
    for part in parts:
        faiss.extract_index_ivf(part).nprobe = setting["nprobe"]

    def bare() -> None:
        heap = faiss.ResultHeap(len(images), config.k * max(1, setting["refine"]), keep_max=True)
        for part in parts:
            heap.add_result(*part.search(images, config.k * max(1, setting["refine"])))
        heap.finalize()
        memory.vectors(np.where(heap.I[:, : config.k] < 0, NO_ROW, heap.I[:, : config.k]), "text")

    found = by_turns(
        {"ours": lambda: look_up(memory, images, "image", LookupConfig(), config.k), "bare faiss": bare}, config.steps
    )
    print(
        f"{len(images):,} neighbour look-ups in {len(memory):,} rows with what is fused: ours "
        f"{len(images) / found['ours']:,.0f} a second, bare faiss {len(images) / found['bare faiss']:,.0f}, "
        f"{found['bare faiss'] / found['ours']:.2f} of its rate (≥ 0.9)"
    )


def inference(config: Bench, memory: Memory) -> None:
    """Print what refining adds to CLIP, split into search and fusion."""
    torch.manual_seed(0)
    encoder = memory.encoder
    model = RecoModel(
        Reco(FusionConfig(k=config.k), encoder.d).eval(),
        LookupConfig(),
        encoder.config,
        encoder.fingerprint,
        "",
        config.k,
    )
    size = encoder.image_size
    for n in (1, 256):
        pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)
        vectors = encoder.encode_images(pixels).astype(np.float32)
        found = model.find(vectors, "image", memory)
        seconds = by_turns(
            {
                "CLIP": lambda pixels=pixels: encoder.encode_images(pixels),
                "search": lambda vectors=vectors: model.find(vectors, "image", memory),
                "fusion": lambda vectors=vectors, found=found: model.fuse(vectors, found.vectors, "image"),
            },
            max(5, config.steps),
        )
        told = ", ".join(f"{name} {1e3 * some / n:.2f} ms" for name, some in seconds.items())
        print(
            f"one picture of {n}: {told}; refining adds {(seconds['search'] + seconds['fusion']) / seconds['CLIP']:.2f}"
        )


def main(config: Bench) -> None:
    """Time what was asked for."""
    torch.set_num_threads(config.threads)
    faiss.omp_set_num_threads(config.threads)
    training(config)
    if config.memory is not None:
        memory = Memory.open(config.memory)
        searching(config, memory)
        inference(config, memory)


if __name__ == "__main__":
    main(tyro.cli(Bench))
