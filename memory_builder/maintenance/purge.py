"""Purge deleted rows from the files: blank vector, caption, URL and all other content of the pair.

A commit record never changes, so the checksums after a purge are in ``purges/<ordinal>.json``, which is written first:
until the files match it, ``verify`` asks for the same command again. Blanking twice gives the same bytes.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.base.log import logger
from memory_builder.base.runner import Runner
from memory_builder.base.stage import Stage
from memory_builder.base.types import MODALITIES, Ids, rows_of, split_ids
from memory_builder.catalog.commits import Commit, check_own_files
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import LOOKUP_FIELDS
from memory_builder.catalog.paths import lookup_path, metadata_path, shard_name, vectors_path
from memory_builder.catalog.rows import Rows, open_vectors
from memory_builder.errors import CorruptMemoryError
from memory_builder.storage.formats import arrow_bytes, npy_bytes, parquet_bytes
from memory_builder.storage.records import (
    Digest,
    Ordinal,
    RowCount,
    ShardFile,
    read_record,
    strict_record,
    write_record,
)
from memory_builder.storage.store import Store, sha256

FOLDER = "purges"
PURGE_AGAIN = "run compact --purge again"
KEPT = ("key", "width", "height", "sha256", "member")
"""Metadata columns that a purge keeps, so that the pair is recognised when embedded again."""


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Purge:
    """``purges/<ordinal>.json``: checksums of a shard's files after its rows were blanked."""

    ordinal: Ordinal
    n_rows: RowCount
    """Number of blanked rows; deleted rows stay deleted, so the number identifies them."""
    checksums: dict[ShardFile, Digest]
    """Path → SHA-256, replacing those of the commit record."""


def purge_rows(store: Store, deleted: Ids, runner: Runner) -> None:
    """Blank deleted rows (i64[n], ascending) in the files of their shards."""
    ordinals = np.unique(split_ids(deleted)[0]).tolist()
    task = PurgeTask(memory=store, deleted=tuple(deleted.tolist()))
    for _ in Stage(name="compact: purged", task=task, runner=runner).results(ordinals):
        pass
    logger.info(f"compact: {len(deleted):,} deleted rows are blank")


def read_purge(store: Store, ordinal: int) -> Purge | None:
    """Read the purge record of a shard; None for a shard without one.

    Raises:
        CorruptMemoryError: the record is damaged.
    """
    path = _record_path(ordinal)
    purge = read_record(store, path, Purge, fix=PURGE_AGAIN)
    if purge is not None:
        where = f"{store.root}/{path}"
        if purge.ordinal != ordinal:
            raise CorruptMemoryError(f"{where} is damaged (ordinal: it is of shard {purge.ordinal})", PURGE_AGAIN)
        check_own_files(ordinal, purge.checksums, where, PURGE_AGAIN)
    return purge


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgeTask:
    """Worker that blanks rows of shards."""

    memory: Store | str
    deleted: tuple[int, ...]
    wants_gpu: bool = False

    def start(self) -> Callable[[int], Purge]:
        store = Store(self.memory)
        commits = Manifest.read_folded(store).commits
        deleted, d = np.array(self.deleted, np.int64), read_description(store).d
        return lambda ordinal: purge_shard(commits[ordinal], rows_of(ordinal, deleted), store=store, d=d)


def purge_shard(commit: Commit, rows: Ids, *, store: Store, d: int) -> Purge:
    """Blank rows (i64[n]) of one shard, unless they are blank."""
    purged = None
    with suppress(CorruptMemoryError):  # written again below
        purged = read_purge(store, commit.ordinal)
    if purged is not None and purged.n_rows == len(rows) and _is_done(store, purged):
        return purged
    files = {
        vectors_path(commit.ordinal, modality): _blank_vectors(store, commit, modality, d, rows)
        for modality in MODALITIES
    }
    metadata = _blank_metadata(Rows(store, {commit.ordinal: commit}, d).shard_metadata(commit.ordinal), rows)
    files[metadata_path(commit.ordinal)] = parquet_bytes(metadata)
    files[lookup_path(commit.ordinal)] = arrow_bytes(metadata.select(LOOKUP_FIELDS))
    purge = Purge(
        ordinal=commit.ordinal, n_rows=len(rows), checksums={path: sha256(data) for path, data in files.items()}
    )
    write_record(store, _record_path(commit.ordinal), purge)
    for path, data in files.items():
        store.put(path, data)
    return purge


def _is_done(store: Store, purge: Purge) -> bool:
    try:
        return all(store.checksum(path) == digest for path, digest in purge.checksums.items())
    except FileNotFoundError:
        return False


def _record_path(ordinal: int) -> str:
    return f"{FOLDER}/{shard_name(ordinal)}.json"


def _blank_vectors(store: Store, commit: Commit, modality: str, d: int, rows: Ids) -> bytes:
    vectors = np.array(open_vectors(store, commit, modality, d))
    vectors[rows] = 0
    return npy_bytes(vectors)


def _blank_metadata(table: pa.Table, rows: Ids) -> pa.Table:
    for column, field in enumerate(table.schema):
        if field.name == "member":  # the URL of a linked picture
            addresses = [row for row in rows.tolist() if "://" in (table["member"][row].as_py() or "")]
            table = table.set_column(column, field, _blanked(table["member"], np.array(addresses, np.int64), None))
        elif field.name not in KEPT:
            blank = {"has_image": False, "has_text": False, "extra": "{}"}.get(field.name)
            table = table.set_column(column, field, _blanked(table[field.name], rows, blank))
    return table


def _blanked(values: pa.ChunkedArray, rows: Ids, blank: Any) -> pa.Array:
    """Set these rows of a column to another value, without a trace of the old one."""
    blanked = values.to_pylist()  # rebuilt rather than masked: masked values may stay in the buffers
    for row in rows.tolist():
        blanked[row] = blank
    return pa.array(blanked, values.type)
