"""Train the quantizer, of which every part is a copy, on a uniform sample over all shards."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from memory_builder.ann.kmeans import Device, choose_backend
from memory_builder.ann.parts import write_faiss
from memory_builder.ann.quantizer import EXACT_KEY, draw_split, n_lists, n_training_rows, train_quantizer
from memory_builder.base.types import Ids, Modality, Scores
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows, are_rows, open_vectors
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import BUILD_AGAIN, CorruptMemoryError, IndexBuildError
from memory_builder.storage.formats import npy_bytes, read_npy
from memory_builder.storage.records import (
    Count,
    Digest,
    read_record,
    read_sound_record,
    reading,
    record_bytes,
    strict_record,
)
from memory_builder.storage.store import Store


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Quantizer:
    """``trained.json``: the record of a trained quantizer."""

    index_key: str
    sha256: Digest
    n_train: Count
    n_held_out: Count
    n_rows: Count
    seed: int
    train_threads: Count

    def to_json(self) -> bytes:
        return record_bytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTask:
    """Worker that draws the sample and trains the quantizer, unless it is recorded."""

    memory: Store | str
    folder: str
    modality: Modality
    ordinals: tuple[int, ...]
    train_points_per_list: int
    train_threads: int
    seed: int = 0
    deleted_as_of: Snapshot | None = None
    """Snapshot whose deleted rows are neither trained on nor held out; without it, all rows are used."""
    device: Device = "auto"
    wants_gpu: bool = True

    def start(self) -> Callable[[str], Quantizer]:
        return partial(_train, self)


def _train(task: TrainTask, key: str) -> Quantizer:
    store = Store(task.memory)
    trained = read_trained(store, task.folder)
    if trained is not None:
        return trained
    d = read_description(store).d
    folded = Manifest.read_folded(store).commits  # a concurrent embed may have added shards
    commits = {ordinal: folded[ordinal] for ordinal in task.ordinals}
    rows = Rows(store, commits, d, current_tombstones(store, task.deleted_as_of))
    n_rows = rows.n_present(task.modality)
    wanted = n_training_rows(key, task.train_points_per_list)
    held_out, train = (rows.ids_at(positions, task.modality) for positions in draw_split(n_rows, wanted, task.seed))
    if len(train) < n_lists(key) and key != EXACT_KEY:
        raise IndexBuildError(
            f"{key} has {n_lists(key):,} lists, more than the {len(train):,} training rows: "
            "name an --index-key with fewer"
        )
    sample = read_sample(rows, train, task.modality)
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


def read_sample(rows: Rows, ids: Ids, modality: Modality) -> Scores:
    """i64[n] → f32[n, d]. Unmaps each shard before reading the next, since mapped pages count as memory."""
    sample = np.empty((len(ids), rows.d), np.float32)
    for ordinal, positions, picked in rows.by_shard(ids):
        sample[positions] = open_vectors(rows.store, rows.commits[ordinal], modality, rows.d)[picked]
    return sample


def record_quantizer(store: Store, folder: str, index: Any, held_out: Ids, **fields: Any) -> Quantizer:
    """Write a trained, empty index and its held-out rows (i64[n]), then the record of both.

    Args:
        fields: the other fields of ``Quantizer``.
    """
    _, digest = write_faiss(store, f"{folder}/trained.faiss", index)
    store.put(f"{folder}/held_out.npy", npy_bytes(held_out))
    quantizer = Quantizer(sha256=digest, n_held_out=len(held_out), **fields)
    store.put(f"{folder}/trained.json", quantizer.to_json())
    return quantizer


def read_held_out(store: Store, folder: str, commits: dict[int, Commit]) -> Ids:
    """i64[n] row ids held out before training.

    Raises:
        CorruptMemoryError: the file is missing or damaged, or names a row that the memory does not have.
    """
    where = f"{store.root}/{folder}/held_out.npy"
    with reading(where, BUILD_AGAIN):  # a missing file is an OSError too
        held_out: Ids = read_npy(io.BytesIO(store.read(f"{folder}/held_out.npy")))
        if held_out.dtype != np.int64 or held_out.ndim != 1 or not are_rows(held_out, commits).all():
            raise ValueError(f"it holds {held_out.dtype}{list(held_out.shape)}, or ids of no row")
    return held_out


def read_quantizer(store: Store, folder: str) -> Quantizer | None:
    """Read the record of a trained quantizer; None without one.

    Raises:
        CorruptMemoryError: the record is damaged.
    """
    return read_record(store, f"{folder}/trained.json", Quantizer, fix=BUILD_AGAIN)


def read_trained(store: Store, folder: str) -> Quantizer | None:
    """Read the record of a quantizer trained before; None unless all its files match it."""
    record = read_sound_record(store, f"{folder}/trained.json", Quantizer)
    try:
        is_whole = record is not None and store.checksum(f"{folder}/trained.faiss") == record.sha256
        if is_whole and record is not None:
            commits = Manifest.read_folded(store).commits
            is_whole = len(read_held_out(store, folder, commits)) == record.n_held_out
    except (FileNotFoundError, CorruptMemoryError):
        return None
    return record if is_whole else None
