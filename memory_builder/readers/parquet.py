"""Read pairs from parquet tables, with pictures as bytes in a column or as paths or URIs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.errors import SourceError
from memory_builder.readers.columns import (
    IMAGE_COLUMNS,
    Columns,
    Row,
    distinct_names,
    first_spelled,
    python_rows,
    row_of,
    without_known,
)
from memory_builder.readers.linked_pictures import pairs_of_rows
from memory_builder.readers.pairs import Pair, PairRules, Reject, Truncated
from memory_builder.readers.shard_uri import PAIRS_A_SHARD, Piece
from memory_builder.readers.transport import TransportError, open_plain

BATCH = 64


def read(path: str, piece: Piece, rules: PairRules) -> Iterator[Pair | Reject | Truncated]:
    """Yield the pairs of a piece of a parquet file."""
    with _open_parquet(path) as table:
        schema = table.schema_arrow
        columns = Columns(distinct_names(schema.names), rules, path)
        for name in sorted({*schema.names}.difference(_useful_columns(schema, columns) or schema.names)):
            rules.notes[f"tables have a column {name} of bytes, which is left out"] += 1
        rules = columns.rules(rules)
        rows = _rows(table, piece, columns, rules.notes)
        yield from pairs_of_rows(without_known(rows, rules), path, rules)


def pieces(path: str) -> list[Piece]:
    """Split a file into pieces of about ten thousand rows: several row groups, or parts of a larger one."""
    with _open_parquet(path) as table:
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    edges = [0]
    end = 0
    for size in sizes:
        if end + size - edges[-1] > PAIRS_A_SHARD and end > edges[-1]:
            edges.append(end)
        edges += range(edges[-1] + PAIRS_A_SHARD, end + size, PAIRS_A_SHARD) if size > 2 * PAIRS_A_SHARD else []
        end += size
    edges = [*(edge for edge in edges if edge < end), end]
    return [Piece(items=(start, stop)) for start, stop in pairwise(edges)]


def links(path: str) -> Iterator[str]:
    """Yield the links to pictures in a table; none if no text column has a picture's usual name."""
    with _open_parquet(path) as table:
        schema = table.schema_arrow
        name = first_spelled(IMAGE_COLUMNS, schema.names)
        if name is None or not _is_text(schema.field(name).type):
            return
        for group in range(table.num_row_groups):
            cells = table.read_row_group(group, columns=[name], use_threads=False)[name].to_pylist()
            yield from (cell for cell in cells if cell)


@contextmanager
def _open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    with open_plain(path) as file:
        try:
            table = pq.ParquetFile(file, pre_buffer=False)
        except TransportError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path} is not a readable parquet file ({error}): fetch it again") from error
        yield table


def _rows(
    table: pq.ParquetFile, piece: Piece, columns: Columns, notes: Counter[str] | None = None
) -> Iterator[Row | Truncated]:
    start, stop = piece.items or (0, table.metadata.num_rows)
    wanted = _useful_columns(table.schema_arrow, columns)
    number = 0
    for group in range(table.num_row_groups):
        first, number = number, number + table.metadata.row_group(group).num_rows
        if number <= start or first >= stop:
            continue
        at = max(start, first)
        try:
            if wanted is not None:
                wanted = _readable(table, group, wanted, columns, Counter() if notes is None else notes)
            for begin, batch in _batches(table, group, wanted, first):
                here = batch.slice(max(0, at - begin), max(0, min(stop, begin + batch.num_rows) - max(at, begin)))
                for i, (values, fault) in enumerate(python_rows(here), at):
                    row = row_of(values, i, columns)
                    yield replace(row, fault=fault) if fault else row
                at = max(at, min(stop, begin + batch.num_rows))
        except TransportError:
            raise
        except (pa.ArrowException, OSError) as error:
            yield Truncated(reason=f"breaks off at row {at}: {error}", offset=at)
            return


def _batches(
    table: pq.ParquetFile, group: int, wanted: list[str] | None, first: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in table.iter_batches(BATCH, row_groups=[group], columns=wanted, use_threads=False):
        yield first, batch
        first += batch.num_rows


def _readable(table: pq.ParquetFile, group: int, wanted: list[str], columns: Columns, notes: Counter[str]) -> list[str]:
    """Select the columns that Arrow can read in this group; keep those that make a pair, readable or not."""
    needed = (columns.image, columns.key, columns.caption, columns.url)
    readable = []
    for name in wanted:
        nested = pa.types.is_nested(table.schema_arrow.field(name).type)  # Arrow reads all other types
        if name not in needed and nested and not _can_be_read(table, group, name):
            notes[f"tables have a column {name} that Arrow cannot read, which is left out"] += 1
        else:
            readable.append(name)
    return readable


def _can_be_read(table: pq.ParquetFile, group: int, name: str) -> bool:
    try:
        table.read_row_group(group, columns=[name], use_threads=False)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, TransportError):
            raise
        return False
    return True


def _useful_columns(schema: pa.Schema, columns: Columns) -> list[str] | None:
    """Leave out columns of bytes other than picture, key, caption and URL: metadata cannot hold them.

    None for all columns if two have the same name, as Arrow cannot select those by name.
    """
    if len({*schema.names}) < len(schema.names):
        return None
    texts = (columns.image, columns.key, columns.caption, columns.url)
    return [field.name for field in schema if field.name in texts or not _is_binary(field.type)]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # pandas writes categories so
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(kind) for is_kind in kinds)


def _is_binary(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(is_kind(kind) for is_kind in kinds)


def read_row(path: str, number: int, image_key: str | None = None) -> bytes:
    """Read the picture in one row; FileNotFoundError if the row has none."""
    for _, image in read_rows(path, [number], image_key):
        return image
    raise FileNotFoundError(f"row {number} of {path}")


def read_rows(path: str, numbers: Sequence[int], image_key: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (number, picture) of the given rows with a picture, ascending; read each row group at most once.

    The pictures are in column ``image_key``, or else in the first with a picture's usual name.
    """
    wanted = set(numbers)
    with _open_parquet(path) as table:
        columns = Columns(table.schema_arrow.names, PairRules(require="image", image_key=image_key), path)
        end = 0
        for group in range(table.num_row_groups):
            start, end = end, end + table.metadata.row_group(group).num_rows
            here = sorted(number for number in wanted if start <= number < end)
            if not here:
                continue
            piece = Piece(items=(here[0], here[-1] + 1))
            for number, row in enumerate(_rows(table, piece, columns), here[0]):
                if isinstance(row, Row) and row.image is not None and number in wanted:
                    yield number, row.image
