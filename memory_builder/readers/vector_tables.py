"""Read parquet files and lance datasets with columns of vectors, as lance-ray and data frames write them."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from memory_builder.base.types import Modality
from memory_builder.errors import SourceError, UsageError


def modality_of(name: str, otherwise: Modality) -> Modality:
    """Return the modality in the name of a file or column; ``otherwise`` if it has none."""
    words = re.split(r"[^a-z]+", name.lower())
    if {"text", "txt", "caption"} & {*words}:
        return "text"
    return "image" if {"image", "img"} & {*words} else otherwise


def split_vectors(
    table: pa.Table, modality: Modality, path: str
) -> tuple[dict[Modality, npt.NDArray[Any]], pa.Table | None]:
    """Split a table into its vectors, as arrays [n, width] by modality, and its other columns.

    Args:
        table: n rows.
        modality: the modality of a column whose name contains none.
        path: path of the table, for messages.

    Raises:
        SourceError: the table has no column of vectors, several of one modality, or vectors of several widths.
    """
    columns = [column.name for column in table.schema if _is_vector(column.type)]
    named = {modality_of(name, modality): name for name in columns}
    if not columns or len(named) != len(columns):
        raise SourceError(
            f"{path} has {len(columns) or 'no'} columns of vectors{': ' * bool(columns)}{', '.join(columns)}: "
            "expected one, or one with image and one with text in its name"
        )
    vectors = {modality: _matrix(table[name], f"{path}, column {name}") for modality, name in named.items()}
    rest = table.drop_columns(columns)
    return vectors, rest if rest.num_columns else None


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _matrix(column: pa.ChunkedArray, path: str) -> npt.NDArray[Any]:
    """Convert lists of one length to an array [n, width]; null rows become zeros."""
    lists = column.combine_chunks()
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    present = np.asarray(lists.is_valid())
    lengths = {*np.asarray(pc.list_value_length(lists.filter(pa.array(present)))).tolist()}
    if len(lengths) > 1:
        raise SourceError(f"{path} holds vectors of several widths ({', '.join(map(str, sorted(lengths)[:5]))})")
    flat = np.asarray(lists.filter(pa.array(present)).flatten())
    width = lengths.pop() if lengths else 0
    out = np.zeros((len(lists), width), flat.dtype if len(flat) else np.float32)
    out[present] = flat.reshape(-1, width) if width else 0
    return out


def open_lance(root: str) -> Any:
    """Open a lance dataset.

    Raises:
        SourceError: the path is not a lance dataset.
        UsageError: lance is not installed.
    """
    try:
        return _lance().dataset(root)
    except (OSError, ValueError) as error:
        raise SourceError(f"{root} cannot be opened as a lance dataset: {str(error).splitlines()[0]}") from None


def read_lance(root: str, items: tuple[int, int] | None) -> pa.Table:
    """Read the rows of a lance dataset in the range ``items``, in order."""
    start, stop = items or (0, None)
    dataset = open_lance(root)
    return dataset.to_table(offset=start, limit=None if stop is None else stop - start, scan_in_order=True)


def write_lance(root: str, table: pa.Table, *, is_first: bool) -> None:
    """Write a table as a new lance dataset, or append it to the existing one."""
    _lance().write_dataset(table, root, mode="create" if is_first else "append")


def _lance() -> Any:
    try:
        import lance
    except ImportError:
        raise UsageError("lance is not installed: pip install 'memory-builder[lance]'") from None
    return lance
