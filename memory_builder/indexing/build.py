"""One index from start to end: draw a sample, train the quantizer, fill the parts, measure and tune, record.

Everything lies in ``index/<content hash>/``: the hash covers the vectors and what decides the trained bytes, so the
same rows and settings find the same folder again and go on where a killed run stopped.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import faiss

from memory_builder.ann.kmeans import Device
from memory_builder.ann.parts import FillTask, PartRecord, fill, part_record, plan_parts
from memory_builder.ann.quantizer import check_key, choose_key, without_polysemous
from memory_builder.base.progress import say
from memory_builder.base.runner import Runner, run_one
from memory_builder.base.types import (
    Modality,
)
from memory_builder.catalog.commits import (
    Commit,
)
from memory_builder.catalog.description import (
    Description,
    read_description,
)
from memory_builder.catalog.manifest import (
    Manifest,
)
from memory_builder.catalog.paths import (
    vectors_path,
)
from memory_builder.catalog.rows import (
    Rows,
)
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_snapshot, read_tuning
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import BUILD_AGAIN, CorruptMemoryError, IndexBuildError, UsageError
from memory_builder.indexing.auto_key import Trial, TrialTask, choose_by_trials
from memory_builder.indexing.train import Quantizer, TrainTask, read_quantizer
from memory_builder.indexing.tuning import tune
from memory_builder.storage.records import (
    config_hash,
)
from memory_builder.storage.store import Store

TARGET_RECALL = 0.95
AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How to index one key modality."""

    max_memory: str = "16G"
    """What the index may take in memory; decides how far vectors are compressed."""
    index_key: str | None = None
    """A faiss key, instead of the one autofaiss has for the budget; auto: also try 4-bit RaBitQ and PQ on a sample, and
    take the cheapest that reaches the target."""
    target_recall: float = TARGET_RECALL
    """recall@10 that searches are tuned to."""
    train_points_per_list: int = 100
    """Rows in the training sample for each inverted list."""
    part_rows: int = 1_000_000
    """Rows in a part, about: the unit of filling, retry and memory."""
    train_threads: int = os.cpu_count() or 1
    """Threads to train with; the trained bytes depend on it."""
    seed: int = 0
    """Of the draw of training rows and held-out queries."""
    device: Device = "auto"
    """Where k-means runs and rows find their lists; auto: on a GPU where the worker has one."""

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise UsageError(f"--target-recall {self.target_recall}: expected more than 0 and at most 1")
        for name in ("train_points_per_list", "part_rows", "train_threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if self.index_key not in (None, AUTO):
            check_key(self.index_key)
            object.__setattr__(self, "index_key", without_polysemous(self.index_key))


def build_index(memory: Store | str, keys: Modality, config: IndexConfig, runner: Runner) -> IndexView:
    """Build, or finish building, the index of one key modality over all committed rows that are not deleted by now.

    Raises:
        IndexBuildError: there is nothing to index, no key fits, or a part failed.
    """
    store = Store(memory)
    description = read_description(store)
    manifest = Manifest.read(store)
    manifest.fold(store)
    commits, state = manifest.commits, read_snapshot(store)
    n_rows = Rows(store, commits, description.d, current_tombstones(store, state)).n_present(keys)
    if not n_rows:
        raise IndexBuildError(
            f"{store.root} has no {keys} vectors to index: embed pairs that have the {keys} side, or index the other "
            f"one (--modality {'text' if keys == 'image' else 'image'})"
        )
    key, trials = _choose(store, keys, config, description, commits, n_rows, runner, state)
    folder = f"index/{_content_hash(description, commits, keys, key, config, state)}"
    say(f"index {keys}: {key} over {n_rows:,} rows in {folder}")
    train = TrainTask(
        memory=store,
        folder=folder,
        keys=keys,
        ordinals=tuple(commits),
        train_points_per_list=config.train_points_per_list,
        train_threads=config.train_threads,
        seed=config.seed,
        leaving_out=state,
        device=config.device,
    )
    quantizer = run_one(runner, train, key)
    parts = plan_parts(commits.values(), keys, config.part_rows)
    task = FillTask(
        memory=store,
        folder=folder,
        keys=keys,
        quantizer_sha256=quantizer.sha256,
        leaving_out=state,
        device=config.device,
    )
    records = fill(task, parts, runner, f"index {keys}: filled")
    return finish_index(
        store, keys, description, commits, quantizer, folder, records, config.target_recall, runner, state, trials
    )


def _choose(
    store: Store,
    keys: Modality,
    config: IndexConfig,
    description: Description,
    commits: dict[int, Commit],
    n_rows: int,
    runner: Runner,
    state: Snapshot,
) -> tuple[str, list[Trial]]:
    """The key to build with, and what was tried to find it."""
    if config.index_key != AUTO:
        return config.index_key or choose_key(n_rows, description.d, config.max_memory), []
    content = {
        "content": _content_hash(description, commits, keys, AUTO, config, state),
        "max_memory": config.max_memory,
        "target_recall": config.target_recall,
    }
    task = TrialTask(
        memory=store,
        folder=f"index/{config_hash(content)}",
        keys=keys,
        ordinals=tuple(commits),
        target_recall=config.target_recall,
        train_threads=config.train_threads,
        seed=config.seed,
        device=config.device,
        leaving_out=state,
    )
    return choose_by_trials(task, n_rows, description.d, config.max_memory, runner)


def finish_index(
    store: Store,
    keys: Modality,
    description: Description,
    commits: dict[int, Commit],
    quantizer: Quantizer,
    folder: str,
    records: list[PartRecord],
    target_recall: float,
    runner: Runner,
    leaving_out: Snapshot,
    trials: Sequence[Trial] = (),
) -> IndexView:
    """Measure and tune an index whose parts are there, and write its build record.

    The parts hold all rows but those deleted in the state ``leaving_out``.
    """
    n_rows = sum(record.n_rows for record in records)
    view = IndexView(index=folder, segments=[[record.name for record in records]], n_rows=n_rows)
    name, tuning = tune(store, view, keys, description.d, commits, target_recall, runner, leaving_out)
    record = _build_record(quantizer, records, description, n_rows, keys, tuning)
    if trials:
        record["trials"] = [asdict(trial) for trial in trials]
    store.put(f"{folder}/index.json", json.dumps(record, indent=1).encode())
    return replace(view, tuning=name)


def restore_build_record(store: Store, view: IndexView, keys: Modality) -> None:
    """Write a lost ``index.json`` anew, from what it was made of; what was tried before the key was chosen is lost.

    Raises:
        CorruptMemoryError: of that something is damaged too.
    """
    quantizer, tuning = read_quantizer(store, view.index), read_tuning(store, view)
    if quantizer is None:
        raise CorruptMemoryError(f"{store.root}/{view.index}/trained.json is missing", BUILD_AGAIN)
    records = [part_record(store, view.index, name) for name in view.segments[0]]
    n_rows = sum(part.n_rows for part in records)
    record = _build_record(quantizer, records, read_description(store), n_rows, keys, tuning)
    store.put(f"{view.index}/index.json", json.dumps(record, indent=1).encode())


def _content_hash(
    description: Description, commits: dict[int, Commit], keys: Modality, key: str, config: IndexConfig, state: Snapshot
) -> str:
    vectors = {str(o): commit.checksums[vectors_path(o, keys)] for o, commit in commits.items()}
    device = {} if config.device == "auto" else {"device": config.device}
    return config_hash(
        {
            "keys": keys,
            "index_key": key,
            "fingerprint": description.fingerprint,
            "vectors": vectors,
            "train_points_per_list": config.train_points_per_list,
            "part_rows": config.part_rows,
            "train_threads": config.train_threads,
            "seed": config.seed,
            **device,
            **deletions(state),
        }
    )


def deletions(state: Snapshot) -> dict[str, str]:
    """What the deleted rows of a state add to the content of an index without them: nothing where there are none."""
    return {"deleted": state.tombstones_sha256} if state.tombstones_sha256 else {}


def _build_record(
    quantizer: Quantizer,
    records: list[PartRecord],
    description: Description,
    n_rows: int,
    keys: Modality,
    tuning: dict[str, Any],
) -> dict[str, Any]:
    """``index.json``: autofaiss's keys, and what we know beyond."""
    size = sum(record.bytes for record in records)
    sides = tuning["sides"]
    return {
        "index_key": quantizer.index_key,
        "index_param": {side: f"nprobe={found['nprobe']},refine={found['refine']}" for side, found in sides.items()},
        "index_path": "parts",
        "size in bytes": size,
        "nb vectors": n_rows,
        "vectors dimension": description.d,
        "compression ratio": round(4 * n_rows * description.d / size, 3),
        "keys": keys,
        "recall": sides,
        "faiss_version": faiss.__version__,
        "quantizer": asdict(quantizer),
        "parts": [record.name for record in records],
    }
