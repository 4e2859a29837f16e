"""Export a memory as the folder that ``clip-retrieval back`` serves.

clip-retrieval uses row numbers as ids, so rows are numbered from 0, by row id and without deleted ones; row i of the
metadata is number i in the indexes. ``row_id`` refers back to the memory.
"""

from dataclasses import dataclass
from itertools import chain

import faiss
import numpy as np
import pyarrow as pa

from memory_builder.ann.inverted_lists import ID_BYTES, with_lists_in_memory
from memory_builder.ann.parts import open_trained, write_faiss
from memory_builder.ann.quantizer import memory_bytes
from memory_builder.base.runner import Runner
from memory_builder.base.types import Modality, in_blocks
from memory_builder.catalog.dense_ids import DenseIds
from memory_builder.catalog.description import Description
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.errors import UsageError
from memory_builder.export.faiss_ondisk import MergeTask, kept_lists, merge_into, open_lists, set_nprobe
from memory_builder.memory import Memory
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.records import write_record
from memory_builder.storage.store import Store

COLUMNS = ["image_path", "caption", "url", "row_id"]
ROWS_A_FILE = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportCounts:
    """Counts of an export."""

    n_rows: int
    """Number of metadata rows: all rows of indexed shards, without deleted ones."""
    indexes: dict[Modality, int]
    """Modality → number of vectors."""


def export_clip_retrieval(memory: Memory, out: str, *, max_file: str, runner: Runner) -> ExportCounts:
    """Write ``image.index`` and ``text.index`` (if they exist), ``metadata/`` and ``indices_paths.json``.

    Args:
        memory: memory to export.
        out: folder to write.
        max_file: largest index file; a larger index becomes a folder with on-disk lists, written by ``runner``; a
            smaller one is written from RAM.

    Raises:
        UsageError: the memory has no index, or an exact one larger than ``max_file``.
    """
    store, modalities = Store(out), memory.snapshot.modalities
    if not modalities:
        raise UsageError(f"{memory.store.root} has no index to serve: run memory-builder index {memory.store.root}")
    ordinals = sorted({ordinal for modality in modalities for ordinal in memory.index(modality).ordinals})
    n_rows = {ordinal: memory.commits[ordinal].n_written for ordinal in ordinals}
    kept = DenseIds(n_rows, current_tombstones(memory.store, memory.snapshot))
    _write_metadata(memory, kept, store)
    largest = memory_bytes(max_file)
    indexes = {
        modality: _write_index(memory, modality, kept, tuple(ordinals), store, largest, runner)
        for modality in modalities
    }
    paths = {"memory": {"indice_folder": store.root} | _options(memory.description)}
    write_record(store, "indices_paths.json", paths)
    return ExportCounts(n_rows=kept.n, indexes=indexes)


def _options(description: Description) -> dict[str, object]:
    """Options of its command, so that ``clip-retrieval back --indices_paths OUT/indices_paths.json`` is enough."""
    options: dict[str, object] = {
        "enable_faiss_memory_mapping": True,  # folders need it
        "columns_to_return": COLUMNS,
        "enable_mclip_option": False,
        "use_jit": False,
        "provide_aesthetic_embeddings": False,
    }
    model, pretrained = description.model, description.pretrained
    if model and pretrained and ":" not in model:  # other models must be passed as --clip_model
        options["clip_model"] = f"open_clip:{model}/{pretrained}"
    return options


def _write_metadata(memory: Memory, kept: DenseIds, store: Store) -> None:
    none = np.zeros(0, np.int64)  # an export without rows has one empty file
    for number, ids in enumerate(in_blocks(chain([none], kept.by_shard()), ROWS_A_FILE)):
        rows = memory.rows(ids)
        table = pa.table(
            {"image_path": rows["key"], "caption": rows["caption"], "url": rows["url"], "row_id": rows["id"]}
        )
        store.put(f"metadata/metadata_{number:05d}.parquet", parquet_bytes(table))
    for name in store.list("metadata"):  # left by an earlier, larger export
        if name >= f"metadata_{number + 1:05d}":
            store.remove(f"metadata/{name}")


def _write_index(
    memory: Memory,
    modality: Modality,
    kept: DenseIds,
    ordinals: tuple[int, ...],
    store: Store,
    largest: int,
    runner: Runner,
) -> int:
    """Write one index; returns its number of vectors."""
    target, index = f"{modality}.index", memory.index(modality)
    n_bytes = index.n_rows * (index.code_bytes + ID_BYTES)
    is_large = n_bytes > largest
    if store.exists(target) and bool(store.fs.isdir(store.full(target))) != is_large:
        kind = "file" if is_large else "folder"
        raise UsageError(f"{store.root}/{target} is a {kind} of an earlier export: remove it, or use another OUT")
    if is_large and index.is_exact:
        raise UsageError(
            f"the exact index of {modality} vectors takes {n_bytes / 1e9:.1f} GB and cannot be split: raise --max-file"
        )
    if is_large:
        merged = merge_into(store, target, memory.store, memory.snapshot, modality, numbered=ordinals, runner=runner)
        return merged.n_rows
    if index.is_exact:
        return _write_exact(memory, modality, kept, store, target)
    return _write_lists(memory, modality, ordinals, store, target)


def _write_lists(memory: Memory, modality: Modality, ordinals: tuple[int, ...], store: Store, target: str) -> int:
    snapshot = memory.snapshot
    task = MergeTask(
        memory=memory.store, snapshot=snapshot, modality=modality, out=store, target=target, numbered=ordinals
    )
    lists = open_lists(memory.store, snapshot, modality)
    read = kept_lists(lists, memory.store, task)
    trained = open_trained(memory.store, snapshot.indexes[modality].index)
    whole = with_lists_in_memory(trained, map(read, range(lists.n_lists)))
    write_faiss(store, target, set_nprobe(whole, memory.store, snapshot, modality))
    return int(whole.ntotal)


def _write_exact(memory: Memory, modality: Modality, kept: DenseIds, store: Store, target: str) -> int:
    index = faiss.index_factory(memory.description.d, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    for ids in kept.by_shard():
        vectors = memory.vectors(ids, modality)
        present = vectors.any(axis=1)
        index.add_with_ids(vectors[present], kept.numbers(ids[present]))
    write_faiss(store, target, index)
    return int(index.ntotal)
