"""CSV, TSV and JSONL listings of pictures and captions → pairs."""

import csv
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO

from memory_builder.errors import SourceError
from memory_builder.retry import open_filesystem
from memory_builder.shards.links import Row, pairs_of_rows
from memory_builder.shards.pairs import Break, Pair, PairRules, Reject
from memory_builder.shards.tables import Columns, row_of
from memory_builder.uris import PAIRS_A_SHARD, Piece

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
ROWS_LOOKED_AT = 1_000
"""Of a JSONL, to learn its columns: any row may lack some."""
Record = list[str] | str  # cells of a CSV row; a line of JSON

csv.field_size_limit(64 << 20)


def read(path: str, piece: Piece, rules: PairRules) -> Iterator[Pair | Reject | Break]:
    """The pairs of a piece of a listing; the first line of a CSV or TSV names its columns."""
    with _Listing.open(path) as listing:
        columns = Columns(listing.names, rules, path)
        start, stop = piece.bytes or (listing.begin, listing.size)
        first = piece.items[0] if piece.items else 0
        yield from pairs_of_rows(listing.rows(start, stop, first, columns), path, columns.rules(rules))


def pieces(path: str) -> list[Piece]:
    """Pieces of ten thousand rows, cut between rows. Reads the listing once."""
    with _Listing.open(path) as listing:
        edges = [listing.begin]
        n = 0
        try:
            for n, (begin, _) in enumerate(listing.records(listing.begin, listing.size)):
                if n and n % PAIRS_A_SHARD == 0:
                    edges.append(begin)
        except csv.Error:
            pass  # whoever reads the piece says so
    if len(edges) == 1:
        return [Piece()]
    stops = [*edges[1:], listing.size]
    items = [(i * PAIRS_A_SHARD, min((i + 1) * PAIRS_A_SHARD, n + 1)) for i in range(len(edges))]
    return [Piece(items=rows, bytes=span) for rows, span in zip(items, zip(edges, stops, strict=True), strict=True)]


class _Listing:
    """An open listing: the names of its columns and, from byte ``begin`` on, its records."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file = file
        self.path = path
        self.size = file.seek(0, 2)
        self.is_json = path.endswith((".jsonl", ".ndjson"))
        self.position = 0
        n_first = ROWS_LOOKED_AT if self.is_json else 1
        first = [record for _, record in islice(self.records(0, self.size), n_first)]
        if not first:
            raise SourceError(f"{path} is empty: nothing to embed in it")
        self.begin = 0 if self.is_json else self.position
        self.names = first[0] if isinstance(first[0], list) else _names_of_rows(map(str, first))

    @staticmethod
    @contextmanager
    def open(path: str) -> "Iterator[_Listing]":
        fs, place = open_filesystem(path)
        with fs.open(place, "rb") as file:
            yield _Listing(file, path)

    def records(self, start: int, stop: int) -> Iterator[tuple[int, Record]]:
        """(byte where it begins, record); blank lines are none."""
        self.position = self.file.seek(start)
        delimiter = "\t" if self.path.endswith(".tsv") else ","
        source: Iterator[Record] = self._lines() if self.is_json else csv.reader(self._lines(), delimiter=delimiter)
        while (begin := self.position) < stop:
            record = next(source, None)
            if record is None:
                return
            if record if not isinstance(record, str) else record.strip():
                yield begin, record

    def _lines(self) -> Iterator[str]:
        for line in self.file:
            text = line.decode("utf-8-sig" if self.position == 0 else "utf-8", "surrogateescape")
            self.position += len(line)
            yield text

    def rows(self, start: int, stop: int, first: int, columns: Columns) -> Iterator[Row | Break]:
        number = first
        try:
            for number, (_, record) in enumerate(self.records(start, stop), first):
                values, fault = _json_row(record) if isinstance(record, str) else _csv_row(record, self.names)
                row = row_of(values, number, columns)
                yield Row(row.key, row.image, row.link, row.fields, fault=fault or row.fault, member=row.member)
        except csv.Error as error:
            yield Break(reason=f"breaks off behind row {number}: {error}", offset=self.position)


def _names_of_rows(lines: Iterable[str]) -> list[str]:
    """Every name in these lines of JSON, once."""
    return list(dict.fromkeys(name for line in lines for name in _json_row(line)[0]))


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
    return not any("\udc80" <= character <= "\udcff" for character in text) if not text.isascii() else True
