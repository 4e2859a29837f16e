"""How the files of a shard are laid out: metadata columns, look-up rows, and the bytes of each format.

The same rows give the same bytes; docs/contract.md describes every column.
"""

import io
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.values import converted, strict_json

FIXED_FIELDS = [
    ("key", pa.string()),
    ("caption", pa.string()),
    ("url", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("sha256", pa.string()),
    ("member", pa.string()),
    ("has_image", pa.bool_()),
    ("has_text", pa.bool_()),
]
LOOKUP_FIELDS = ("key", "caption", "url")
_LITERALS = threading.Lock()
COLUMN_TYPES = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def metadata_table(
    rows: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    column_types: dict[str, str],
    notes: Counter[str] | None = None,
) -> pa.Table:
    """The fixed columns, the chosen ones, and the rest of each pair's json in ``extra``.

    Args:
        rows: what was found out about a pair (by name of a fixed column), and what its json says.
        column_types: json field → one of COLUMN_TYPES.
        notes: where what does not fit is counted.
    """
    counts: Counter[str] = Counter() if notes is None else notes
    chosen = {name: COLUMN_TYPES[kind] for name, kind in column_types.items()}
    schema = pa.schema([*FIXED_FIELDS, *chosen.items(), ("extra", pa.string())])
    table = pa.Table.from_pylist([metadata_row(known, fields, column_types, counts) for known, fields in rows], schema)
    for name in chosen:
        if rows and not any(fields.get(name) is not None for _, fields in rows):
            counts[f"rows have no field {name} to fill its column"] += len(rows)
    return table


def metadata_row(
    known: dict[str, Any], fields: dict[str, Any], column_types: Mapping[str, str], notes: Counter[str] | None = None
) -> dict[str, Any]:
    """One row of ``metadata_table``."""
    notes = Counter() if notes is None else notes
    known = {name: known.get(name) for name, _ in FIXED_FIELDS}
    url = fields.get("url")
    row = known | {"url": converted(url, "string") if isinstance(url, str) else None}
    for name, kind in column_types.items():
        value = fields.get(name)
        row[name] = converted(value, kind)
        if row[name] is None and value not in (None, ""):
            notes[f"values of {name} are no {kind}: null in its column, kept in extra"] += 1
    # A claim that differs from what we saw ourselves is kept beside it.
    rest = {name: value for name, value in fields.items() if row.get(name) is None or row[name] != value}
    kept = {name: value for name, value in rest.items() if name not in column_types or row[name] is None}
    return row | {"extra": strict_json(kept, notes)}


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_npy(file: Path | BinaryIO, *, mapped: bool = False) -> np.ndarray[Any, Any]:
    """The array of a .npy file, memory-mapped if that is asked for (then the file is a path).

    One thread at a time: numpy reads the header as a Python literal, and Python 3.11 may fail with "AST constructor
    recursion depth mismatch" when two threads do so at once (seen with eight readers within seconds).

    Raises:
        ValueError, EOFError: it is no such file, or holds pickled objects.
    """
    with _LITERALS:
        array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    return array


def read_npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """The beginning of a .npy file of version 1 → (shape, dtype, byte where the array begins)."""
    file = io.BytesIO(head)
    with _LITERALS:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()


def arrow_bytes(table: pa.Table) -> bytes:
    """A table as an uncompressed Arrow IPC file of one record batch, made to be memory-mapped."""
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return buffer.getvalue()


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as parquet."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(data: bytes) -> pa.Table:
    """A small table from a parquet file's bytes.

    In this thread alone: a reader thread of Arrow's that lets go of a Python buffer while the interpreter ends aborts
    the process (seen with pyarrow 25 in a third of the processes that end just after a threaded read).
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
