"""Roles of the columns of a table of pairs (key, image, caption, URL), and its rows."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pyarrow as pa

from memory_builder.errors import SourceError
from memory_builder.readers.pairs import (
    CAPTION,
    CAPTION_SPELLINGS,
    UNCHANGED,
    URL_SPELLINGS,
    PairRules,
    Truncated,
    rename_url,
)

# Without --image-key: bytes first, then paths, then URLs, which have to be fetched.
LINK_COLUMNS = (
    *("image_path", "path", "filepath", "file_path", "file_name", "filename", "file"),
    *("image_url", "url", "uri"),
)
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", *LINK_COLUMNS)
KEY_COLUMNS = ("key", "__key__")
_NO_VALUE = (ValueError, OverflowError, TypeError, NotImplementedError, pa.ArrowException)
"""Exceptions of Arrow for a cell without a Python value."""
_ROW_MEMBER = re.compile(r"row \d+")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its key, its picture or a link to it, and all other cells."""

    key: str
    image: bytes | None
    link: str | None
    fields: dict[str, Any]
    fault: str | None = None
    member: str | None = None
    """``row N`` if the picture is inside the row, else None."""
    is_numbered: bool = False
    """See ``Pair``."""


class Columns:
    """Column names of key, image, caption and URL.

    Raises:
        SourceError: a required column is missing.
    """

    def __init__(self, names: Sequence[str], rules: PairRules, where: str) -> None:
        self.key = first_spelled(KEY_COLUMNS, names)
        self.image = rules.image_key or first_spelled(IMAGE_COLUMNS, names)
        usual = CAPTION_SPELLINGS if rules.caption_key == CAPTION else ()
        self.caption = rules.caption_key if rules.caption_key in names else first_spelled(usual, names)
        self.url = rules.url_key or first_spelled(URL_SPELLINGS, [name for name in names if name != self.image])
        has = f"{where} has the columns {', '.join(map(repr, names))}"
        for option, given in (("--image-key", rules.image_key), ("--url-key", rules.url_key)):
            if given and given not in names:
                raise SourceError(f"{has}, and no {given!r}: give another {option}")
        if self.image is None and rules.require != "text":
            raise SourceError(f"{has}: name the column of pictures, or of their paths or URLs, with --image-key")
        if self.caption is None and rules.require != "image":
            raise SourceError(f"{has}: name the column of captions with --caption-key, or give --require image")

    def rules(self, rules: PairRules) -> PairRules:
        """Return the rules with this table's caption column."""
        return replace(rules, caption_key=self.caption or CAPTION)


def first_spelled(spellings: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the name that matches the earliest of the spellings, ignoring case; an exact match comes first."""
    by_spelling = {name.lower(): name for name in reversed(names)}
    exact = next((name for name in spellings if name in names), None)
    return exact or next((by_spelling[name.lower()] for name in spellings if name.lower() in by_spelling), None)


def distinct_names(names: Sequence[str]) -> list[str]:
    """Make column names distinct: the second ``caption`` becomes ``caption.1``, as in pandas."""
    taken: list[str] = []
    for name in names:
        again = (f"{name}.{i}" for i in count(1))
        taken.append(name if name not in taken else next(other for other in again if other not in {*names, *taken}))
    return taken


def python_rows(table: pa.Table | pa.RecordBatch) -> list[tuple[dict[str, Any], str | None]]:
    """Convert rows to (values, fault); a cell without a Python value, such as text that is not UTF-8, is a fault."""
    columns = [_in_microseconds(column) for column in table.columns]
    table = pa.Table.from_arrays(columns, distinct_names(table.column_names))
    try:
        return [(values, None) for values in table.to_pylist()]
    except _NO_VALUE:
        if table.num_rows == 1:
            return [_readable_cells(table)]
    half = table.num_rows // 2
    return python_rows(table.slice(0, half)) + python_rows(table.slice(half))


def _in_microseconds(column: Any) -> Any:
    """Cast a column of nanoseconds to microseconds, which Python holds; Arrow would use pandas, if installed."""
    kind = column.type
    if not (pa.types.is_temporal(kind) and getattr(kind, "unit", "") == "ns"):
        return column
    try:
        if pa.types.is_timestamp(kind):
            return column.cast(pa.timestamp("us", kind.tz))
        return column.cast(pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us"))
    except pa.ArrowInvalid:  # some have nanoseconds that are not zero
        return column.cast(pa.int64()).cast(pa.string()) if pa.types.is_duration(kind) else column.cast(pa.string())


def _readable_cells(row: pa.Table | pa.RecordBatch) -> tuple[dict[str, Any], str]:
    values, bad = {}, []
    for name, column in zip(row.column_names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except _NO_VALUE:
            bad.append(name)
    return values, f"column {', '.join(bad)} cannot be read"


def row_of(values: dict[str, Any], number: int, columns: Columns) -> Row:
    """Build a row from its values; without a key column its number is its key."""
    key = values.pop(columns.key, None) if columns.key else None
    row = Row(f"{number:09d}" if key is None else key_text(key), None, None, values, is_numbered=key is None)
    image = values.pop(columns.image, None) if columns.image else None
    if columns.url != columns.image:
        row = replace(row, fields=rename_url(values, columns.url))
    if isinstance(image, dict):  # Hugging Face's image: {bytes, path}
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes) and (columns.image or "").lower() in LINK_COLUMNS:
        image = text_of(image)
    if image is None or image == "":
        return replace(row, member=f"row {number}")
    if isinstance(image, bytes):
        return replace(row, image=image, member=f"row {number}")
    if isinstance(image, str):
        return replace(row, link=f"./{image}" if _ROW_MEMBER.fullmatch(image) else image)
    return replace(row, fault=f"column {columns.image} holds neither a picture nor a path")


def key_text(value: Any) -> str:
    """Convert a pair's key to text; a whole number that pandas stored as a float loses its point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return text_of(value) if isinstance(value, str | bytes) else str(value)


def text_of(value: str | bytes) -> str:
    """Decode a text that its table may hold as bytes, as TensorFlow's tools write it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def without_known(rows: Iterable[Row | Truncated], rules: PairRules) -> Iterator[Row | Truncated]:
    """Mark rows that are already in the memory with the fault UNCHANGED, so that no picture is fetched."""
    for row in rows:
        is_known = rules.known is not None and isinstance(row, Row) and rules.known(row, rules)
        yield replace(row, fault=UNCHANGED) if is_known and isinstance(row, Row) else row
