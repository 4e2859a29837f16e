"""Repair the current indexes: the quantizer from a part, parts from the vectors, records.

A rebuilt file is written only if its bytes match its record.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from memory_builder.ann.kmeans import choose_backend
from memory_builder.ann.parts import Part, PartRecord, filled, read_faiss, read_part_record, write_faiss
from memory_builder.ann.quantizer import draw_split
from memory_builder.base.runner import Runner, available_threads
from memory_builder.base.stage import Stage
from memory_builder.base.types import ROW_BITS, Ids, Modality
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import IndexView, read_snapshot
from memory_builder.catalog.tombstones import read_tombstones
from memory_builder.errors import CorruptMemoryError, MemoryBuilderError
from memory_builder.indexing.finish import restore_build_record
from memory_builder.indexing.train import Quantizer, read_quantizer
from memory_builder.maintenance.repair_records import Repairs
from memory_builder.maintenance.verify import INDEX_AGAIN, Problem, checksum_of, quantizer_hash, sound_snapshots
from memory_builder.storage.formats import npy_bytes
from memory_builder.storage.records import decode_value
from memory_builder.storage.store import Store


def repair_indexes(store: Store, problems: list[Problem], runner: Runner, repairs: Repairs) -> None:
    """Rebuild damaged files of the current indexes; record reasons for the others."""
    damaged = {problem.file for problem in problems}
    for modality, view in read_snapshot(store).indexes.items():
        if not any(file.startswith(f"{view.index}/") for file in damaged):
            continue
        steps: dict[str, Callable[[], bool]] = {
            "trained.json": partial(_repair_quantizer_record, store, view),
            "trained.faiss": partial(_repair_quantizer, store, view),
            "held_out.npy": partial(_repair_held_out, store, view, modality),  # type: ignore[arg-type]
        }
        for name, step in steps.items():
            _try(repairs, damaged, f"{view.index}/{name}", step)
        _repair_parts(store, view, modality, damaged, runner, repairs)  # type: ignore[arg-type]
        restore = partial(_restored, store, view, modality)  # type: ignore[arg-type]
        _try(repairs, damaged, f"{view.index}/index.json", restore)
        for name in (view.tuning, *(f"parts/{part}.json" for part in view.parts)):
            if f"{view.index}/{name}" in damaged:
                repairs.reasons[f"{view.index}/{name}"] = INDEX_AGAIN


def _try(repairs: Repairs, damaged: set[str], file: str, step: Callable[[], bool]) -> None:
    if file not in damaged:
        return
    is_made = False
    with suppress(CorruptMemoryError):
        is_made = step()
    if is_made:
        repairs.files.append(file)
    else:
        repairs.reasons[file] = INDEX_AGAIN


def _restored(store: Store, view: IndexView, modality: Modality) -> bool:
    restore_build_record(store, view, modality)
    return True


def _repair_quantizer_record(store: Store, view: IndexView) -> bool:
    """Rebuild the record from its copy in ``index.json``, if the parts agree with it."""
    path = f"{view.index}/index.json"
    copy = (store.read_json(path) or {}).get("quantizer")
    quantizer = decode_value(Quantizer, copy, where=f"{store.root}/{path}")
    hashes = {record.quantizer_sha256 for record in _records(store, view)}
    if hashes != {quantizer.sha256}:
        return False
    store.put(f"{view.index}/trained.json", quantizer.to_json())
    return True


def _repair_quantizer(store: Store, view: IndexView) -> bool:
    """Rebuild the quantizer by emptying a part, which is a filled copy of it."""
    path = f"{view.index}/trained.faiss"
    for record in _records(store, view):
        part = f"{view.index}/parts/{record.name}.faiss"
        if checksum_of(store, part) != record.sha256:
            continue
        index = read_faiss(store.fetch(part), f"{store.root}/{part}")
        index.reset()
        if _put_if(store, path, index, quantizer_hash(store, view.index) or record.quantizer_sha256):
            return True
    return False


def _put_if(store: Store, path: str, index: object, sha256: str) -> bool:
    """Write a faiss index if its bytes have this checksum."""
    with tempfile.TemporaryDirectory(prefix="memory-builder-repair-") as folder:
        scratch = Store(folder)
        if write_faiss(scratch, "index.faiss", index)[1] != sha256:
            return False
    write_faiss(store, path, index)
    return True


def _repair_held_out(store: Store, view: IndexView, modality: Modality) -> bool:
    """Draw the held-out rows again from the recorded seed and number of rows."""
    quantizer = read_quantizer(store, view.index)
    if quantizer is None:
        return False
    commits, d = Manifest.read(store).commits, read_description(store).d
    first = [record for record in _records(store, view) if record.name in view.segments[0]]
    ordinals = {ordinal for record in first for ordinal in record.ordinals}
    built = {ordinal: commit for ordinal, commit in commits.items() if ordinal in ordinals}
    for deleted in _deletions(store):
        rows = Rows(store, built, d, deleted)
        if rows.n_present(modality) == quantizer.n_rows:
            held_out, _ = draw_split(quantizer.n_rows, quantizer.n_train, quantizer.seed)
            if len(held_out) == quantizer.n_held_out:
                store.put(f"{view.index}/held_out.npy", npy_bytes(rows.ids_at(held_out, modality)))
                return True
    return False


def _repair_parts(
    store: Store, view: IndexView, modality: Modality, damaged: set[str], runner: Runner, repairs: Repairs
) -> None:
    path = {record: f"{view.index}/parts/{record.name}.faiss" for record in _records(store, view)}
    broken = [record for record in path if path[record] in damaged]
    task = RefillTask(memory=store, folder=view.index, modality=modality)
    stage = Stage(name=f"verify {modality}: refilled", task=task, runner=runner, unit="parts")
    for record, result in stage.outcomes(broken) if broken else ():
        if result is True:
            repairs.files.append(path[record])
        else:
            failed = isinstance(result, Exception)
            why = f"{type(result).__name__}: {result}" if failed else "other bytes come of it here"
            again = f"remove {store.root}/{view.index}/parts/{record.name}.json and build the index again"
            repairs.reasons[path[record]] = f"{why}; {again}"


def _records(store: Store, view: IndexView) -> list[PartRecord]:
    """Records of the parts that can be read."""
    records = []
    for name in view.parts:
        with suppress(CorruptMemoryError):
            records.append(read_part_record(store, view.index, name))
    return [record for record in records if record is not None]


def _deletions(store: Store) -> Iterator[Ids]:
    """Iterate over all deleted sets of readable snapshots, and the empty one."""
    yield np.zeros(0, np.int64)
    for path, digest in dict.fromkeys((one.tombstones, one.tombstones_sha256) for one in sound_snapshots(store)):
        with suppress(CorruptMemoryError):
            yield read_tombstones(store, path, digest)


@dataclass(frozen=True, kw_only=True, slots=True)
class RefillTask:
    """Worker that refills damaged parts."""

    memory: Store | str
    folder: str
    modality: Modality
    wants_gpu: bool = True

    def start(self) -> Callable[[PartRecord], bool]:
        return partial(refill, task=self, store=Store(self.memory))


def refill(record: PartRecord, *, task: RefillTask, store: Store) -> bool:
    """Refill a part without the rows deleted at its first filling, and write it if its bytes match the record."""
    path = f"{task.folder}/parts/{record.name}.faiss"
    part = Part(name=record.name, ordinals=record.ordinals)
    commits, d = Manifest.read(store).commits, read_description(store).d
    missing = [ordinal for ordinal in record.ordinals if ordinal not in commits]
    if missing:
        raise MemoryBuilderError(f"shard {missing[0]} is not committed")
    seen: set[bytes] = set()
    for deleted in _deletions(store):
        in_part = deleted[np.isin(deleted >> ROW_BITS, record.ordinals)].tobytes()
        if in_part in seen:
            continue
        seen.add(in_part)
        index, n_deleted = filled(
            part, store, task.folder, task.modality, d, commits, available_threads(), choose_backend("auto"), deleted
        )
        if n_deleted == record.n_deleted and _put_if(store, path, index, record.sha256):
            return True
    return False
