"""Kill -9 the driver at random moments of a stage, run the same command again, compare every byte.

    uv run python benchmarks/chaos.py --shards 'sample/*.tar' --model local-dir:memory_builder/demo/model --kills 25

With ``--memory-root s3://BUCKET/PREFIX`` the memories that are killed lie there, and must equal one on disk; any S3
server that AWS_ENDPOINT_URL and the like lead to will do, such as ``moto_server``.

A round starts with an empty memory (embed) or an embedded one (index) and is killed until it gets through; rounds are
repeated until the kills are used up. Each finished memory must equal that of an uninterrupted run, and no shard or part
that was committed before a kill may be done again. Append, delete, compact, purge and merge start with an indexed
memory; after each kill it must open and answer as before the change or as after it. ``snapshot`` is a deletion that is
killed while its state becomes current. ``retrieve`` makes a subset of an indexed memory that nobody
kills, and ``train`` trains gated blocks on the shards.
"""

import glob
import hashlib
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from memory_builder.memory import Memory
from memory_builder.storage.store import Store

IDENTICAL = ("img_emb/*", "text_emb/*", "metadata/*", "rows/*", "rejects/*")
IDENTICAL_INDEX = ("index/*/trained.faiss", "index/*/held_out.npy", "index/*/parts/*.faiss", "index/*/merged/*")
IDENTICAL_SUBSET = ("*.tar", "*.parquet", "*.npy", "selection.json", "subset.json", "subset.html")
IDENTICAL_RUN = ("checkpoints/*",)
RECORDS = ("commits/*.json", "index/*/parts/*.json", "index/*/trained.json", "search/*.json", "exclude/*.json")
IDENTICAL_CHANGES = ("tombstones/*.npy", "purges/*.json")
CHANGES = {
    "append": ["append"],
    "delete": ["delete", "--where", "caption < 'm'"],
    "snapshot": ["delete", "--where", "caption < 'm'"],
    "compact": ["compact"],
    "purge": ["compact", "--purge"],
    "merge": ["merge"],
}
RETRIEVE = ("--mode", "both", "--per-query", "30", "--block-queries", "4", "--shard-pairs", "60", "--dedup", "0.95")
CLASSES = (
    "cat",
    "bus",
    "umbrella",
    "cup of coffee",
    "airplane",
    "key",
    "bus",
    "guitar",
    "AC/DC",
    "sun",
    "tree",
    "clock",
)
TRAIN = (
    *("--epochs", "100", "--max-steps", "24", "--batch-size", "16", "--checkpoint-every", "2", "--keep", "2"),
    *("--last-k", "1", "--ema", "0.9", "--augmentation", "none", "--precision", "fp32"),
)
Stage = Literal["embed", "index", "append", "delete", "snapshot", "compact", "purge", "merge", "retrieve", "train"]


@dataclass(frozen=True, kw_only=True)
class Chaos:
    """What is killed, and how often."""

    shards: str
    """Tar shards, as for embed."""
    model: str
    """As for embed."""
    work: Path = Path("chaos")
    """Folder for the memories that nobody kills."""
    indexed: Path | None = None
    """An indexed memory to retrieve from, instead of one made of the shards."""
    memory_root: str | None = None
    """Folder or URL for those that are killed; ``work`` if not given. What lies at its ``broken`` is removed."""
    stages: tuple[Stage, ...] = ("embed", "index", *CHANGES, "retrieve", "train")
    kills: int = 25
    """Kills for each stage."""
    seed: int = 0
    """Of the moments."""
    embed_args: str = ""
    """More arguments of embed."""
    index_args: str = "--index-key OPQ16_64,IVF32_HNSW16,PQ16x8np --part-rows 300"
    """More arguments of index; these make it train a product quantizer and fill many parts."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one stage."""

    stage: str
    kills: int
    rounds: int
    records_kept: int
    """Committed before a kill and untouched at the end of the round; all of them, or the run fails."""


def contents(memory: Store, patterns: tuple[str, ...]) -> dict[str, str]:
    """Path → checksum."""
    found = [path.removeprefix(f"{memory.path}/") for path in memory.fs.find(memory.path)]
    wanted = [path for path in found if any(fnmatch(path, pattern) for pattern in patterns)]
    return {path: hashlib.sha256(memory.read(path)).hexdigest() for path in wanted}


