"""Which column of a table of pairs is what, and its rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from memory_builder.errors import SourceError
from memory_builder.shards.links import Row
from memory_builder.shards.pairs import CAPTION, PairRules

# Where --image-key does not say it: bytes first, then paths, then what has to be fetched from afar.
IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes"),
    *("image_path", "path", "filepath", "file_name", "filename", "file"),
    *("image_url", "url", "uri", "URL"),
)
CAPTION_COLUMNS = ("caption", "text", "TEXT", "txt", "alt", "title")
KEY_COLUMNS = ("key", "__key__")
_NO_VALUE = (ValueError, OverflowError)  # what Arrow raises of a cell that Python cannot hold


class Columns:
    """Which column is what.

    Raises:
        SourceError: a column that is needed is not there.
    """

    def __init__(self, names: Sequence[str], rules: PairRules, where: str) -> None:
        self.key = next((name for name in KEY_COLUMNS if name in names), None)
        self.image = rules.image_key or next((name for name in IMAGE_COLUMNS if name in names), None)
        usual = CAPTION_COLUMNS if rules.caption_key == CAPTION else (rules.caption_key,)
        self.caption = next((name for name in usual if name in names), None)
        has = f"{where} has the columns {', '.join(map(repr, names))}"
        if rules.image_key and rules.image_key not in names:
            raise SourceError(f"{has}, and no {rules.image_key!r}: give another --image-key")
        if self.image is None and rules.require != "text":
            raise SourceError(f"{has}: name the one that holds the pictures, or where they are, with --image-key")
        if self.caption is None and rules.require != "image":
            raise SourceError(f"{has}: name the one that holds the captions with --caption-key, or --require image")

    def rules(self, rules: PairRules) -> PairRules:
        """The rules, with what was found out."""
        return replace(rules, caption_key=self.caption or CAPTION)


def python_rows(table: pa.Table | pa.RecordBatch) -> list[tuple[dict[str, Any], str | None]]:
    """(values, fault) of each row; a cell that Python cannot hold, as text that is not UTF-8, is its row's fault."""
    try:
        return [(values, None) for values in table.to_pylist()]
    except _NO_VALUE:
        if table.num_rows == 1:
            return [_sound_cells(table)]
    half = table.num_rows // 2
    return python_rows(table.slice(0, half)) + python_rows(table.slice(half))


def _sound_cells(row: pa.Table | pa.RecordBatch) -> tuple[dict[str, Any], str]:
    values, bad = {}, []
    for name, column in zip(row.column_names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except _NO_VALUE:
            bad.append(name)
    return values, f"column {', '.join(bad)} cannot be read"


def row_of(values: dict[str, Any], number: int, columns: Columns) -> Row:
    """A table's row; its number is its key where no column is."""
    key = values.pop(columns.key, None) if columns.key else None
    name = f"{number:09d}" if key is None else str(key)
    image = values.pop(columns.image, None) if columns.image else None
    if isinstance(image, dict):  # Hugging Face's image: {bytes, path}
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if image is None or image == "":
        return Row(name, None, None, values, member=f"row {number}")
    if isinstance(image, bytes):
        return Row(name, image, None, values, member=f"row {number}")
    if isinstance(image, str):
        return Row(name, None, image, values)
    return Row(name, None, None, values, fault=f"column {columns.image} holds neither a picture nor a path")
