"""Read and write the formats of a shard's files: .npy, Arrow IPC and parquet.

The same rows give the same bytes; docs/contract.md describes every column.
"""

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_LITERALS = threading.Lock()


def npy_bytes(array: np.ndarray[Any, Any]) -> bytes:
    """Serialise an array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_npy(file: Path | BinaryIO, *, mapped: bool = False) -> np.ndarray[Any, Any]:
    """Read a .npy file; with ``mapped`` memory-map it (then ``file`` is a path).

    One thread at a time: numpy reads the header as a Python literal, and Python 3.11 may fail with "AST constructor
    recursion depth mismatch" when two threads do so at once (seen with eight readers within seconds).

    Raises:
        ValueError, EOFError: the file is not a .npy file, or holds pickled objects.
    """
    with _LITERALS:
        array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    return array


def read_npy_header(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """First bytes of a .npy file of version 1 → (shape, dtype, offset of the array in bytes)."""
    file = io.BytesIO(head)
    with _LITERALS:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype, file.tell()


def arrow_bytes(table: pa.Table) -> bytes:
    """Serialise a table as an uncompressed Arrow IPC file of one record batch, for memory-mapping."""
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return buffer.getvalue()


def arrow_array(values: npt.NDArray[Any], *, valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Wrap numbers [n] as an Arrow array without a copy, null where ``valid`` bool[n] is false.

    ``pa.array`` does the same and imports pandas first, which takes half a second.
    """
    numbers = np.ascontiguousarray(values)
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [bitmap, pa.py_buffer(numbers)])


def string_array(values: Sequence[str | None]) -> pa.StringArray:
    """Convert texts [n] to an Arrow array without pandas, as ``arrow_array`` does."""
    encoded = [b"" if value is None else value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    valid = np.packbits(np.array([value is not None for value in values], np.bool_), bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def parquet_bytes(table: pa.Table) -> bytes:
    """Serialise a table as parquet."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(data: bytes) -> pa.Table:
    """Read a small table from a parquet file's bytes.

    In this thread alone: an Arrow reader thread that releases a Python buffer while the interpreter exits aborts the
    process (seen with pyarrow 25 in a third of the processes that exit just after a threaded read).
    """
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(use_threads=False)
