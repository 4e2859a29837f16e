"""Draw a uniform sample over all shards, and train on it the quantizer that every part is a copy of."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from memory_builder.coarse import Device, choose_backend
from memory_builder.errors import IndexBuildError
from memory_builder.manifest import Manifest, read_description
from memory_builder.parts import write_faiss
from memory_builder.quantizer import EXACT_KEY, draw_split, n_lists, n_training_rows, train_quantizer
from memory_builder.rows import Ids, Keys, Rows, open_vectors
from memory_builder.scores import Scores
from memory_builder.snapshots import Snapshot
from memory_builder.storage import Store
from memory_builder.tables import npy_bytes
from memory_builder.tombstones import current_tombstones


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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTask:
    """A worker that draws the sample and trains the quantizer, unless its record lies there already."""

    memory: Store | str
    folder: str
    keys: Keys
    ordinals: tuple[int, ...]
    train_points_per_list: int
    train_threads: int
    seed: int = 0
    leaving_out: Snapshot | None = None
    """The state whose deleted rows are neither trained on nor set aside; without it, none are deleted."""
    device: Device = "auto"
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
    rows = Rows(store, commits, d, current_tombstones(store, task.leaving_out))
    n_rows = rows.n_present(task.keys)
    wanted = n_training_rows(key, task.train_points_per_list)
    held_out, train = (rows.ids_at(positions, task.keys) for positions in draw_split(n_rows, wanted, task.seed))
    if len(train) < n_lists(key) and key != EXACT_KEY:
        raise IndexBuildError(
            f"{key} has {n_lists(key):,} lists, more than the {len(train):,} rows there are to train on: "
            "name an --index-key with fewer"
        )
    sample = read_sample(rows, train, task.keys)
    backend = choose_backend(task.device)
    index = train_quantizer(key, sample, threads=task.train_threads, backend=backend)
    return record_quantizer(
        store,
        task.folder,
        index,
        held_out,
        index_key=key,
        n_train=len(train),
        n_rows=n_rows,
        seed=task.seed,
        train_threads=task.train_threads,
    )


def read_sample(rows: Rows, ids: Ids, keys: Keys) -> Scores:
    """i64[n] → f32[n, d]. Each shard is let go before the next is read: what stays mapped counts as memory."""
    sample = np.empty((len(ids), rows.d), np.float32)
    for ordinal, places, picked in rows.by_shard(ids):
        sample[places] = open_vectors(rows.store, rows.commits[ordinal], keys, rows.d)[picked]
    return sample


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
