"""Export rows as tables for other tools.

``img2dataset``: the list of URLs and captions for img2dataset, for a memory without its pictures.
``parquet`` and ``lance``: every row with its metadata and vectors, for data frames and vector databases.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from memory_builder.base.types import MODALITIES, Ids, in_blocks
from memory_builder.errors import UsageError
from memory_builder.memory import Memory
from memory_builder.readers.vector_tables import write_lance
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.store import Store

ROWS_A_FILE = 1_000_000
VECTORS_A_FILE = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlCounts:
    """Counts of an exported URL list."""

    n_written: int
    n_without_url: int
    n_deleted: int
    """Number of requested rows that are deleted."""


def export_urls(memory: Memory, out: str, ids: Ids | None = None) -> UrlCounts:
    """Write ``OUT/00000.parquet`` …: url, caption, key and row id, a million rows a file.

    ``img2dataset --url_list OUT --input_format parquet --url_col url --caption_col caption`` reads them.

    Args:
        ids: i64[n] rows, each once; None for all. Deleted rows are left out.

    Raises:
        UsageError: ``out`` holds parquet files, which img2dataset would read as part of the list.
    """
    store = Store(out)
    written = [name for name in store.list("") if name.endswith(".parquet")]
    if written:
        raise UsageError(
            f"{store.root} holds {written[0]}, which img2dataset would read with this list: use an empty folder"
        )
    n_written = n_without = n_deleted = 0
    every = (memory.row_ids(ordinal) for ordinal in memory.commits)
    if ids is None:
        pieces = in_blocks(every, ROWS_A_FILE)
    else:
        kept = ids[~memory.is_deleted(ids)]
        pieces, n_deleted = iter([kept]), len(ids) - len(kept)
    for number, piece in enumerate(pieces):
        table = memory.rows(piece)
        listed = table.filter(pc.is_valid(table["url"])).select(["url", "caption", "key", "id"])
        n_written += listed.num_rows
        n_without += table.num_rows - listed.num_rows
        store.put(f"{number:05d}.parquet", parquet_bytes(listed))
    return UrlCounts(n_written=n_written, n_without_url=n_without, n_deleted=n_deleted)


def export_table(memory: Memory, out: str, kind: Literal["parquet", "lance"], ids: Ids | None = None) -> int:
    """Write all metadata columns, ``row_id``, ``image_vector`` and ``text_vector``; returns the number of rows.

    ``import`` reads them unchanged. A missing vector is zero.

    Args:
        memory: memory to export.
        out: folder of ``00000.parquet`` …, or of the lance dataset.
        kind: the format.
        ids: i64[n] rows, each once; None for all. Deleted rows are left out.

    Raises:
        UsageError: ``out`` is not empty, or lance is not installed.
    """
    store = Store(out)
    if store.list("") or store.list("", "directory"):
        raise UsageError(f"{store.root} is not empty: use another OUT")
    every = (memory.row_ids(ordinal) for ordinal in memory.commits)
    pieces = in_blocks(every, VECTORS_A_FILE) if ids is None else _blocks(ids[~memory.is_deleted(ids)])
    n_rows = 0
    for number, piece in enumerate(pieces):
        table = _with_vectors(memory, piece)
        n_rows += table.num_rows
        if kind == "parquet":
            store.put(f"{number:05d}.parquet", parquet_bytes(table))
        else:
            write_lance(store.root, table, is_first=number == 0)
    return n_rows


def _blocks(ids: Ids) -> Iterator[Ids]:
    return (ids[start : start + VECTORS_A_FILE] for start in range(0, len(ids), VECTORS_A_FILE))


def _with_vectors(memory: Memory, ids: Ids) -> pa.Table:
    table = memory.metadata(ids)
    columns: dict[str, Any] = {"row_id": pa.array(ids, pa.int64())}
    for modality in MODALITIES:
        flat = pa.array(memory.vectors(ids, modality).astype(np.float16).ravel(), pa.float16())
        columns[f"{modality}_vector"] = pa.FixedSizeListArray.from_arrays(flat, memory.description.d)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def read_hits(path: Path) -> Ids:
    """Read row ids i64[n] from the output of ``search --json``, each once in order of appearance.

    Raises:
        UsageError: the file is not such output.
    """
    ids: dict[int, None] = {}
    try:
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):  # a caption may hold other line ends
            parsed: dict[str, Any] = json.loads(line)
            ids |= dict.fromkeys(int(np.int64(hit["id"])) for hit in parsed["hits"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UsageError(f"--hits {path}: expected output of search --json ({type(error).__name__}: {error})") from None
    return np.array(list(ids), np.int64)
