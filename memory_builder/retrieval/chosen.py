"""``selection.parquet``: the rows that were chosen for a subset, a row group for each tar."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.errors import CorruptMemoryError
from memory_builder.readers.fetch import Missing
from memory_builder.retrieval.copies.glyph import Glyphs
from memory_builder.retrieval.copies.miniature import Miniatures
from memory_builder.storage.records import Count, read_sound_record, reading, strict_record
from memory_builder.storage.store import Store

SELECTION = "selection.parquet"


RECORD = "selection.json"


ROWS = pa.schema(
    [
        ("id", pa.int64()),
        ("labels", pa.list_(pa.int32())),
        ("modes", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("values", pa.list_(pa.float32())),
        ("shown", pa.bool_()),
    ]
)
"""A row for every pair of the subset, in order of ids, a row group for every tar; its claims, the best first.
``values`` are what it was chosen by: the scores, or with several modes their places."""


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """What the choice came to."""

    n_hits: Count
    n_below: Count
    """Hits below --min-score."""
    n_rows: Count
    """Rows that were claimed."""
    n_incomplete: Count
    """Of these, without a picture or a caption."""
    n_same_bytes: Count
    n_near_duplicates: Count
    pieces: list[Count]
    """Pairs of each tar."""


def read_chosen(store: Store) -> Chosen | None:
    """The choice, if it was made and can be read; else it is made again from the hits."""
    record = read_sound_record(store, RECORD, Chosen)
    if record is None:
        return None
    try:
        for number, n_pairs in enumerate(record.pieces):
            if read_piece(store, number).num_rows != n_pairs:
                return None
    except CorruptMemoryError:
        return None
    return record


def read_piece(store: Store, number: int) -> pa.Table:
    """The rows of one tar.

    Raises:
        CorruptMemoryError: they cannot be read.
    """
    fix = f"remove {RECORD} there and run the same again"
    with (
        reading(f"{store.root}/{SELECTION}", fix),
        pq.ParquetFile(str(store.fetch(SELECTION)), pre_buffer=False) as file,
    ):
        if file.schema_arrow.remove_metadata() != ROWS:
            raise ValueError("columns are missing or of another type")
        table = file.read_row_group(number, use_threads=False)
        table.validate(full=True)
        return table


def claims_of(table: pa.Table) -> Iterator[tuple[int, list[tuple[int, str, float]]]]:
    """(row id, its claims as label, mode, score) of the rows of a piece."""
    for row in table.to_pylist():
        yield row["id"], list(zip(row["labels"], row["modes"], row["scores"], strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A pair on its way into a tar."""

    id: int
    claims: list[tuple[int, str, float]]
    """Label, mode and score, the best first."""
    about: dict[str, Any]
    """Its metadata."""
    shown: bool
    """On the page."""
    picture: bytes | Missing
    sha256: str = ""
    """Of the picture."""
    suffix: str = ""
    glyph: Glyphs | None = None
    """Where it is looked at; likewise the others."""
    miniature: Miniatures | None = None
    thumbnail: bytes | None = None
