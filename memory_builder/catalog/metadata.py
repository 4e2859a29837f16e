"""The columns of a shard's metadata: the fixed ones, the chosen ones, and ``extra`` for the rest of a pair's json.

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
"""The column of ``Rows.table`` made of a row\'s shard and member: where its picture came from."""


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


LOOKUP_SCHEMA = pa.schema([(name, dict(FIXED_FIELDS)[name]) for name in LOOKUP_FIELDS])
