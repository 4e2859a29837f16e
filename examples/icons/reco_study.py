"""RECO on the icons benchmark: the published fusion, its variants and controls, three seeds each, and remedies.

    uv run python examples/icons/reco_study.py --out ~/icons/reco-study --benchmark ~/icons/benchmark \
        --memory ~/icons/memory --unasked ~/icons/memory-unasked --train ~/icons/memory-often \
        --baselines ~/icons/runs --base ~/icons/base-memory --clusters ~/icons/clusters/clusters.parquet

It is trained on pairs of things that nobody asks about and that the base has not seen (unasked.py), with neighbours
among them (other artwork), and asked with the memory that holds the entities. `--baselines` has the folders that
`evaluate baselines` wrote for each tier of test (pipeline.py makes them); their kNN and mean fusion, tuned on dev,
stand beside every line, and so does the published fusion. `--base` is a memory of the benchmark's `base` folder,
indexed. With `--memory ~/icons/memory-react --unasked ~/icons/memory-unasked-react --train ~/icons/memory-often-react
--prefix react- --only published` it is RECO on the model that REACT customised, whose own zero-shot stands beside.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from deal import TIERS
from study import (
    CAPTIONED,
    SETS,
    Variant,
    do_once,
    lines_of,
    named,
    recall_table,
    run_once,
    sets_in,
    slug,
    tables,
    write_tables,
)
from without import memory_without

from memory_builder.base.charts import COLOURS, Series, line_chart, names_axis, number_axis
from trainer.evaluate.config import EvalConfig
from trainer.evaluate.numbers.intervals import interval
from trainer.evaluate.numbers.metrics import class_sums
from trainer.evaluate.with_memory.reco_task import Refinement, encoder_of, evaluate_reco
from trainer.loop.config import Positives

METHODS = ("reco-image", "reco-text", "reco-both")
RIVALS = ("zero-shot", "mean-fusion", "knn")
PUBLISHED = "published"
CHOSEN = tuple(f"{PUBLISHED}: {method}" for method in METHODS)
PRE_NORM = ("--norm", "pre")
RESIDUAL = ("--residual", *PRE_NORM)
RANKED = ("--rank-embeddings",)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoVariant(Variant):
    """A variant and what it is asked with."""

    like: str | None = None
    """The variant whose runs are asked; they are its own unless given."""
    memory_percent: int = 100
    """How much of the memory's rows there is."""
    on: Literal["train", "unasked", "base"] = "train"
    """Which of the study's pairs it is trained on."""


