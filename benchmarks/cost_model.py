"""What scale.py measured, as a model: core seconds, linear in counted work, and what that says of a billion rows.

    uv run python benchmarks/cost_model.py /data/scale/stages.json
    uv run --with matplotlib python benchmarks/cost_model.py /data/scale/stages.json --plot docs/scale.svg

A stage is fitted through the two smallest sizes and has to predict the largest. It is core seconds that are fitted:
wall time depends on what else runs. The figures for 100 million and a billion rows are the model's, not measurements.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

LISTS = {100_000: 1_024, 1_000_000: 4_096, 10_000_000: 16_384, 100_000_000: 65_536, 1_000_000_000: 262_144}
POINTS_PER_LIST = 50
KMEANS_ITERATIONS = 10
CODEBOOK_ROWS = 65_536
CODE_BYTES = 64 + 8
PART_ROWS = 1_000_000
STAGES = ("train", "fill")
"""Those that are modelled. Tuning ends where its curve is flat, which no count tells beforehand."""
GPU_FLOPS = 30e12
"""Taken for one H100 in fp32, half of what is sold: nothing here was run on one."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is told of, and where."""

    stages: tyro.conf.Positional[Path]
    """``stages.json``."""
    d: int = 256
    plot: Path | None = None
    """An .svg or .png to draw."""


def kmeans_flops(rows: int, d: int) -> float:
    """Of finding every training row's list, in all iterations."""
    return 2.0 * POINTS_PER_LIST * LISTS[rows] * LISTS[rows] * d * KMEANS_ITERATIONS


def work_of(stage: str, rows: int, d: int) -> tuple[float, float]:
    """The two counts that the core seconds of a stage rise with.

    Training: rows that the rotation and the codebooks are trained on, which faiss caps, and k-means. Filling: a
    process, and rows.
    """
    if stage == "train":
        return float(min(POINTS_PER_LIST * LISTS[rows], CODEBOOK_ROWS)), kmeans_flops(rows, d)
    return 1.0, float(rows)


def predicted(kept: dict[str, Any], stage: str, rows: int, d: int) -> float:
    """Core seconds, by what each count cost at the two smallest sizes."""
    few_and_some = sorted(map(int, kept))[:2]
    counted = np.array([work_of(stage, size, d) for size in few_and_some])
    costs = np.linalg.solve(counted, [kept[str(size)][stage]["cpu_s"] for size in few_and_some])
    return float(costs @ work_of(stage, rows, d))


def tell(kept: dict[str, Any], d: int) -> Iterator[str]:
    """Lines of markdown: what was measured, the model beside it, and what it says of larger sizes."""
    yield "| rows | stage | wall s | core s | peak GB | with mapped files | bound GB | on disk GB |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|"
    for rows, stages in kept.items():
        for stage, found in stages.items():
            if stage != "bound_bytes":
                yield (
                    f"| {int(rows):,} | {stage} | {found['seconds']:.0f} | {found['cpu_s']:.0f} "
                    f"| {found['peak_bytes'] / 1e9:.2f} | {found['peak_with_mapped_bytes'] / 1e9:.2f} "
                    f"| {stages['bound_bytes'] / 1e9:.2f} | {found['disk_bytes'] / 1e9:.2f} |"
                )
    largest = max(map(int, kept))
    for stage in STAGES if len(kept) > 2 and "fill" in kept[str(largest)] else ():
        said, took = predicted(kept, stage, largest, d), kept[str(largest)][stage]["cpu_s"]
        yield f"{stage} of {largest:,} rows: {said:,.0f} core s predicted, {took:,.0f} taken, {said / took:.2f}"
    if len(kept) < 2:
        return  # two counts need two sizes
    yield "| rows | lists | parts | index GB | vectors GB | train, core h | fill, core h | k-means on one GPU, h |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|"
    for rows in (100_000_000, 1_000_000_000):
        hours = {stage: predicted(kept, stage, rows, d) / 3600 for stage in STAGES}
        yield (
            f"| {rows:,} | {LISTS[rows]:,} | {rows // PART_ROWS:,} | {rows * CODE_BYTES / 1e9:,.0f} "
            f"| {rows * 2 * d / 1e9:,.0f} | {hours['train']:,.1f} | {hours['fill']:,.1f} "
            f"| {kmeans_flops(rows, d) / GPU_FLOPS / 3600:.2f} |"
        )


def draw(kept: dict[str, Any], d: int, path: Path) -> None:
    """Core seconds of each stage over rows, measured and as the model has it."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    sizes = sorted(LISTS)
    for stage, colour in zip(STAGES, ("tab:blue", "tab:orange"), strict=True):
        axes.plot(
            sizes, [predicted(kept, stage, rows, d) for rows in sizes], "--", color=colour, label=f"{stage}, model"
        )
        measured = [(int(rows), stages[stage]["cpu_s"]) for rows, stages in kept.items() if stage in stages]
        axes.plot(*zip(*measured, strict=True), "o", color=colour, label=f"{stage}, measured")
    axes.set(
        xscale="log", yscale="log", xlabel="rows", ylabel="core seconds", title=f"Building an index, d = {d}, PQ64"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)


def main(config: Model) -> None:
    """Print the lines, and draw if asked."""
    kept = json.loads(config.stages.read_text())
    for line in tell(kept, config.d):
        print(line)
    if config.plot is not None:
        draw(kept, config.d, config.plot)


if __name__ == "__main__":
    main(tyro.cli(Model))
