"""Tune and measure an index with filled parts, and write its build record ``index.json``."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import faiss

from memory_builder.ann.parts import PartRecord, part_record
from memory_builder.base.runner import Runner
from memory_builder.base.types import Modality
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import Description, read_description
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_tuning
from memory_builder.errors import BUILD_AGAIN, CorruptMemoryError
from memory_builder.indexing.train import Quantizer, read_quantizer
from memory_builder.indexing.tuning import tune
from memory_builder.storage.records import write_record
from memory_builder.storage.store import Store


def finish_index(
    store: Store,
    modality: Modality,
    description: Description,
    commits: dict[int, Commit],
    quantizer: Quantizer,
    folder: str,
    records: list[PartRecord],
    target_recall: float,
    runner: Runner,
    deleted_as_of: Snapshot,
    trials: Sequence[dict[str, Any]] = (),
) -> IndexView:
    """Tune and measure an index with filled parts, and write its build record.

    The parts hold all rows but those deleted in the snapshot ``deleted_as_of``.
    """
    n_rows = sum(record.n_rows for record in records)
    view = IndexView(index=folder, segments=[[record.name for record in records]], n_rows=n_rows)
    name, tuning = tune(store, view, modality, description.d, commits, target_recall, runner, deleted_as_of)
    record = _build_record(quantizer, records, description, n_rows, modality, tuning)
    if trials:
        record["trials"] = [*trials]
    write_record(store, f"{folder}/index.json", record)
    return replace(view, tuning=name)


def restore_build_record(store: Store, view: IndexView, modality: Modality) -> None:
    """Write a lost ``index.json`` again from the other records; results of trials are lost.

    Raises:
        CorruptMemoryError: one of these records is damaged too.
    """
    quantizer, tuning = read_quantizer(store, view.index), read_tuning(store, view)
    if quantizer is None:
        raise CorruptMemoryError(f"{store.root}/{view.index}/trained.json is missing", BUILD_AGAIN)
    records = [part_record(store, view.index, name) for name in view.segments[0]]
    n_rows = sum(part.n_rows for part in records)
    record = _build_record(quantizer, records, read_description(store), n_rows, modality, tuning)
    write_record(store, f"{view.index}/index.json", record)


def deletions(state: Snapshot) -> dict[str, str]:
    """Content of an index's hash that stands for its snapshot's deleted rows; empty without any."""
    return {"deleted": state.tombstones_sha256} if state.tombstones_sha256 else {}


def _build_record(
    quantizer: Quantizer,
    records: list[PartRecord],
    description: Description,
    n_rows: int,
    modality: Modality,
    tuning: dict[str, Any],
) -> dict[str, Any]:
    """``index.json``: autofaiss's fields, and more."""
    size = sum(record.bytes for record in records)
    sides = tuning["sides"]
    return {
        "index_key": quantizer.index_key,
        "index_param": {
            query_modality: f"nprobe={measured['nprobe']},refine={measured['refine']}"
            for query_modality, measured in sides.items()
        },
        "index_path": "parts",
        "size in bytes": size,
        "nb vectors": n_rows,
        "vectors dimension": description.d,
        "compression ratio": round(4 * n_rows * description.d / size, 3),
        "keys": modality,
        "recall": sides,
        "faiss_version": faiss.__version__,
        "quantizer": asdict(quantizer),
        "parts": [record.name for record in records],
    }
