"""From nothing to the tables of examples/icons/results.md: every step in its order, each done once.

    examples/icons/run.sh --out ~/icons                 # the benchmark, with the bundled base model
    examples/icons/run.sh --out ~/icons --retrain       # train the base model too: an hour or more on two cores
    examples/icons/run.sh --out ~/icons/sample --sample # the bundled sample: minutes, no download

Killed at any moment, the same command goes on: a step that ended is skipped, as long as neither it nor a step before it
is asked for with other arguments, and the steps go on by themselves where they stopped.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from deal import TIERS
from prepare import put_json

from memory_builder.cli import main

HERE = Path(__file__).resolve().parent
BUNDLED = HERE.parents[1] / "memory_builder" / "demo" / "model"
SHOTS = ("1", "2", "4", "8", "16", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """Run the icons benchmark from start to end."""

    out: Path
    """Folder of all that is made; a few gigabytes."""
    sample: bool = False
    """The bundled sample instead of the corpus: shows that all of it runs, measures nothing."""
    retrain: bool = False
    """Train the base model from scratch instead of taking the bundled one."""
    upto: str | None = None
    """End after the step of this name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of the pipeline."""

    name: str
    command: tuple[str, ...]

    def run(self) -> int:
        """Return the exit code. Loading torch takes seconds, so memory-builder runs in this process, which has it."""
        if self.command[0] == "memory-builder":
            return main(self.command[1:])
        return subprocess.run([sys.executable, *self.command]).returncode


def script(name: str, *arguments: object) -> tuple[str, ...]:
    """Return the command that runs a script of this folder."""
    return (str(HERE / f"{name}.py"), *map(str, arguments))


def memory_builder(*arguments: object) -> tuple[str, ...]:
    """Return a command of memory-builder."""
    return ("memory-builder", *map(str, arguments))


def benchmark_steps(config: Pipeline) -> list[Step]:
    """Return the steps that make the memory's pairs and the sets to ask about."""
    out, sets = config.out, config.out / "benchmark"
    if config.sample:
        return [Step(name="deal", command=script("sample_benchmark", "--out", sets))]
    pairs, entities, clusters, splits = out / "64", out / "entities.parquet", out / "clusters", out / "splits"
    given = {
        "prepare": ("--out", pairs),
        "entities": ("--out", entities),
        "clusters": ("--pairs", pairs, "--entities", entities, "--out", clusters),
        "splits": ("--entities", entities, "--clusters", clusters, "--out", splits),
        "benchmark": ("--pairs", pairs, "--splits", splits, "--out", sets),
        "captioned": ("--benchmark", sets, "--splits", splits),
    }
    return [Step(name=name, command=script(name, *arguments)) for name, arguments in given.items()]


def steps_of(config: Pipeline) -> list[Step]:
    """Return all steps, in order."""
    out, sets, memory = config.out, config.out / "benchmark", config.out / "memory"
    steps, model = benchmark_steps(config), BUNDLED
    if config.retrain:
        arguments = ("--pairs", sets / "base", "--dev", sets, "--out", out / "base", "--compare", BUNDLED)
        steps.append(Step(name="pretrain", command=script("pretrain", *arguments)))
        model = out / "base" / "model"
    named = ("--model", f"local-dir:{model}")
    steps += [
        Step(name="embed", command=memory_builder("embed", sets / "memory", "--memory", memory, *named)),
        Step(name="index", command=memory_builder("index", memory)),
    ]
    runs = []
    for tier in tiers(config):
        given = ("--dataset", sets / f"test-{tier}", "--dev", sets / f"dev-{tier}", "--out", out / "runs" / tier)
        command = memory_builder("evaluate", "baselines", *named, "--memory", memory, *given)
        steps.append(Step(name=f"baselines-{tier}", command=command))
        runs.append(out / "runs" / tier)
    customised = ("--run", out / "react")
    probe, tune = ("--shots", *SHOTS), ("--shots", "4", "all", "--n-seeds", 1)
    steps += few_shot_step(config, "few-shot", "linear-probe", named, *probe)
    steps += react_steps(config, named) + reco_steps(config) + both_steps(config)
    steps += few_shot_step(config, "few-shot-react", "linear-probe", customised, *probe)
    steps += few_shot_step(config, "few-shot", "few-shot", named, *tune)
    steps += few_shot_step(config, "few-shot-react", "few-shot", customised, *tune)
    runs += [] if config.sample else [out / "runs" / "few-shot", out / "runs" / "few-shot-react"]
    runs += [out / "runs" / f"{name}-{tier}" for name in ("react", "both") for tier in tiers(config)]
    rivals = ("--rivals", "zero-shot", "priming", "cache", "zero-shot (react)", "reco-both")
    bounds = ("--bounds", HERE / "sample_bounds.json") if config.sample else ()
    return [
        *steps,
        Step(name="report", command=memory_builder("report", *runs, "--out", out / "report.html")),
        Step(name="results", command=script("results", *runs, "--out", out / "results.md", *rivals, *bounds)),
    ]


def tiers(config: Pipeline) -> tuple[str, ...]:
    """Return the tiers that are asked about."""
    return TIERS[-1:] if config.sample else TIERS


def few_shot_step(config: Pipeline, name: str, task: str, model: Sequence[object], *length: object) -> list[Step]:
    """Return the step that learns from a few pictures of each class; the sample has no such sets.

    Args:
        config: the pipeline's.
        name: of the folder of its answers.
        task: of ``memory-builder evaluate``.
        model: flags that name it.
        length: flags that say from how many pictures.
    """
    sets, answers = config.out / "benchmark", config.out / "runs" / name
    given = (*model, "--dataset", sets / "test-few-shot", "--dev", sets / "dev-few-shot", "--out", answers)
    step = Step(
        name=name if task == "linear-probe" else name.replace("few-shot", "fine-tune"),
        command=memory_builder("evaluate", task, *given, *length),
    )
    return [] if config.sample else [step]


