"""Parts: copies of the quantizer filled with the rows of some shards, each a plain faiss file with its own record.

A part is the unit of work, retry and resume. Row ids are stored inside faiss, so parts can be filled in any order, on
any machine, and searched together.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from memory_builder.ann.faiss_checks import index_problem
from memory_builder.ann.kmeans import Backend, Device, adder, choose_backend
from memory_builder.base.runner import Runner, Task, available_threads
from memory_builder.base.stage import Stage
from memory_builder.base.types import Ids, Modality, row_ids, rows_of
from memory_builder.catalog.commits import Commit, refuse_uncommitted
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.paths import shard_name
from memory_builder.catalog.rows import open_vectors, present_rows
from memory_builder.catalog.snapshots import IndexView, Snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import BUILD_AGAIN, REPAIR, CorruptMemoryError, IndexBuildError
from memory_builder.storage.records import (
    Count,
    Digest,
    Ordinal,
    PartName,
    content_hash,
    partial_record,
    read_record,
    strict_record,
    write_record,
)
from memory_builder.storage.store import FULL, Store

PART_AGAIN = f"open the memory anew if it was compacted since; else {REPAIR}"
"""Remedy for a missing or damaged part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Consecutive shards whose rows make one part."""

    name: str
    ordinals: tuple[int, ...]


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class PartRecord:
    """``parts/<name>.json``: makes ``parts/<name>.faiss`` exist."""

    name: PartName
    ordinals: tuple[Ordinal, ...]
    n_rows: Count
    bytes: Count
    sha256: Digest
    quantizer_sha256: Digest
    n_deleted: Count = 0
    """Rows of these shards that were already deleted, and left out, when the part was filled."""

    def n_dead(self, deleted: Ids) -> int:
        """Count the rows of these shards deleted (i64[n], ascending) since the part was filled.

        Rows without the part's modality count too, so this is an upper bound of the deleted rows in it.
        """
        return sum(len(rows_of(ordinal, deleted)) for ordinal in self.ordinals) - self.n_deleted


def plan_parts(commits: Iterable[Commit], modality: Modality, part_rows: int, *, salt: str | None = None) -> list[Part]:
    """Group shards, in order, into parts of about ``part_rows`` rows; a shard is never split.

    The parts of a first build are named by their first and last shard. Names of later ones also have a hash of
    ``salt``, which identifies their content beyond the shards, as earlier snapshots' parts are in the same folder.
    """
    parts: list[Part] = []
    ordinals: list[int] = []
    n_rows = 0
    for commit in commits:
        n_shard = commit.n_present(modality)
        if ordinals and n_rows + n_shard > part_rows:
            parts.append(part_of(ordinals, salt))
            ordinals, n_rows = [], 0
        ordinals.append(commit.ordinal)
        n_rows += n_shard
    return [*parts, part_of(ordinals, salt)] if ordinals else parts


def part_of(ordinals: Sequence[int], salt: str | None = None) -> Part:
    """Return the part of these shards, named as in ``plan_parts``."""
    name = f"{shard_name(ordinals[0])}-{shard_name(ordinals[-1])}"
    if salt is not None:
        name = f"{name}-{content_hash({'ordinals': list(ordinals), 'salt': salt})[:8]}"
    return Part(name=name, ordinals=tuple(ordinals))


def read_part_record(store: Store, folder: str, name: str) -> PartRecord | None:
    """Read the record of a finished part; None if it is missing.

    Raises:
        CorruptMemoryError: the record is damaged.
    """
    path = f"{folder}/parts/{name}.json"
    record = read_record(store, path, PartRecord, fix=BUILD_AGAIN)
    if record is not None and record.name != name:
        raise CorruptMemoryError(f"{store.root}/{path} is damaged (name: it is of part {record.name})", BUILD_AGAIN)
    return record


def part_record(store: Store, folder: str, name: str) -> PartRecord:
    """Read the record of a part that a snapshot names.

    Raises:
        CorruptMemoryError: the record is missing or damaged.
    """
    record = read_part_record(store, folder, name)
    if record is None:
        raise CorruptMemoryError(f"{store.root}/{folder}/parts/{name}.json is missing", PART_AGAIN)
    return record


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """``trained.json``: the fields that a search needs."""

    sha256: Digest
    n_rows: Count | None = None
    """Rows of the memory when the quantizer was trained."""


def trained_record(store: Store, folder: str) -> Trained:
    """Read the record of the trained quantizer.

    Raises:
        CorruptMemoryError: the record is missing or damaged.
    """
    path = f"{folder}/trained.json"
    record = read_record(store, path, Trained, fix=BUILD_AGAIN)
    if record is None:
        raise CorruptMemoryError(f"{store.root}/{path} is missing", BUILD_AGAIN)
    return record


def read_quantizer_hash(store: Store, folder: str) -> str:
    """Read the SHA-256 of the trained quantizer from ``trained.json``."""
    return trained_record(store, folder).sha256


def read_faiss(path: Path, name: str, flags: int = 0) -> Any:
    """Read a faiss index from a file, called ``name`` in messages.

    Raises:
        CorruptMemoryError: the file is missing, or faiss cannot read it.
    """
    if not path.exists():
        raise CorruptMemoryError(f"{name} is missing", REPAIR)
    try:
        index = faiss.read_index(str(path), flags)
        problem = index_problem(index)
    except (RuntimeError, MemoryError, ValueError, OverflowError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[-1][-200:]
    if problem is not None:
        raise CorruptMemoryError(f"{name} cannot be read ({problem})", REPAIR)
    return index


def open_trained(store: Store, folder: str) -> Any:
    """Read the trained quantizer of an index: a faiss index without rows.

    Raises:
        CorruptMemoryError: the file is missing, or faiss cannot read it.
    """
    path = f"{folder}/trained.faiss"
    return read_faiss(store.fetch(path), f"{store.root}/{path}")


def write_faiss(store: Store, path: str, index: Any) -> tuple[int, str]:
    """Write an index atomically; return its size in bytes and its SHA-256."""
    with store.writing(path) as temporary:
        with _faiss_errors():
            faiss.write_index(index, str(temporary))
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = temporary.stat().st_size
    return size, digest


@contextmanager
def _faiss_errors() -> Iterator[None]:
    """Raise an OSError for a failed write in faiss, which reports it as text alone."""
    try:
        yield
    except RuntimeError as error:
        for number in FULL:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise


def finished_part(store: Store, folder: str, part: Part, quantizer_sha256: str) -> PartRecord | None:
    """Read the record of a complete part; None if the part must be filled.

    Raises:
        IndexBuildError: the part belongs to another build.
    """
    record = None
    with suppress(CorruptMemoryError):  # a damaged record is written anew
        record = read_part_record(store, folder, part.name)
    if record is None or _size(store, f"{folder}/parts/{part.name}.faiss") != record.bytes:
        return None
    if record.quantizer_sha256 != quantizer_sha256:
        raise IndexBuildError(
            f"part {part.name} in {store.root}/{folder} was filled with quantizer {record.quantizer_sha256[:12]}, "
            f"this index has {quantizer_sha256[:12]}: remove the folder and build again"
        )
    return record


def record_part(
    store: Store, folder: str, part: Part, index: Any, quantizer_sha256: str, *, n_deleted: int = 0
) -> PartRecord:
    """Write a filled part, then its record."""
    size, digest = write_faiss(store, f"{folder}/parts/{part.name}.faiss", index)
    record = PartRecord(
        name=part.name,
        ordinals=part.ordinals,
        n_rows=index.ntotal,
        bytes=size,
        sha256=digest,
        quantizer_sha256=quantizer_sha256,
        n_deleted=n_deleted,
    )
    write_record(store, f"{folder}/parts/{part.name}.json", record)
    return record


def fill_part(
    part: Part,
    *,
    store: Store,
    folder: str,
    modality: Modality,
    d: int,
    commits: dict[int, Commit],
    quantizer_sha256: str,
    threads: int,
    backend: Backend = "cpu",
    deleted: Ids | None = None,
) -> PartRecord:
    """Fill one part without the deleted rows (i64[n], ascending) and record it, unless it is recorded already.

    Raises:
        IndexBuildError: the recorded part, or the quantizer in the folder, belongs to another build.
    """
    finished = finished_part(store, folder, part, quantizer_sha256)
    if finished is not None:
        return finished
    trained = f"{folder}/trained.faiss"
    if store.checksum(trained) != quantizer_sha256:
        raise IndexBuildError(f"{store.root}/{trained} is not the quantizer of this index: remove {folder}")
    index, n_deleted = filled(part, store, folder, modality, d, commits, threads, backend, deleted)
    return record_part(store, folder, part, index, quantizer_sha256, n_deleted=n_deleted)


def filled(
    part: Part,
    store: Store,
    folder: str,
    modality: Modality,
    d: int,
    commits: dict[int, Commit],
    threads: int,
    backend: Backend,
    deleted: Ids | None,
) -> tuple[Any, int]:
    """Return (the faiss index of a part, number of deleted rows left out). Arguments as for ``fill_part``."""
    faiss.omp_set_num_threads(threads)
    refuse_uncommitted(part.ordinals, commits, f"part {part.name} of {store.root}/{folder}")
    index = open_trained(store, folder)
    if (index.d, index.ntotal) != (d, 0):
        problem = f"has vectors of width {index.d} and {index.ntotal} rows"
        raise CorruptMemoryError(f"{store.root}/{folder}/trained.faiss {problem}, not of width {d} and empty", REPAIR)
    add, n_deleted = adder(index, backend), 0
    for ordinal in part.ordinals:
        vectors = open_vectors(store, commits[ordinal], modality, d)
        rows = present_rows(commits[ordinal], vectors, modality, deleted)
        add(np.asarray(vectors[rows], np.float32), row_ids(ordinal, rows))
        n_deleted += 0 if deleted is None else len(rows_of(ordinal, deleted))
    return index, n_deleted


def _size(store: Store, path: str) -> int | None:
    try:
        return store.size(path)
    except FileNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class FillTask:
    """A worker that fills parts of one index."""

    memory: Store | str
    folder: str
    modality: Modality
    quantizer_sha256: str
    deleted_as_of: Snapshot | None = None
    """Snapshot whose deleted rows are left out; None leaves out none."""
    device: Device = "auto"
    wants_gpu: bool = True

    def start(self) -> Callable[[Part], PartRecord]:
        store = Store(self.memory)
        return partial(
            fill_part,
            store=store,
            folder=self.folder,
            modality=self.modality,
            d=read_description(store).d,
            commits=Manifest.read_folded(store).commits,
            quantizer_sha256=self.quantizer_sha256,
            threads=available_threads(),
            backend=choose_backend(self.device),
            deleted=current_tombstones(store, self.deleted_as_of),
        )


def fill(task: Task[Part, PartRecord], parts: Sequence[Part], runner: Runner, stage_name: str) -> list[PartRecord]:
    """Fill parts, or copy them from a published index; return their records in order."""
    stage = Stage(name=stage_name, task=task, runner=runner, unit="parts")
    records = {part.name: record for part, record in stage.results(parts)}
    return [records[part.name] for part in parts]


PART_ROWS = 1_000_000
"""Approximate number of rows in a part."""


def records_of(store: Store, view: IndexView) -> list[PartRecord]:
    """Read the records of all parts of an index."""
    return [part_record(store, view.index, name) for names in view.segments for name in names]


def is_whole(store: Store, view: IndexView) -> bool:
    """Whether the files of all parts exist with the sizes of their records."""
    try:
        return all(
            store.size(f"{view.index}/parts/{part.name}.faiss") == part.bytes for part in records_of(store, view)
        )
    except (CorruptMemoryError, FileNotFoundError):
        return False
