"""RECO on the icons benchmark: the published fusion, its variants, remedies and controls, three seeds each.

    uv run python examples/icons/reco_study.py --out ~/icons/reco-study --benchmark ~/icons/benchmark \
        --memory ~/icons/memory --train ~/icons/memory-unasked --base ~/icons/base-memory --baselines ~/icons/runs \
        --clusters ~/icons/clusters/clusters.parquet

It is trained on pairs of things that nobody asks about and that the base has not seen (unasked.py), with neighbours
among them (other artwork), and asked with the memory that holds the entities. `--baselines` has the folders that
`evaluate baselines` wrote for each tier of test (pipeline.py makes them); their kNN and mean fusion, tuned on dev,
stand beside every line. `--base` is a memory of the benchmark's `base` folder, indexed.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from iconify import IconsError
from study import CAPTIONED, SETS, Variant, memory_builder, named, recall_table, run_once, sets_in, slug, tables

from memory_builder.errors import MemoryBuilderError
from trainer.evaluate.reco_task import Refinement, encoder_of, evaluate_reco
from trainer.evaluate.setting import Setting

METHODS = ("reco-image", "reco-text", "reco-both")
RIVALS = ("zero-shot", "mean-fusion", "knn")
PUBLISHED = "published"
PRE_NORM = ("--norm", "pre")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoVariant(Variant):
    """A variant and what it is asked with."""

    like: str | None = None
    """The variant whose runs are asked; they are its own unless given."""
    memory_percent: int = 100
    """How much of the memory's rows there is."""
    on_base: bool = False
    """Whether it is trained on the pairs that the base was trained on."""


VARIANTS = (
    RecoVariant(name=PUBLISHED),
    RecoVariant(name="normalised before", train=PRE_NORM),
    RecoVariant(name="cross-attention", train=("--fusion", "cross-attention", *PRE_NORM), seeds=1),
    RecoVariant(name="residual", train=("--residual", *PRE_NORM)),
    RecoVariant(name="told the rank", train=("--rank-embeddings",)),
    RecoVariant(name="no retrieval", train=("-k", "0")),
    RecoVariant(name="nothing excluded", train=("--no-exclude",), seeds=1),
    RecoVariant(name="mean", train=("--fusion", "mean"), seeds=1),
    RecoVariant(name="trained on what the base knows", on_base=True, seeds=1),
    RecoVariant(name="image to image, text to text", train=("--image-fuse", "image", "--text-fuse", "text"), seeds=1),
    RecoVariant(
        name="across, then image for image",
        train=("--image-search", "text", "--image-fuse", "image", "--text-search", "image", "--text-fuse", "text"),
        seeds=1,
    ),
    RecoVariant(name="across, then across", train=("--image-search", "text", "--text-search", "image"), seeds=1),
    *(RecoVariant(name=f"k = {k}", train=("-k", str(k)), seeds=1) for k in (1, 5, 20, 50)),
    *(RecoVariant(name=f"{share} % of the memory", like=PUBLISHED, memory_percent=share) for share in (10, 30)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoStudy:
    """Measure RECO and its variants on the icons benchmark."""

    out: Path
    """Folder of all runs and of the tables."""
    benchmark: Path
    """Folder that benchmark.py wrote."""
    memory: Path
    """The memory that is asked."""
    train: Path
    """A memory of pairs to learn from: of things nobody asks about, unknown to the base."""
    baselines: Path
    """Folder of the tiers' baselines."""
    base: Path | None = None
    """Base training as a memory; without it the variant trained on it is left out."""
    clusters: Path | None = None
    """clusters.parquet; with it the artwork of a training pair is kept from it."""
    only: tuple[str, ...] = ()
    """Names of variants; all unless given."""
    seeds: int = 3
    """Of each variant."""
    epochs: int = 2
    """Times each pair is seen."""
    batch_size: int = 1024
    """Pairs a step."""
    learning_rate: float = 1e-3
    """As published."""


def fit(config: RecoStudy, variant: RecoVariant, seed: int) -> Path:
    """Train a variant once; return its run."""
    run = config.out / slug(variant.name) / str(seed)
    loop = ("--epochs", config.epochs, "--batch-size", config.batch_size, "--learning-rate", config.learning_rate)
    neighbours = ("--looked-up", 50, "--spare", 50, "--neighbours", config.out / "neighbours")
    apart = ("--clusters", config.clusters) if config.clusters else ()
    pairs = config.base if variant.on_base else config.train
    given = (pairs, "--train", pairs, "--out", run, "--seed", seed, *loop, *neighbours, *apart)
    run_once(run / "trained", "train", "reco", *given, *variant.train)
    return run


def ask(config: RecoStudy, variant: RecoVariant, run: Path, seed: int) -> Path:
    """Ask a run about every set; return the folder of its answers."""
    out = config.out / slug(variant.name) / f"{seed}-answers"
    memory = shrunk(config, variant.memory_percent) if variant.memory_percent < 100 else config.memory
    for dataset in sets_in(config.benchmark, SETS + CAPTIONED):
        done = out / f"{dataset.name}.done"
        if not done.exists():
            setting = Setting(encoder=encoder_of(str(run)), dataset=dataset, out=out, features=config.out)
            evaluate_reco(setting, Refinement(run=str(run), memory=str(memory)), "group")
            done.touch()
    return out


def shrunk(config: RecoStudy, percent: int) -> Path:
    """Return a memory of so many per cent of the rows, drawn by the hash of their pictures."""
    folder = config.out / f"memory-{percent}"
    if not (folder / "shrunk").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(config.memory, folder, copy_function=os.link)
        bound = f"{int(16**8 * percent / 100):08x}"
        memory_builder("delete", folder, "--where", f"sha256 >= '{bound}'")
        (folder / "shrunk").touch()
    return folder


def runs_of(config: RecoStudy) -> dict[str, Sequence[Path]]:
    """Train and ask all variants; return each one's folders of answers."""
    runs = {}
    for variant in named(VARIANTS, config.only):
        if variant.on_base and config.base is None:
            continue
        source = next((other for other in VARIANTS if other.name == variant.like), variant)
        seeds = range(min(config.seeds, variant.seeds or config.seeds))
        runs[variant.name] = [ask(config, variant, fit(config, source, seed), seed) for seed in seeds]
    return runs


def main() -> int:
    """Run the command; 0 is success, 1 a step that failed."""
    config = tyro.cli(RecoStudy, description=__doc__)
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        runs = runs_of(config)
        made = tables(runs, METHODS, next(iter(runs.values()))[0], config.baselines, RIVALS)
        found = [recall_table(runs, ("retrieval", *METHODS), name) for name in CAPTIONED]
        (config.out / "tables.md").write_text(
            "\n\n".join([made.strip(), *filter(None, found)]) + "\n", encoding="utf-8"
        )
    except (IconsError, MemoryBuilderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"tables: {config.out / 'tables.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