def react_steps(config: Pipeline, named: tuple[str, ...]) -> list[Step]:
    """Return the steps of REACT: the pairs that the classes of all sets need, what learns them, and its worth."""
    out, sets, subset, run = config.out, config.out / "benchmark", config.out / "subset", config.out / "react"
    asked = [sets / f"{side}-{tier}" for side in ("dev", "test") for tier in tiers(config)]
    names = ("--mode", "t2t", "--per-query", 10 if config.sample else 20, "--exclude", *asked)
    # Chosen on dev (react_study.py): what the base lacks are words, so the text tower learns them.
    learns = ("--mode", "locked-image", "--learning-rate", 5e-4)
    long = ("--epochs", 1_000, "--max-steps", 250, "--batch-size", 256)
    length = ("--epochs", 2, "--batch-size", 128) if config.sample else long
    settings = ("--augmentation", "none", "--positives", "caption", *learns, *length)
    steps = [
        Step(name="classes", command=script("class_names", *asked, "--out", out / "classes.txt")),
        Step(
            name="retrieve",
            command=memory_builder(
                "retrieve", out / "memory", "--classes", out / "classes.txt", *names, "--out", subset
            ),
        ),
        Step(name="react", command=memory_builder("train", "react", subset, *named, "--out", run, *settings)),
    ]
    for tier in tiers(config):
        given = ("--run", run, "--dataset", sets / f"test-{tier}", "--out", out / "runs" / f"react-{tier}")
        steps.append(Step(name=f"react-{tier}", command=memory_builder("evaluate", "zero-shot", *given)))
    return steps


def reco_steps(config: Pipeline, on: str = "") -> list[Step]:
    """Return the steps of RECO: a fusion learns on other pairs than those it is asked with, and what it is worth.

    Args:
        config: the pipeline's.
        on: what its folders' names end with, where the frozen model is not the base.
    """
    out, sets, run, memory = config.out, config.out / "benchmark", config.out / f"reco{on}", config.out / f"memory{on}"
    steps, unasked, pairs, length = [], memory, memory, ("--epochs", 10, "--batch-size", 256)
    if not config.sample:
        unasked, pairs = out / f"memory-unasked{on}", out / f"memory-often{on}"
        for folder, fewest in ((unasked, 1), (pairs, 3)):
            given = ("--memory", memory, "--splits", out / "splits", "--fewest", fewest, "--out", folder)
            steps.append(Step(name=folder.name.removeprefix("memory-"), command=script("unasked", *given)))
        length = ("--epochs", 1_000, "--max-steps", 360, "--batch-size", 1_024)
        length += ("--clusters", out / "clusters" / "clusters.parquet")
    command = memory_builder("train", "reco", unasked, "--train", pairs, "--out", run, *length)
    steps.append(Step(name=f"reco{on}", command=command))
    for tier in tiers(config):
        given = ("--run", run, "--memory", memory, "--dataset", sets / f"test-{tier}")
        answers = out / "runs" / (f"both-{tier}" if on else tier)
        steps.append(
            Step(name=f"reco{on}-{tier}", command=memory_builder("evaluate", "reco", *given, "--out", answers))
        )
    return steps


def both_steps(config: Pipeline) -> list[Step]:
    """Return the steps of RECO on the model that REACT customised: a memory of that model, and a fusion for it."""
    out, model, memory = config.out, config.out / "react-model", config.out / "memory-react"
    named = ("--model", f"local-dir:{model}")
    embed = ("embed", out / "benchmark" / "memory", "--memory", memory, *named)
    return [
        Step(name="export", command=memory_builder("train", "export", out / "react", "--out", model)),
        Step(name="embed-react", command=memory_builder(*embed)),
        Step(name="index-react", command=memory_builder("index", memory)),
        *reco_steps(config, "-react"),
    ]


def run_step(step: Step, record: Path) -> bool:
    """Run a step and record it; return whether it did what it should."""
    print(f"== {step.name}: {shlex.join(step.command)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    code = step.run()
    if code:
        print(
            f"error: {step.name} ended with {code}; see above. The same command goes on from there",
            file=sys.stderr,
            flush=True,
        )
        return False
    put_json(record, {"command": step.command, "seconds": round(time.monotonic() - started, 1)})
    return True


def is_done(step: Step, record: Path) -> bool:
    """Whether the step has ended before, with these arguments."""
    return record.exists() and json.loads(record.read_bytes())["command"] == list(step.command)


def run(config: Pipeline) -> int:
    """Run what is not done; 0 is success, 1 a step that failed, 2 wrong usage."""
    steps = steps_of(config)
    names = [step.name for step in steps]
    if config.upto is not None and config.upto not in names:
        print(f"error: --upto {config.upto}: the steps are {', '.join(names)}", file=sys.stderr)
        return 2
    last = names.index(config.upto) if config.upto is not None else len(names) - 1
    (config.out / "steps").mkdir(parents=True, exist_ok=True)
    skipping = True
    for step in steps[: last + 1]:
        record = config.out / "steps" / f"{step.name}.json"
        skipping = skipping and is_done(step, record)
        if not skipping and not run_step(step, record):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(tyro.cli(Pipeline, description=__doc__)))
