"""Hand a memory, or what was found in it, to other tools.

``img2dataset``: the list of URLs and captions that img2dataset fetches, for a memory whose pictures live elsewhere.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from memory_builder.errors import UsageError
from memory_builder.memory import Memory
from memory_builder.rows import Ids, in_blocks
from memory_builder.storage import Store
from memory_builder.tables import parquet_bytes

ROWS_A_FILE = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """Rows of a list of URLs, and those that are not in it."""

    n_written: int
    n_without_url: int
    n_deleted: int
    """Asked for by their ids, and deleted since."""


def export_urls(memory: Memory, out: str, ids: Ids | None = None) -> Listed:
    """Write ``OUT/00000.parquet`` …: url, caption, key and row id, a million rows a file.

    ``img2dataset --url_list OUT --input_format parquet --url_col url --caption_col caption`` reads them.

    Args:
        ids: i64[n] the rows, each once; None for all. Deleted rows are left out.

    Raises:
        UsageError: parquet lies there already, which img2dataset would read as part of the list.
    """
    store = Store(out)
    there = [name for name in store.list("") if name.endswith(".parquet")]
    if there:
        raise UsageError(f"{store.root} holds {there[0]}, which would be read with this list: name an empty folder")
    n_written = n_without = n_deleted = 0
    every = (memory.row_ids(ordinal) for ordinal in memory.commits)
    if ids is None:
        pieces = in_blocks(every, ROWS_A_FILE)
    else:
        kept = ids[~memory.is_deleted(ids)]
        pieces, n_deleted = iter([kept]), len(ids) - len(kept)
    for number, piece in enumerate(pieces):
        table = memory.rows(piece)
        listed = table.filter(pc.is_valid(table["url"])).select(["url", "caption", "key", "id"])
        n_written += listed.num_rows
        n_without += table.num_rows - listed.num_rows
        store.put(f"{number:05d}.parquet", parquet_bytes(listed))
    return Listed(n_written=n_written, n_without_url=n_without, n_deleted=n_deleted)


def read_hits(path: Path) -> Ids:
    """i64[n] row ids, each once in order of appearance, from what ``search --json`` printed.

    Raises:
        UsageError: the file is something else.
    """
    ids: dict[int, None] = {}
    try:
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):  # a caption may hold other line ends
            found: dict[str, Any] = json.loads(line)
            ids |= dict.fromkeys(int(np.int64(hit["id"])) for hit in found["hits"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UsageError(
            f"--hits {path}: expected what search --json prints ({type(error).__name__}: {error})"
        ) from None
    return np.array(list(ids), np.int64)
