"""Metadata columns of a shard: the fixed ones, the chosen ones, and ``extra`` for the rest of a pair's json.

The same rows give the same bytes; docs/contract.md describes every column."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from memory_builder.readers.values import converted, strict_json

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
PATH = "path"
"""Column of ``Rows.table`` with the path of a row's picture, derived from its shard and member."""


COLUMN_TYPES = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def metadata_table(
    rows: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    column_types: dict[str, str],
    notes: Counter[str] | None = None,
) -> pa.Table:
    """Build the metadata table: fixed columns, chosen ones, and the rest of each pair's json in ``extra``.

    Args:
        rows: (values of fixed columns, fields of the json) of each pair.
        column_types: json field → one of COLUMN_TYPES.
        notes: counts the values that do not fit their column.
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
    """Build one row of ``metadata_table``."""
    notes = Counter() if notes is None else notes
    known = {name: known.get(name) for name, _ in FIXED_FIELDS}
    url = fields.get("url")
    row = known | {"url": converted(url, "string") if isinstance(url, str) else None}
    for name, kind in column_types.items():
        value = fields.get(name)
        row[name] = converted(value, kind)
        if row[name] is None and value not in (None, ""):
            notes[f"values of {name} are no {kind}: null in its column, kept in extra"] += 1
    # A field that differs from the value measured here is kept in extra.
    rest = {name: value for name, value in fields.items() if row.get(name) is None or row[name] != value}
    extra = {name: value for name, value in rest.items() if name not in column_types or row[name] is None}
    return row | {"extra": strict_json(extra, notes)}


LOOKUP_SCHEMA = pa.schema([(name, dict(FIXED_FIELDS)[name]) for name in LOOKUP_FIELDS])