VARIANTS = (
    RecoVariant(name=PUBLISHED),
    RecoVariant(name="told the rank", train=RANKED),
    RecoVariant(name="residual", train=RESIDUAL),
    RecoVariant(name="told the rank, residual", train=(*RANKED, *RESIDUAL)),
    RecoVariant(name="normalised before", train=PRE_NORM, seeds=1),
    RecoVariant(name="cross-attention", train=("--fusion", "cross-attention", *PRE_NORM), seeds=1),
    RecoVariant(name="mean", train=("--fusion", "mean")),
    RecoVariant(name="no retrieval", train=("-k", "0")),
    RecoVariant(name="nothing excluded", train=("--no-exclude",)),
    RecoVariant(name="trained on things drawn once, too", on="unasked", seeds=1),
    RecoVariant(name="trained on what the base knows", on="base", seeds=1),
    *(RecoVariant(name=f"k = {k}", train=("-k", str(k))) for k in (1, 5, 20, 50)),
    *(RecoVariant(name=f"{share} % of the memory", like=PUBLISHED, memory_percent=share) for share in (10, 30)),
    RecoVariant(name="image to image, text to text", train=("--image-fuse", "image", "--text-fuse", "text")),
    RecoVariant(
        name="across, then image for image",
        train=("--image-search", "text", "--image-fuse", "image", "--text-search", "image", "--text-fuse", "text"),
    ),
    RecoVariant(name="across, then across", train=("--image-search", "text", "--text-search", "image")),
)
SWEEPS = {  # chart → what its places are, and the variant at each; at 0 is the frozen model
    "by-k": ("rows fused (k)", {k: PUBLISHED if k == 10 else f"k = {k}" for k in (1, 5, 10, 20, 50)}),
    "by-memory": (
        "per cent of the memory",
        {share: PUBLISHED if share == 100 else f"{share} % of the memory" for share in (10, 30, 100)},
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoStudy:
    """Measure RECO and its variants on the icons benchmark."""

    out: Path
    """Folder of all runs and of the tables."""
    benchmark: Path
    """Folder that benchmark.py wrote."""
    memory: Path
    """The memory that is asked."""
    unasked: Path
    """A memory of things nobody asks about, unknown to the base, where what is trained on looks for neighbours."""
    train: Path
    """Those of its pairs that are trained on: things drawn often."""
    baselines: Path
    """Folder of the tiers' baselines."""
    prefix: str = ""
    """What their names begin with there: `react-` where the memories are those of the customised model."""
    base: Path | None = None
    """Base training as a memory; without it the variant trained on it is left out."""
    clusters: Path | None = None
    """clusters.parquet; with it the artwork of a training pair is kept from it."""
    only: tuple[str, ...] = ()
    """Names of variants; all unless given."""
    seeds: int = 3
    """Of each variant."""
    steps: int = 360
    """Of training, whatever the number of pairs; two epochs of the memory's."""
    batch_size: int = 1024
    """Pairs a step."""
    learning_rate: float = 1e-3
    """As published."""

    @property
    def rivals(self) -> dict[str, Path]:
        """Return the folder of each tier's baselines."""
        return {tier: self.baselines / f"{self.prefix}{tier}" for tier in TIERS}


def fit(config: RecoStudy, variant: RecoVariant, seed: int) -> Path:
    """Train a variant once; return its run."""
    run = config.out / slug(variant.name) / str(seed)
    length = ("--epochs", 1_000, "--max-steps", config.steps, "--batch-size", config.batch_size)
    loop = (*length, "--learning-rate", config.learning_rate)
    neighbours = ("--looked-up", 50, "--spare", 50, "--neighbours", config.out / "neighbours")
    apart = ("--clusters", config.clusters) if config.clusters else ()
    memory = config.base if variant.on == "base" else config.unasked
    given = (memory, "--train", getattr(config, variant.on), "--out", run, "--seed", seed, *loop, *neighbours, *apart)
    run_once(run / "trained", "train", "reco", *given, *variant.train)
    return run


def ask(config: RecoStudy, variant: RecoVariant, run: Path, seed: int) -> Path:
    """Ask a run about every set; return the folder of its answers."""
    out = config.out / slug(variant.name) / f"{seed}-answers"
    memory = shrunk(config, variant.memory_percent) if variant.memory_percent < 100 else config.memory
    for dataset in sets_in(config.benchmark, SETS + CAPTIONED):
        setting = EvalConfig(encoder=encoder_of(str(run)), dataset=dataset, out=out, features=config.out)
        positives: Positives = "caption" if dataset.name in CAPTIONED else "own"
        answer = partial(evaluate_reco, setting, Refinement(run=str(run), memory=str(memory)), positives)
        do_once(out / f"{dataset.name}.done", f"{run} with {memory} about {dataset}", answer)
    return out


def shrunk(config: RecoStudy, percent: int) -> Path:
    """Return a memory of so many per cent of the rows, drawn by the hash of their pictures."""
    folder = config.out / f"memory-{percent}"
    memory_without(config.memory, folder, "--where", f"sha256 >= '{int(16**8 * percent / 100):08x}'")
    return folder


def runs_of(config: RecoStudy) -> dict[str, Sequence[Path]]:
    """Train and ask all variants; return each one's folders of answers."""
    runs = {}
    for variant in named(VARIANTS, config.only):
        if getattr(config, variant.on) is None:
            continue
        source = next((other for other in VARIANTS if other.name == variant.like), variant)
        seeds = variant.seeds_of(config.seeds)
        runs[variant.name] = [ask(config, variant, fit(config, source, seed), seed) for seed in seeds]
    return runs


def sweep_chart(config: RecoStudy, runs: dict[str, Sequence[Path]], name: str) -> str | None:
    """Return the chart of both sides refined, on the test sets; None unless every variant of it was measured."""
    below, variants = SWEEPS[name]
    if not set(variants.values()) <= set(runs):
        return None
    drawn = []
    for tier, colour in zip(TIERS, COLOURS, strict=False):
        lines = [line for v in variants.values() for line in lines_of({v: runs[v]}, METHODS[-1:], f"test-{tier}")]
        if not lines:  # there is no set of this tier
            continue
        lines = [*lines_of({"": [config.rivals[tier]]}, RIVALS[:1], f"test-{tier}"), *lines]
        sums = [class_sums(100 * line.right["top1"], line.labels) for line in lines]
        spans = [interval(of_line) for of_line in sums]
        points = [(i, float(of_line.value)) for i, of_line in enumerate(sums)]
        drawn.append(Series(name=tier, points=points, colour=colour, spans=spans))
    if not drawn:
        return None
    top = max(high for one in drawn for _, high in one.spans)
    x, y = names_axis(["frozen", *map(str, variants)], below), number_axis(0, top, "top-1 in per cent, test split")
    return line_chart(f"RECO: {below}", x, y, drawn).svg()


def tables_of(config: RecoStudy) -> str:
    """Do the whole of it; return the tables."""
    runs = runs_of(config)
    for name in SWEEPS:
        if chart := sweep_chart(config, runs, name):
            (config.out / f"{name}.svg").write_text(chart, encoding="utf-8")
    made = tables(runs, METHODS, next(iter(runs.values()))[0], config.rivals, RIVALS, CHOSEN)
    found = [recall_table(runs, ("retrieval", *METHODS), name) for name in CAPTIONED]
    return "\n\n".join([made.strip(), *filter(None, found)]) + "\n"


def main() -> int:
    """Run the command; 0 is success, 1 a step that failed."""
    config = tyro.cli(RecoStudy, description=__doc__)
    return write_tables(config.out, lambda: tables_of(config))


if __name__ == "__main__":
    sys.exit(main())
