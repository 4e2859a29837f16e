"""One index from start to end: draw a sample, train the quantizer, fill the parts, measure and tune, record.

Everything lies in ``index/<content hash>/``: the hash covers the vectors and what decides the trained bytes, so the
same rows and settings find the same folder again and go on where a killed run stopped.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import faiss
import numpy as np

from memory_builder.coarse import Device, choose_backend
from memory_builder.errors import IndexBuildError, UsageError
from memory_builder.manifest import Commit, Description, Manifest, config_hash, read_description
from memory_builder.parts import FillTask, PartRecord, fill, plan_parts, write_faiss
from memory_builder.progress import say
from memory_builder.quantizer import (
    EXACT_KEY,
    check_key,
    choose_key,
    draw_split,
    n_lists,
    n_training_rows,
    train_quantizer,
    without_polysemous,
)
from memory_builder.rows import Ids, Keys, Rows, open_vectors, present_rows, row_ids, vectors_path
from memory_builder.runner import Runner, run_one
from memory_builder.snapshots import IndexView
from memory_builder.storage import Store
from memory_builder.tables import npy_bytes
from memory_builder.tuning import tune

TARGET_RECALL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How to index one key modality."""

    max_memory: str = "16G"
    """What the index may take in memory; decides how far vectors are compressed."""
    index_key: str | None = None
    """A faiss key, instead of the one chosen for the budget."""
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
        if self.index_key is not None:
            check_key(self.index_key)
            object.__setattr__(self, "index_key", without_polysemous(self.index_key))


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantizer:
    """``trained.json``: the record of a trained quantizer."""

    index_key: str
    sha256: str
    n_train: int
    n_held_out: int
    n_rows: int
    seed: int
    train_threads: int


def build_index(memory: str, keys: Keys, config: IndexConfig, runner: Runner) -> IndexView:
    """Build, or finish building, the index of one key modality over all committed rows.

    Raises:
        IndexBuildError: there is nothing to index, no key fits, or a part failed.
    """
    store = Store(memory)
    description = read_description(store)
    manifest = Manifest.read(store)
    manifest.fold(store)
    commits = manifest.commits
    n_rows = sum(commit.n_present(keys) for commit in commits.values())
    if not n_rows:
        raise IndexBuildError(
            f"{store.root} has no {keys} vectors to index: embed pairs that have the {keys} side, or index the other "
            f"one (--keys {'text' if keys == 'image' else 'image'})"
        )
    key = config.index_key or choose_key(n_rows, description.d, config.max_memory)
    folder = f"index/{_content_hash(description, commits, keys, key, config)}"
    say(f"index {keys}: {key} over {n_rows:,} rows in {folder}")
    train = TrainTask(memory=store.root, folder=folder, keys=keys, ordinals=tuple(commits), config=config)
    quantizer = run_one(runner, train, key)
    parts = plan_parts(commits.values(), keys, config.part_rows)
    task = FillTask(
        memory=store.root, folder=folder, keys=keys, quantizer_sha256=quantizer.sha256, device=config.device
    )
    records = fill(task, parts, runner, f"index {keys}: filled")
    return finish_index(store, keys, description, commits, quantizer, folder, records, config.target_recall, runner)


def finish_index(
    store: Store,
    keys: Keys,
    description: Description,
    commits: dict[int, Commit],
    quantizer: Quantizer,
    folder: str,
    records: list[PartRecord],
    target_recall: float,
    runner: Runner,
) -> IndexView:
    """Measure and tune an index whose parts are there, and write its build record."""
    n_rows = sum(record.n_rows for record in records)
    view = IndexView(index=folder, segments=[[record.name for record in records]], n_rows=n_rows)
    name, tuning = tune(store, view, keys, description.d, commits, target_recall, runner)
    record = _build_record(quantizer, records, description, n_rows, keys, tuning)
    store.put(f"{folder}/index.json", json.dumps(record, indent=1).encode())
    return replace(view, tuning=name)


def _content_hash(
    description: Description, commits: dict[int, Commit], keys: Keys, key: str, config: IndexConfig
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
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTask:
    """A worker that draws the sample and trains the quantizer, unless its record lies there already."""

    memory: str
    folder: str
    keys: Keys
    ordinals: tuple[int, ...]
    config: IndexConfig
    wants_gpu: bool = True

    def start(self) -> Callable[[str], Quantizer]:
        return partial(_train, self)


def _train(task: TrainTask, key: str) -> Quantizer:
    store = Store(task.memory)
    there = read_trained(store, task.folder)
    if there is not None:
        return there
    d = read_description(store).d
    folded = Manifest.read_folded(store).commits  # an embed beside us may have added to it since we were planned
    commits = {ordinal: folded[ordinal] for ordinal in task.ordinals}
    counts = {ordinal: commit.n_present(task.keys) for ordinal, commit in commits.items()}
    n_rows = sum(counts.values())
    wanted = n_training_rows(key, task.config.train_points_per_list)
    held_out, train = (
        ids_at(store, positions, commits, counts, task.keys, d)
        for positions in draw_split(n_rows, wanted, task.config.seed)
    )
    if len(train) < n_lists(key) and key != EXACT_KEY:
        raise IndexBuildError(
            f"{key} has {n_lists(key):,} lists, more than the {len(train):,} rows there are to train on: "
            "name an --index-key with fewer"
        )
    sample = Rows(store, commits, d).vectors(train, task.keys)
    backend = choose_backend(task.config.device)
    index = train_quantizer(key, sample, threads=task.config.train_threads, backend=backend)
    return record_quantizer(
        store,
        task.folder,
        index,
        held_out,
        index_key=key,
        n_train=len(train),
        n_rows=n_rows,
        seed=task.config.seed,
        train_threads=task.config.train_threads,
    )


def record_quantizer(store: Store, folder: str, index: Any, held_out: Ids, **told: Any) -> Quantizer:
    """Write a trained, empty index and the rows set aside to measure with (i64[n]), then the record of both.

    Args:
        told: the fields of ``Quantizer`` that do not follow from these.
    """
    _, digest = write_faiss(store, f"{folder}/trained.faiss", index)
    store.put(f"{folder}/held_out.npy", npy_bytes(held_out))
    quantizer = Quantizer(sha256=digest, n_held_out=len(held_out), **told)
    store.put(f"{folder}/trained.json", json.dumps(asdict(quantizer), indent=1).encode())
    return quantizer


def read_trained(store: Store, folder: str) -> Quantizer | None:
    """The quantizer trained before; None unless everything its record stands for is there."""
    record = store.read_sound_json(f"{folder}/trained.json")
    if (
        record is None
        or "sha256" not in record
        or not store.exists(f"{folder}/held_out.npy")
        or not store.exists(f"{folder}/trained.faiss")
    ):
        return None
    return Quantizer(**record) if store.checksum(f"{folder}/trained.faiss") == record["sha256"] else None


def ids_at(store: Store, positions: Ids, commits: dict[int, Commit], counts: dict[int, int], keys: Keys, d: int) -> Ids:
    """Sorted positions among the rows that have this modality → their row ids."""
    ids, start = [np.zeros(0, np.int64)], 0
    for ordinal, count in counts.items():
        low, high = np.searchsorted(positions, [start, start + count])
        if high > low:
            rows = present_rows(commits[ordinal], open_vectors(store, commits[ordinal], keys, d), keys)
            ids.append(row_ids(ordinal, rows[positions[low:high] - start]))
        start += count
    return np.concatenate(ids)


def _build_record(
    quantizer: Quantizer,
    records: list[PartRecord],
    description: Description,
    n_rows: int,
    keys: Keys,
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
