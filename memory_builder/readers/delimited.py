"""Lines of a text file, and records of a CSV or TSV: one for each line unless a quoted cell has several lines.

Quotes follow RFC 4180. Captions from the web hold stray ones, and a lenient parser takes the lines after one as part
of a cell. Here a quote that is not closed at the end of a cell is an ordinary character.
"""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from memory_builder.readers.file_kinds import IMAGE_SUFFIXES

MAX_LINE_BYTES = 64 << 20
MAX_LINES_A_CELL = 1_000
STRAY_QUOTE = "rows have a stray quote and were read as they stand"
SEVERAL_LINES = "rows have a quoted cell of several lines"
_HEAD_BYTES = 1 << 20
_NUMBER = re.compile(r"\s*[-+]?\d+(\.\d+)?\s*")
_PICTURE = re.compile(rf".*\.({'|'.join(sorted(IMAGE_SUFFIXES))})\s*", re.IGNORECASE | re.DOTALL)

csv.field_size_limit(MAX_LINE_BYTES)

Line = tuple[int, str]
"""Offset of a line in bytes, and its text with the line break."""


class LineTooLongError(ValueError):
    """A line is too long for a table of pairs."""


class Lines:
    """Reads the lines of a file from an offset on; ``position`` is the offset of the next line in bytes.

    Old programs end lines with a carriage return alone; a file whose first MiB has no line feed is read so.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = self._file.read(_HEAD_BYTES)
        self.is_utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        self._ends_with_cr = b"\n" not in head and b"\r" in head.rstrip(b"\r")
        self.position = 0

    def read(self, start: int) -> Iterator[Line]:
        """Yield every line from byte ``start`` on.

        Raises:
            LineTooLongError: a line is longer than ``MAX_LINE_BYTES``.
        """
        self.position = self._file.seek(start)
        for raw in self._split_at_cr() if self._ends_with_cr else iter(self._readline, b""):
            begin = self.position
            self.position += len(raw)
            yield begin, raw.decode("utf-8-sig" if begin == 0 else "utf-8", "surrogateescape")

    def _readline(self) -> bytes:
        line = self._file.readline(MAX_LINE_BYTES)
        if len(line) == MAX_LINE_BYTES:
            raise LineTooLongError(f"a line longer than {MAX_LINE_BYTES >> 20} MiB")
        return line

    def _split_at_cr(self) -> Iterator[bytes]:
        rest = b""
        while piece := self._file.read(_HEAD_BYTES):
            *whole, rest = (rest + piece).split(b"\r")
            yield from (line + b"\r" for line in whole)
            if len(rest) > MAX_LINE_BYTES:
                raise LineTooLongError(f"a line longer than {MAX_LINE_BYTES >> 20} MiB")
        if rest:
            yield rest


class Records:
    """Parses lines into records, each with its offset in bytes.

    The end of a record depends on nothing before it: a file read in pieces has the same records as the whole.
    """

    def __init__(
        self, lines: Iterable[Line], delimiter: str, n_columns: int | None = None, notes: Counter[str] | None = None
    ) -> None:
        self._lines = iter(lines)
        self._delimiter = delimiter
        self._n_columns = n_columns
        self._notes = Counter() if notes is None else notes
        self._ahead: deque[Line] = deque()

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while (line := self._next()) is not None:
            begin, text = line[0], _without_break(line[1])
            cells = self._quoted(line) if '"' in text else text.split(self._delimiter)
            if cells != [""]:
                yield begin, cells

    def peek(self) -> int | None:
        """Offset of the next record in bytes; None at the end."""
        line = self._next()
        if line is None:
            return None
        self._ahead.appendleft(line)
        return line[0]

    def _next(self) -> Line | None:
        if not self._ahead and (line := next(self._lines, None)) is not None:
            self._ahead.extend(self._parts(line))
        return self._ahead.popleft() if self._ahead else None

    def _parts(self, line: Line) -> list[Line]:
        """Split a line at bare carriage returns if each piece is a row; else return the line."""
        text = _without_break(line[1])
        texts = text.split("\r")
        if len(texts) == 1 or '"' in text or any(self._n_columns != len(self._split(part)) for part in texts):
            return [line]
        begin, parts = line[0], []
        for part in texts:
            parts.append((begin, part))
            begin += len(part.encode("utf-8", "surrogateescape")) + 1
        return parts

    def _split(self, text: str) -> list[str]:
        return text.split(self._delimiter)

    def _quoted(self, first: Line) -> list[str]:
        """Parse the record that begins with this line."""
        taken = [first]

        def texts() -> Iterator[str]:
            yield first[1]
            while len(taken) < MAX_LINES_A_CELL and (line := self._next()) is not None:
                taken.append(line)
                yield line[1]

        try:
            cells = next(csv.reader(texts(), delimiter=self._delimiter, strict=True))
        except csv.Error:
            cells = []
        if cells and (len(taken) == 1 or not self._holds_rows(cells, [text for _, text in taken[1:]])):
            self._notes[SEVERAL_LINES] += len(taken) > 1
            return cells
        self._ahead.extendleft(reversed(taken[1:]))
        self._notes[STRAY_QUOTE] += 1
        return self._unquoted(_without_break(first[1]))

    def _holds_rows(self, cells: list[str], behind: list[str]) -> bool:
        """Whether the lines after a record's first are rows themselves, between two stray quotes."""
        if self._delimiter == "\t":
            return any("\n" in cell and "\t" in cell for cell in cells)
        kinds = [_kind(cell) for cell in cells]
        return any(kinds) and all([_kind(cell) for cell in self._split(text)] == kinds for text in behind)

    def _unquoted(self, text: str) -> list[str]:
        cells = self._split(text)
        if self._n_columns not in (None, len(cells)):
            try:
                closed = next(csv.reader([text], delimiter=self._delimiter))
            except csv.Error:
                return cells
            return closed if len(closed) == self._n_columns else cells
        return cells


def _without_break(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _kind(cell: str) -> str:
    """Classify a cell that is no phrase of a caption; empty if it may be one."""
    if "://" in cell and "\n" not in cell:
        return "address"
    if _NUMBER.fullmatch(cell):
        return "number"
    return "picture" if "\n" not in cell and _PICTURE.fullmatch(cell) else ""
