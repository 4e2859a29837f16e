"""``selection.parquet``: the rows chosen for a subset, a row group for each tar."""

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
"""A row for each pair of the subset, by id, a row group for each tar, with its claims, best first. ``values`` are the
scores, or with several modes percentile ranks, that decided the choice."""


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """Counts of the choice."""

    n_hits: Count
    n_below: Count
    """Number of hits below --min-score."""
    n_rows: Count
    """Number of claimed rows."""
    n_incomplete: Count
    """Number of claimed rows without a picture or a caption."""
    n_same_bytes: Count
    n_near_duplicates: Count
    pieces: list[Count]
    """Number of pairs in each tar."""


def read_chosen(store: Store) -> Chosen | None:
    """Read the record of the choice; None if it is absent or damaged, so that the choice is repeated."""
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
    """Read the rows of one tar.

    Raises:
        CorruptMemoryError: the rows cannot be read.
    """
    fix = f"remove {RECORD} in that folder and run the same command again"
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
    """Iterate over a piece's rows as (row id, its claims as label, mode, score)."""
    for row in table.to_pylist():
        yield row["id"], list(zip(row["labels"], row["modes"], row["scores"], strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A pair to write into a tar."""

    id: int
    claims: list[tuple[int, str, float]]
    """Label, mode and score of each claim, best first."""
    metadata: dict[str, Any]
    """Metadata of the row."""
    shown: bool
    """Whether the pair is shown on the page."""
    picture: bytes | Missing
    sha256: str = ""
    """SHA-256 of the picture."""
    suffix: str = ""
    glyph: Glyphs | None = None
    """Signatures of a decoded picture; None if it was not decoded."""
    miniature: Miniatures | None = None
    thumbnail: bytes | None = None
