"""Read pairs from CSV, TSV and JSONL listings of pictures and captions."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO

from memory_builder.errors import SourceError
from memory_builder.readers.columns import (
    IMAGE_COLUMNS,
    Columns,
    Row,
    distinct_names,
    first_spelled,
    row_of,
    without_known,
)
from memory_builder.readers.delimited import Lines, LineTooLongError, Records
from memory_builder.readers.file_kinds import LISTING_KINDS, SUFFIXES
from memory_builder.readers.linked_pictures import pairs_of_rows
from memory_builder.readers.pairs import Pair, PairRules, Reject, Truncated
from memory_builder.readers.shard_uri import PAIRS_A_SHARD, Piece
from memory_builder.readers.transport import DamagedFileError, open_unpacked

LONGEST = max(map(len, SUFFIXES["listing"]))
HEAD_ROWS = 1_000
"""Rows of a JSONL that determine its columns: any row may lack some."""
Record = list[str] | str  # cells of a CSV row; a line of JSON
DAMAGE = (csv.Error, LineTooLongError)


def read(path: str, piece: Piece, rules: PairRules) -> Iterator[Pair | Reject | Truncated]:
    """Yield the pairs of a piece of a listing; the first line of a CSV or TSV names its columns."""
    with open_listing(path, rules.notes) as listing:
        columns = Columns(listing.names, rules, path)
        rules = columns.rules(rules)
        yield from pairs_of_rows(without_known(listing.rows(piece, columns), rules), path, rules)


def pieces(path: str) -> list[Piece]:
    """Split a listing into pieces of ten thousand rows; reads it once."""
    with open_listing(path) as listing:
        edges = [listing.begin]
        n = 0
        try:
            for n, (begin, _) in enumerate(listing.records(listing.begin, listing.size)):
                if n and n % PAIRS_A_SHARD == 0:
                    edges.append(begin)
        except DAMAGE:
            pass  # reading the piece reports the damage
    if len(edges) == 1:
        return [Piece()]
    stops = [*edges[1:], listing.size]
    items = [(i * PAIRS_A_SHARD, min((i + 1) * PAIRS_A_SHARD, n + 1)) for i in range(len(edges))]
    return [Piece(items=rows, bytes=span) for rows, span in zip(items, zip(edges, stops, strict=True), strict=True)]


def links(path: str) -> Iterator[str]:
    """Yield the links to pictures in a listing; none if no column has a picture's usual name."""
    with open_listing(path) as listing:
        if first_spelled(IMAGE_COLUMNS, listing.names) is None:
            return
        columns = Columns(listing.names, PairRules(require="image"), path)
        for row in listing.rows(Piece(), columns):
            if isinstance(row, Row) and row.link is not None:
                yield row.link


@contextmanager
def open_listing(path: str, notes: Counter[str] | None = None) -> "Iterator[Listing]":
    """Open a listing, compressed or not.

    Raises:
        SourceError: the listing is empty, damaged, or not UTF-8.
    """
    try:
        with open_unpacked(path) as file:
            yield Listing(file, path, notes)
    except DamagedFileError as error:
        raise SourceError(f"{path} cannot be decompressed ({error}): fetch it again") from None


class Listing:
    """An open listing: its column names and, from byte ``begin`` on, its records."""

    def __init__(self, file: BinaryIO, path: str, notes: Counter[str] | None = None) -> None:
        self.path = path
        self.size = file.seek(0, 2)
        file.seek(0)
        self._notes = Counter() if notes is None else notes
        self._lines = Lines(file)
        if self._lines.is_utf16:
            raise SourceError(f"{path} is UTF-16: save it as UTF-8, as in iconv -f UTF-16 -t UTF-8")
        kind = next(kind for kind in LISTING_KINDS if kind in path.lower()[-LONGEST:])
        self.is_json = kind in (".jsonl", ".ndjson")
        self._delimiter = "\t" if kind == ".tsv" else ","
        self.begin, self.names = self._head()

    def _head(self) -> tuple[int, list[str]]:
        """Return the offset of the rows in bytes, and the column names."""
        if self.is_json:
            first = [str(record) for _, record in islice(self.records(0, self.size), HEAD_ROWS)]
            names = list(dict.fromkeys(name for line in first for name in _json_row(line)[0]))
            begin: int | None = 0 if first else None
        else:
            records = Records(self._lines.read(0), self._delimiter)
            names = distinct_names([name.strip() for name in next(iter(records), (0, []))[1]])
            begin = records.peek() if names else None
        if begin is None:
            raise SourceError(f"{self.path} is empty")
        if not names:
            raise SourceError(f"{self.path}: none of its first lines is a JSON object; expected one on each line")
        return begin, names

    def records(self, start: int, stop: int) -> Iterator[tuple[int, Record]]:
        """Yield (offset in bytes, record) of the records that begin before ``stop``, without blank lines."""
        lines = self._lines.read(start)
        source: Iterable[tuple[int, Record]] = (
            lines if self.is_json else Records(lines, self._delimiter, len(self.names), self._notes)
        )
        for begin, record in source:
            if begin >= stop:
                return
            if not isinstance(record, str) or record.strip():
                yield begin, record

    def rows(self, piece: Piece, columns: Columns) -> Iterator[Row | Truncated]:
        """Yield the rows of a piece, numbered from the listing's first row."""
        start, stop = piece.bytes or (self.begin, self.size)
        number = first = piece.items[0] if piece.items else 0
        try:
            for number, (_, record) in enumerate(self.records(start, stop), first):
                values, fault = _json_row(record) if isinstance(record, str) else _csv_row(record, self.names)
                row = row_of(values, number, columns)
                yield replace(row, fault=fault or row.fault)
        except DAMAGE as error:
            yield Truncated(reason=f"breaks off behind row {number}: {error}", offset=max(1, self._lines.position))


def _csv_row(cells: list[str], names: list[str]) -> tuple[dict[str, Any], str | None]:
    if len(cells) != len(names):
        return {}, "row has another number of columns than the first line"
    values = {name: cell or None for name, cell in zip(names, cells, strict=True)}
    return (values, None) if _is_utf8("".join(cells)) else ({}, "row is not UTF-8")


def _json_row(line: str) -> tuple[dict[str, Any], str | None]:
    if not _is_utf8(line):
        return {}, "row is not UTF-8"
    try:
        values = json.loads(line)
    except ValueError:
        return {}, "json cannot be parsed"
    except RecursionError:
        return {}, "json nested too deeply"
    return (values, None) if isinstance(values, dict) else ({}, "json is not an object")


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)
