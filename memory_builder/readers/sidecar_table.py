"""Join the table that img2dataset writes beside a tar or a folder of pictures to its pairs by key.

The table has other rows in another order, and keys change when tars are repacked by hand or tables saved by pandas. A
key is looked up unchanged, then as a number, then without its folder.
"""

import posixpath
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.errors import SourceError
from memory_builder.readers.columns import python_rows
from memory_builder.readers.pairs import printable
from memory_builder.readers.transport import TransportError, open_plain
from memory_builder.storage.filesystem import open_filesystem

KEY = "key"
NO_KEY = f"tables beside a shard have no column {KEY} and are not joined"
UNKNOWN = "pairs are not in the table beside their shard"
ABSENT = "rows of a table beside a shard say success, and their pair is not in the shard"

Described = tuple[dict[str, Any], str | None]
"""Fields of a row, and its fault."""


class TableBeside:
    """Rows of the table by key; empty for a shard without a table."""

    def __init__(self, rows: list[tuple[str, Described]] | None = None) -> None:
        self._exists = rows is not None
        self._rows = dict(rows or [])
        self._by_form: dict[str, list[str]] = {}
        for key in self._rows:
            for form in _forms(key):
                self._by_form.setdefault(form, []).append(key)
        self._met: set[str] = set()
        self._n_unknown = 0

    def describe(self, key: str) -> Described:
        """Return the fields and the fault of the pair of this key."""
        name = self._name_of(key)
        if name is None:
            self._n_unknown += self._exists
            return {}, None
        self._met.add(name)
        return self._rows[name]

    def _name_of(self, key: str) -> str | None:
        if key in self._rows:
            return key
        for form in _forms(key):
            names = self._by_form.get(form, ())
            if len(names) == 1:  # with rows 1 and 01, a pair 001 is ambiguous
                return names[0]
        return None

    def note(self, notes: Counter[str], *, is_whole: bool) -> None:
        """Count pairs and rows that did not join. ``is_whole``: every pair of the shard was looked up."""
        if self._n_unknown:
            notes[UNKNOWN] += self._n_unknown
        if is_whole:
            absent = sum(
                fields.get("status") == "success" for key, (fields, _) in self._rows.items() if key not in self._met
            )
            if absent:
                notes[ABSENT] += absent


def _forms(key: str) -> list[str]:
    """Return other spellings of a key, the likeliest first."""
    base = posixpath.basename(key)
    return [form for form in dict.fromkeys((_number(key), base, _number(base))) if form]


def _number(text: str) -> str:
    """Normalise a number, ``007`` and ``7.0`` → ``#7``; empty for other texts."""
    digits = text.removesuffix(".0")
    return f"#{int(digits)}" if digits.isascii() and digits.isdecimal() else ""


def read_table_beside(uri: str, notes: Counter[str]) -> TableBeside:
    """Read the table at ``uri``, if it exists.

    Raises:
        SourceError: the table exists and cannot be read.
    """
    if uri.startswith(("http://", "https://")):  # a web server may return any page for an unknown name
        return TableBeside()
    fs, path = open_filesystem(uri)
    if not fs.exists(path):
        return TableBeside()
    try:
        with open_plain(uri) as file:
            table = pq.ParquetFile(file, pre_buffer=False)
            if KEY not in table.schema_arrow.names:
                notes[NO_KEY] += 1
                return TableBeside()
            rows = python_rows(table.read(use_threads=False))
    except TransportError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{uri}, the table beside a shard, cannot be read ({error}): repair or move it") from error
    return TableBeside(
        [
            (_key(row.pop(KEY, None)), ({name: value for name, value in row.items() if value is not None}, fault))
            for row, fault in rows
        ]
    )


def has_keys(uri: str) -> bool:
    """Whether a parquet file is img2dataset's table, with columns for the key and the status of each download."""
    try:
        with open_plain(uri) as file:
            return {KEY, "status"} <= set(pq.ParquetFile(file, pre_buffer=False).schema_arrow.names)
    except (pa.ArrowException, OSError):
        return False


def _key(value: Any) -> str:
    if isinstance(value, bytes):
        return printable(value.decode("utf-8", "replace"))
    return printable(str(value)).removeprefix("./")
