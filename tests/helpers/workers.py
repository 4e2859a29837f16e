"""Loss and gradients of one, two and four real processes over the same batch, in float64; prints the differences.

One process imports torch and forks the workers before anything runs in threads.
"""

import json
import math
import os
import socket
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.functional import normalize

from helpers.tiny_runs import react_config
from memory_builder.model.encoder import Encoder, EncoderConfig
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import pack
from trainer.loop.distributed import World, world
from trainer.loop.gradient_cache import compute_gradients
from trainer.react.array_cache import ArrayCache
from trainer.react.learner import ReactLearner
from trainer.react.subset import open_subset, scan_tars

N_PAIRS = 16
CASES = {
    "gated-image": ({}, None, False),
    "gated-image, in pieces, with groups": ({}, 3, True),
    "full": ({"mode": "full"}, None, False),
}


def work(rank: int, size: int, model: str, out: Path, port: int) -> None:
    """What one worker finds, written by the first."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    assert world() == World(rank, size)
    for number, (config, micro_batch, has_groups) in enumerate(CASES.values()):
        found = gradients(model, config, micro_batch, has_groups)
        if rank == 0:
            (out / f"{size}-{number}.safetensors").write_bytes(pack(found))
    fill_parts(out / f"parts-{size}")
    find_pairs(out / "subset", out / f"cache-{size}")
    dist.destroy_process_group()


def gradients(model: str, config: dict, micro_batch: int | None, has_groups: bool) -> dict[str, torch.Tensor]:
    """The loss, and every parameter's gradient."""
    encoder = Encoder(EncoderConfig(model=model, precision="fp32"))
    encoder.model.double()
    torch.manual_seed(0)
    learner = ReactLearner(encoder.model, react_config(**config))
    with torch.no_grad():
        for name, some in learner.parameters.items():
            if "alpha" in name:
                some.fill_(0.4)
    generator = torch.Generator().manual_seed(1)
    batch = {
        "pixels": torch.randint(0, 256, (N_PAIRS, 32, 32, 3), dtype=torch.uint8, generator=generator),
        "text_embeddings": normalize(torch.randn(N_PAIRS, 16, generator=generator), dim=-1),
    }
    if learner.config.trains_texts:
        del batch["text_embeddings"]
        batch["text_tokens"] = torch.randint(1, 400, (N_PAIRS, 16), generator=generator)
    if has_groups:
        batch["group"] = torch.arange(N_PAIRS) // 3 - 1
    here, share = world(), N_PAIRS // world().size
    mine = {name: rows[here.rank * share : (here.rank + 1) * share] for name, rows in batch.items()}
    loss = compute_gradients(learner, mine, micro_batch, nullcontext)
    return {"loss": loss} | {name: some.grad for name, some in learner.parameters.items() if some.grad is not None}


def fill_parts(folder: Path) -> None:
    """Every worker reads what all have filled."""
    rows = ArrayCache(Store(folder), "rows", 10, 3)
    rows.fill("rows", lambda places: places.astype(np.float32)[:, None])
    assert rows.read(np.array([9, 0, 4]))[:, 0].tolist() == [9, 0, 4]


def find_pairs(folder: Path, cache: Path) -> None:
    """Every worker sees the tars that all have read."""
    subset = open_subset(str(folder))
    scan_tars(subset, Store(cache))
    assert len(list(cache.glob("pairs/*/tars/*.json"))) == len(subset.shards) == 3


def run(size: int, model: str, out: Path) -> None:
    """Fork the workers and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                work(rank, size, model, out, port)
                os._exit(0)
            except BaseException as error:
                print(f"worker {rank} of {size}: {error!r}", file=sys.stderr)
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * size


def compare(out: Path, size: int) -> float:
    """The largest difference from one worker, relative to a tensor's largest element."""
    worst = 0.0
    for number in range(len(CASES)):
        one, several = (load_file(out / f"{n}-{number}.safetensors") for n in (1, size))
        assert one.keys() == several.keys()
        for name, tensor in one.items():
            difference = float((tensor - several[name]).abs().max() / tensor.abs().max())
            assert math.isfinite(difference), (number, name)  # ``max`` passes over what is no number
            worst = max(worst, difference)
    return worst


if __name__ == "__main__":
    given, folder = sys.argv[1], Path(sys.argv[2])
    for n_workers in (1, 2, 4):
        run(n_workers, given, folder)
    print(json.dumps({n_workers: compare(folder, n_workers) for n_workers in (2, 4)}))