def start_afresh(memory: Store, fresh: Path | None) -> None:
    """Leave nothing there but a copy of ``fresh``, if any."""
    if memory.fs.exists(memory.path):
        memory.fs.rm(memory.path, recursive=True)
    for file in sorted(fresh.rglob("*")) if fresh else ():
        if file.is_file():
            memory.put(str(file.relative_to(fresh)), file.read_bytes())


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    """A driver process; its standard error can be read line by line."""
    command = [sys.executable, "-X", "faulthandler", "-m", "memory_builder.cli", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def run(arguments: list[str]) -> float:
    """Run to the end; seconds from the first line of progress."""
    with start(arguments) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        began = time.monotonic()
        rest = process.stderr.read()
    if process.returncode != 0:
        raise SystemExit(f"{arguments} failed:\n{first}{rest}")
    return time.monotonic() - began


def run_killed(arguments: list[str], delay_s: float, is_time: Callable[[], bool] | None = None) -> bool:
    """Kill the driver so long after its first line of progress, or when it is time; False if it was through before."""
    with start(arguments) as process:
        assert process.stderr is not None
        process.stderr.readline()
        while is_time is not None and not is_time() and process.poll() is None:
            delay_s = 0
        try:
            _, said = process.communicate(timeout=delay_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    if process.returncode != 0:
        raise SystemExit(f"{arguments} failed with {process.returncode}:\n{said}")
    return False


def torture(
    stage: str,
    memory: Store,
    fresh: Path | None,
    arguments: list[str],
    expected: dict[str, str],
    seconds: float,
    config: Chaos,
    check: Callable[[], None] = lambda: None,
    is_time: Callable[[], bool] | None = None,
) -> Outcome:
    """Rounds of kills; each is followed by a check, and every finished round compared with the uninterrupted run."""
    moments = random.Random(f"{config.seed} {stage}")
    kills = rounds = kept = 0
    while kills < config.kills:
        start_afresh(memory, fresh)
        committed: dict[str, str] = {}
        while kills < config.kills and run_killed(arguments, moments.uniform(0, seconds), is_time):
            kills += 1
            check()
            committed = contents(memory, RECORDS) if stage != "purge" else {}  # it removes records
            print(f"{stage}: kill {kills}, {len(committed)} records so far", file=sys.stderr, flush=True)
        run(arguments)
        rounds += 1
        again = contents(memory, RECORDS)
        redone = [path for path, digest in committed.items() if again.get(path) != digest]
        if redone:
            raise SystemExit(f"{stage}: done again after a kill: {redone}")
        kept += len(committed)
        check()
        others = {"retrieve": IDENTICAL_SUBSET, "train": IDENTICAL_RUN}
        same = others.get(stage, IDENTICAL + IDENTICAL_INDEX + IDENTICAL_CHANGES)
        found = contents(memory, same)
        if found != expected:
            differing = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
            raise SystemExit(f"{stage}: not what an uninterrupted run writes: {differing}")
    return Outcome(stage=stage, kills=kills, rounds=rounds, records_kept=kept)


def chaos(config: Chaos) -> list[Outcome]:
    """The stages, one after the other; raises SystemExit on the first difference."""
    config.work.mkdir(parents=True, exist_ok=True)
    whole, embedded = (config.work / name for name in ("whole", "embedded"))
    for folder in (whole, embedded):
        shutil.rmtree(folder, ignore_errors=True)
    broken = Store(f"{config.memory_root or config.work}/broken")

    def embed(memory: str) -> list[str]:
        more = shlex.split(config.embed_args)
        return ["embed", config.shards, "--memory", memory, "--model", config.model, *more]

    def index(memory: str) -> list[str]:
        return ["index", memory, *shlex.split(config.index_args)]

    outcomes = []
    if {"embed", "index"} & set(config.stages):
        seconds = run(embed(str(whole)))
    if "embed" in config.stages:
        expected = contents(Store(whole), IDENTICAL)
        outcomes.append(torture("embed", broken, None, embed(broken.root), expected, seconds, config))
    if "index" in config.stages:
        shutil.copytree(whole, embedded)
        seconds = run(index(str(whole)))
        expected = contents(Store(whole), IDENTICAL + IDENTICAL_INDEX)
        outcomes.append(torture("index", broken, embedded, index(broken.root), expected, seconds, config))
    changed = [stage for stage in CHANGES if stage in config.stages]
    if changed:
        some = sorted(glob.glob(config.shards))
        start_afresh(Store(whole), None)
        first = ["embed", *some[: len(some) // 2], "--memory", str(whole), "--model", config.model]
        for arguments in ([*first, *shlex.split(config.embed_args)], index(str(whole)), embed(str(whole))):
            run(arguments)
        outcomes += [torture_change(stage, whole, broken, config) for stage in changed]
    if "retrieve" in config.stages:
        if config.indexed is None:
            start_afresh(Store(whole), None)
            for arguments in (embed(str(whole)), index(str(whole))):
                run(arguments)
        outcomes.append(torture_retrieve(config.indexed or whole, broken, config))
    if "train" in config.stages:
        outcomes.append(torture_train(broken, config))
    return outcomes


def torture_train(broken: Store, config: Chaos) -> Outcome:
    """Rounds of kills while gated blocks are trained on the shards, which lie in one folder."""
    shards, run_folder = str(Path(config.shards).parent), Store(config.work / "run")
    start_afresh(run_folder, None)

    def train(out: Store) -> list[str]:
        return ["train", "react", shards, "--model", config.model, *TRAIN, "--out", out.root]

    seconds = run(train(run_folder))
    expected = contents(run_folder, IDENTICAL_RUN)
    return torture("train", broken, None, train(broken), expected, seconds, config)


def torture_retrieve(memory: Path, broken: Store, config: Chaos) -> Outcome:
    """Rounds of kills while a subset is made of an indexed memory; one of its shards is to be kept out."""
    classes, subset = config.work / "classes.txt", Store(config.work / "subset")
    classes.write_text("\n".join(CLASSES))
    start_afresh(subset, None)
    kept_out = sorted(glob.glob(config.shards))[0]

    def retrieve(out: Store) -> list[str]:
        return ["retrieve", str(memory), "--classes", str(classes), "--exclude", kept_out, *RETRIEVE, "--out", out.root]

    seconds = run(retrieve(subset))
    expected = contents(subset, IDENTICAL_SUBSET)
    return torture("retrieve", broken, None, retrieve(broken), expected, seconds, config)


def torture_change(stage: str, indexed: Path, broken: Store, config: Chaos) -> Outcome:
    """Rounds of kills of one change of an indexed memory with shards that are not in its index yet."""
    before, after = (Store(config.work / f"{when}-{stage}") for when in ("before", "after"))
    start_afresh(before, indexed)
    if stage in ("compact", "purge"):
        run(["append", before.root])
        run(["delete", before.root, "--where", "caption < 'e'"])
    start_afresh(after, Path(before.root))

    def change(memory: Store) -> list[str]:
        command, *flags = CHANGES[stage]
        return [command, memory.root, *flags]

    seconds = run(change(after))
    states = [answers(Memory.open(memory.root)) for memory in (before, after)]

    def check() -> None:
        if not any(np.array_equal(answers(Memory.open(broken.root)), state) for state in states):
            raise SystemExit(f"{stage}: answers after a kill are neither those before it nor those after it")

    expected = contents(after, IDENTICAL + IDENTICAL_INDEX + IDENTICAL_CHANGES)
    is_time = (lambda: broken.exists("snapshots.lock")) if stage == "snapshot" else None
    fresh = Path(before.root)
    return torture(stage, broken, fresh, change(broken), expected, seconds, config, check=check, is_time=is_time)


def answers(memory: Memory) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """What a search that looks everywhere finds for two queries that do not change: all rows there are."""
    queries = np.random.default_rng(0).standard_normal((2, memory.description.d))
    k = sum(commit.n_written for commit in memory.commits.values())
    return np.sort(memory.search(vectors=queries, k=k, keys=memory.snapshot.modalities[0], nprobe=1 << 20).ids, axis=1)


if __name__ == "__main__":
    for outcome in chaos(tyro.cli(Chaos)):
        print(
            f"{outcome.stage}: {outcome.kills} kills in {outcome.rounds} rounds: all bytes as in an uninterrupted run, "
            f"{outcome.records_kept} records from before a kill untouched"
        )
