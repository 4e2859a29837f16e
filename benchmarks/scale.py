"""What an index costs at 100 thousand, 1 million and 10 million rows, and from that what it costs at a billion.

    uv run python benchmarks/scale.py --work /data/scale          # hours; run it again to go on

Made-up float16 rows, generated shard by shard. Every stage is a process of its own: wall time, peak memory, bytes on
disk, each result kept in ``stages.json``. What ``cost_model.py`` makes of it is printed at the end.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from cost_model import tell
from synthetic import Shape, make_memory

from memory_builder.ann.parts import FillTask, fill, plan_parts, read_quantizer_hash
from memory_builder.ann.quantizer import n_lists
from memory_builder.base.runner import LocalRunner, run_one
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import IndexView
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.train import TrainTask
from memory_builder.indexing.tuning import tune
from memory_builder.storage.store import Store

STAGES = ("generate", "train", "fill", "tune")


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size, and the key it is indexed with."""

    rows: int
    key: str
    points_per_list: int


SIZES = {
    size.rows: size
    for size in (
        Size(rows=100_000, key="OPQ64_256,IVF1024_HNSW32,PQ64x8np", points_per_list=50),
        Size(rows=1_000_000, key="OPQ64_256,IVF4096_HNSW32,PQ64x8np", points_per_list=50),
        Size(rows=10_000_000, key="OPQ64_256,IVF16384_HNSW32,PQ64x8np", points_per_list=50),
    )
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is run."""

    work: Path = Path("/tmp/scale")
    rows: tuple[int, ...] = tuple(SIZES)
    d: int = 256
    threads: int = os.cpu_count() or 1
    stage: str | None = None
    """Used for the processes of the stages."""


def run_stage(config: Scale, size: Size) -> None:
    """One stage of one size, in this process."""
    root = config.work / f"memory-{size.rows}"
    if config.stage == "generate":
        make_memory(root, size.rows, Shape(d=config.d), texts=False)
        return
    store = Store(root)
    commits = Manifest.read(store).commits
    folder = f"index/scale-{n_lists(size.key)}"
    settings = IndexConfig(index_key=size.key)
    parts = plan_parts(commits.values(), "image", settings.part_rows)
    if config.stage == "train":
        task = TrainTask(
            memory=store.root,
            folder=folder,
            modality="image",
            ordinals=tuple(commits),
            train_points_per_list=size.points_per_list,
            train_threads=config.threads,
        )
        run_one(LocalRunner(), task, size.key)
    elif config.stage == "fill":
        sha256 = read_quantizer_hash(store, folder)
        filling = FillTask(memory=store.root, folder=folder, modality="image", quantizer_sha256=sha256)
        fill(filling, parts, LocalRunner(), f"{size.rows:,}")
    else:
        view = IndexView(index=folder, segments=[[part.name for part in parts]], n_rows=size.rows)
        tune(store, view, "image", config.d, commits, settings.target_recall, LocalRunner())


def measure(config: Scale, size: Size, stage: str) -> dict[str, Any]:
    """Run a stage as a process of its own."""
    command = [sys.executable, __file__, "--work", str(config.work), "--rows", str(size.rows)]
    command += ["--d", str(config.d), "--threads", str(config.threads), "--stage", stage]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    anonymous = 0
    while True:
        anonymous = max(anonymous, _anonymous_bytes(process.pid))
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(0.1)
    if status:
        raise SystemExit(f"{stage} of {size.rows:,} rows failed; run this again to go on")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": anonymous,
        "peak_with_mapped_bytes": usage.ru_maxrss * 1024,
        "disk_bytes": _disk(config.work / f"memory-{size.rows}"),
    }


def _anonymous_bytes(pid: int) -> int:
    """Memory that only this process can give back; pages of mapped files, which the system can take, are not in it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def _disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def bound_bytes(config: Scale, size: Size) -> int:
    """What a stage may take: sample × (1 + d_out/d) + quantizer + one part + 1 GiB."""
    sample = size.points_per_list * n_lists(size.key) * config.d * 4
    folder = config.work / f"memory-{size.rows}" / "index" / f"scale-{n_lists(size.key)}"
    quantizer = folder / "trained.faiss"
    parts = [json.loads(file.read_text())["bytes"] for file in folder.glob("parts/*.json")]
    return 2 * sample + (quantizer.stat().st_size if quantizer.exists() else 0) + max(parts, default=0) + (1 << 30)


def main(config: Scale) -> None:
    """Every stage that is not kept yet, smallest size first."""
    config.work.mkdir(parents=True, exist_ok=True)
    file = config.work / "stages.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for rows in sorted(config.rows):
        for stage in STAGES:
            if stage not in kept.setdefault(str(rows), {}):
                kept[str(rows)][stage] = measure(config, SIZES[rows], stage)
                kept[str(rows)]["bound_bytes"] = bound_bytes(config, SIZES[rows])
                file.write_text(json.dumps(kept, indent=1))
    for line in tell(kept, config.d):
        print(line)


if __name__ == "__main__":
    asked = tyro.cli(Scale)
    if asked.stage:
        run_stage(asked, SIZES[asked.rows[0]])
    else:
        main(asked)
