"""REACT on the icons benchmark: one factor at a time around a default, three seeds of each (rates and positives: one).

    uv run python examples/icons/react_study.py --out ~/icons/react-study --benchmark ~/icons/benchmark \
        --memory ~/icons/memory --baselines ~/icons/runs

It is trained on what is retrieved for the classes of all sets, dev and test, the evaluation pictures and their copies
left out. `--baselines` has the folders that `evaluate baselines` wrote for each tier of test (pipeline.py makes them).
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from deal import TIERS
from study import Variant, do_once, named, run_once, sets_in, slug, tables, write_tables

from trainer.evaluate.config import EvalConfig
from trainer.evaluate.tasks.frozen import evaluate_zero_shot
from trainer.react.load import CheckpointRef

RIVALS = ("zero-shot", "priming", "cache", "wise-head", "name-centroid")
DEFAULT = "locked image"
CHOSEN = (f"{DEFAULT}, 100%",)
SUBSETS = {  # name → flags of retrieve, and the share of what they find that is kept
    "t2t": (("--mode", "t2t"), 1.0),
    "t2i": (("--mode", "t2i"), 1.0),
    "both": (("--mode", "both"), 1.0),
    "third": (("--mode", "t2t"), 1 / 3),
    "tenth": (("--mode", "t2t"), 1 / 10),
}
LOCKED_IMAGE, GATED = ("--mode", "locked-image"), ("--mode", "gated-image")
RATE = ("--learning-rate", "5e-4")
"""Ten times the published one of whole towers, which are of a hundred million parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReactVariant(Variant):
    """A variant and what it is trained on."""

    subset: str = "t2t"


VARIANTS = (
    ReactVariant(name=DEFAULT, train=(*LOCKED_IMAGE, *RATE)),
    ReactVariant(name="locked image, published rate", train=LOCKED_IMAGE, seeds=1),
    ReactVariant(name="locked image, twice the rate", train=(*LOCKED_IMAGE, "--learning-rate", "1e-3"), seeds=1),
    ReactVariant(name="gated, last 2", train=(*GATED, "--last-k", "2")),
    ReactVariant(name="gated, all 6, at 2e-3", train=(*GATED, "--last-k", "0", "--learning-rate", "2e-3")),
    ReactVariant(name="locked text", train=("--mode", "locked-text", *RATE)),
    ReactVariant(name="full", train=("--mode", "full", *RATE)),
    ReactVariant(name="found by both", train=(*LOCKED_IMAGE, *RATE), subset="both"),
    ReactVariant(name="found by T2I", train=(*LOCKED_IMAGE, *RATE), subset="t2i"),
    ReactVariant(name="a third of the pairs", train=(*LOCKED_IMAGE, *RATE), subset="third"),
    ReactVariant(name="a tenth of the pairs", train=(*LOCKED_IMAGE, *RATE), subset="tenth"),
    ReactVariant(
        name="all captions of a class are right", train=(*LOCKED_IMAGE, *RATE, "--positives", "class"), seeds=1
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReactStudy:
    """Measure REACT and its variants on the icons benchmark."""

    out: Path
    """Folder of all subsets, runs and of the tables."""
    benchmark: Path
    """Folder that benchmark.py wrote."""
    memory: Path
    """The memory that is asked for pairs."""
    baselines: Path
    """Folder of the tiers' baselines."""
    only: tuple[str, ...] = ()
    """Names of variants; all unless given."""
    seeds: int = 3
    """Of each variant."""
    per_query: int = 20
    """Rows for each class and mode."""
    steps: int = 250
    """Of training, whatever the number of pairs."""
    batch_size: int = 256
    """Pairs a step."""
    shares: tuple[float, ...] = (0.5, 1.0)
    """Of what was learnt, at evaluation (WiSE-FT)."""


def subset(config: ReactStudy, name: str) -> Path:
    """Retrieve a subset once; return its folder."""
    folder, (flags, share) = config.out / "subsets" / name, SUBSETS[name]
    sets = sets_in(config.benchmark)
    classes = config.out / "classes.txt"
    lines = [line for each in sets for line in (each / "classnames.txt").read_text("utf-8").splitlines()]
    classes.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")
    if share < 1:
        pairs = json.loads((subset(config, "t2t") / "subset.json").read_bytes())["pairs"]
        flags = (*flags, "--total", str(round(pairs * share)))
    given = ("--classes", classes, "--per-query", config.per_query, "--exclude", *sets, "--out", folder)
    run_once(folder.with_suffix(".done"), "retrieve", config.memory, *flags, *given)
    return folder


def fit(config: ReactStudy, variant: ReactVariant, seed: int) -> Path:
    """Train a variant once; return its run."""
    run = config.out / slug(variant.name) / str(seed)
    given = (subset(config, variant.subset), "--out", run, "--cache", config.out / "cache", "--seed", seed)
    length = ("--epochs", 1_000, "--max-steps", config.steps, "--batch-size", config.batch_size)
    how = ("--augmentation", "none", "--positives", "caption")
    run_once(run / "trained", "train", "react", *given, *length, *how, *variant.train)
    return run


def ask(config: ReactStudy, run: Path, share: float) -> Path:
    """Ask a run about every set; return the folder of its answers."""
    out = run.with_name(f"{run.name}-answers-{share:g}")
    for dataset in sets_in(config.benchmark):
        setting = EvalConfig(encoder=CheckpointRef(run=str(run), wise_alpha=share), dataset=dataset, out=out)
        answer = partial(evaluate_zero_shot, setting)
        do_once(out / f"{dataset.name}.done", f"{run} at {share} about {dataset}", answer)
    return out


def runs_of(config: ReactStudy) -> dict[str, Sequence[Path]]:
    """Train and ask all variants; return each one's folders of answers."""
    chosen = named(VARIANTS, config.only)
    runs = {variant.name: [fit(config, variant, seed) for seed in variant.seeds_of(config.seeds)] for variant in chosen}
    return {
        f"{name}, {share:.0%}": [ask(config, run, share) for run in folders]
        for name, folders in runs.items()
        for share in config.shares
    }


def tables_of(config: ReactStudy) -> str:
    """Do the whole of it; return the tables."""
    frozen = ask(config, fit(config, named(VARIANTS, config.only)[0], 0), 0.0)
    baselines = {tier: config.baselines / tier for tier in TIERS}
    return tables(runs_of(config), ("zero-shot",), frozen, baselines, RIVALS, CHOSEN)


def main() -> int:
    """Run the command; 0 is success, 1 a step that failed."""
    config = tyro.cli(ReactStudy, description=__doc__)
    return write_tables(config.out, lambda: tables_of(config))


if __name__ == "__main__":
    sys.exit(main())
