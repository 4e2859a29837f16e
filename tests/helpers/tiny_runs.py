"""A tiny model of open_clip's own kind, and small subsets of bundled pairs."""

import gzip
import io
import json
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import save_file

import memory_builder
from trainer.react.config import GatedConfig, ReactConfig

SAMPLE = Path(memory_builder.__file__).parent / "demo" / "sample"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    "quick_gelu": True,
}
PREPROCESS = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def write_tiny_model(folder: Path, layers: int = 3) -> str:
    """A model with random weights, as ``--model`` takes it; ``layers`` are those of its image tower."""
    torch.manual_seed(7)
    config = TINY | {"vision_cfg": TINY["vision_cfg"] | {"layers": layers}}
    model = CLIP(**config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def bundled_pairs() -> list[dict[str, bytes]]:
    """Forty bundled pairs as files by suffix; four in a row belong to one class."""
    with gzip.open(SAMPLE / "00000.tar.gz") as plain, tarfile.open(fileobj=io.BytesIO(plain.read())) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    keys = sorted({name.split(".")[0] for name in files})[:40]
    return [
        {
            "png": files[f"{key}.png"],
            "txt": files[f"{key}.txt"],
            "json": json.dumps({"claims": [{"class": f"class {i // 4}"}]}).encode(),
        }
        for i, key in enumerate(keys)
    ]


def react_config(**told):
    """What learns in the tiny model; two gated blocks where those do."""
    is_gated = told.get("mode", "gated-image") == "gated-image"
    return ReactConfig(**({"gated": GatedConfig(last_k=2)} if is_gated else {}) | told)


def write_subset(folder: Path, pairs: list[dict[str, bytes]], n_tars: int = 2, stem: str = "") -> Path:
    """Tars of pairs, each its files by suffix; ``stem`` begins their names."""
    folder.mkdir(parents=True)
    for number in range(n_tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i, files in list(enumerate(pairs))[number::n_tars]:
                for suffix, data in files.items():
                    info = tarfile.TarInfo(f"{stem}{i:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def bytes_of(run):
    """Every checkpoint's files, and the metrics but for what the clock and the machine say."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.glob("checkpoints/*/*")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return files, [{k: v for k, v in line.items() if k not in ("pairs_per_s", "memory_bytes")} for line in lines]


KILLED = """
import os, signal, pickle, sys
import trainer.loop.loop as loop
job, step = pickle.load(open(sys.argv[1], "rb"))
take = loop.take_step
taken = 0
def dies(*arguments):
    global taken
    taken += 1
    if taken == step:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(*arguments)
loop.take_step = dies
job.work(lambda _: None)
"""


def killed_at(job, step, tmp_path):
    """Train in another process that is killed in the middle of a step."""
    (tmp_path / "job").write_bytes(pickle.dumps((job, step)))
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "job"], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
