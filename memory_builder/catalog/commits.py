"""Commit records: ``commits/<shard>.json``, one for each shard, written last. A shard without one does not exist."""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from memory_builder.base.log import warn_once
from memory_builder.catalog.paths import commit_path, shard_name
from memory_builder.errors import BUILD_AGAIN, REPAIR, ConcurrentWriterError, CorruptMemoryError
from memory_builder.storage.filesystem import RETRIES
from memory_builder.storage.records import (
    Count,
    Digest,
    Ordinal,
    RowCount,
    Seconds,
    ShardFile,
    ShortHash,
    decode,
    decode_table,
    record_bytes,
    strict_record,
)
from memory_builder.storage.store import Store

MANIFEST_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("config_hash", pa.string()),
        ("n_read", pa.int64()),
        ("n_written", pa.int64()),
        ("n_images", pa.int64()),
        ("n_texts", pa.int64()),
        ("reasons", pa.string()),
        ("partial", pa.string()),
        ("checksums", pa.string()),
        ("seconds", pa.string()),
        ("finished_s", pa.float64()),
        ("retries", pa.int64()),
        ("notes", pa.string()),
    ]
)


MANIFEST = "manifest.parquet"


JSON_COLUMNS = ("reasons", "checksums", "seconds", "notes")


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """Commit record of one shard: without it the shard's files do not count."""

    ordinal: Ordinal
    uri: str
    etag: str
    config_hash: ShortHash
    n_read: Count
    """Pairs read from the input: ``n_written`` plus the rejects."""
    n_written: RowCount
    n_images: RowCount
    """Rows whose image vector is not blank; ``n_texts`` counts text vectors."""
    n_texts: RowCount
    reasons: dict[str, Count]
    """Rejects by reason."""
    partial: str | None
    """Reason and position at which reading stopped; None if the input was read to its end."""
    checksums: dict[ShardFile, Digest]
    """Path under the memory → SHA-256."""
    seconds: dict[str, Seconds] = field(default_factory=dict)
    """Wall time by step (``decode`` and ``forward`` among them), and ``total``."""
    finished_s: Seconds = 0.0
    """Unix time."""
    retries: Count = 0
    """Retries of this worker's storage requests since its previous commit."""
    notes: dict[str, Count] = field(default_factory=dict)
    """Remarks about the rows, with the number of rows each concerns."""

    def n_present(self, modality: str) -> int:
        """Rows whose vector of this modality is not blank."""
        return self.n_images if modality == "image" else self.n_texts

    def to_json(self) -> bytes:
        return record_bytes(self)

    @staticmethod
    def from_json(data: bytes, where: str = "a commit record", ordinal: int | None = None) -> "Commit":
        """Decode a commit record; ``ordinal``, if given, is the one in its file name.

        Raises:
            CorruptMemoryError: the record is damaged.
        """
        return checked_commit(decode(Commit, data, where=where), where, ordinal)


def checked_commit(commit: Commit, where: str, ordinal: int | None = None) -> Commit:
    """Check that a commit names only its own shard and files, with counts that add up; return it."""
    check_own_files(commit.ordinal, commit.checksums, where)
    if ordinal not in (None, commit.ordinal):
        raise CorruptMemoryError(f"{where} is damaged (ordinal: the record is of shard {commit.ordinal})", REPAIR)
    if not max(commit.n_images, commit.n_texts) <= commit.n_written <= commit.n_read:
        raise CorruptMemoryError(f"{where} is damaged (n_written: above n_read, or below n_images or n_texts)", REPAIR)
    return commit


def refuse_uncommitted(ordinals: Iterable[int], commits: Mapping[int, Commit], where: str) -> None:
    """Refuse a part with rows of shards that are not committed.

    Raises:
        CorruptMemoryError: a shard is not committed.
    """
    unknown = [ordinal for ordinal in ordinals if ordinal not in commits]
    if unknown:
        raise CorruptMemoryError(f"{where} holds rows of shard {unknown[0]}, which is not committed", BUILD_AGAIN)


def check_own_files(ordinal: int, paths: Iterable[str], where: str, fix: str = REPAIR) -> None:
    """Refuse the record of a shard that names files of another shard.

    Raises:
        CorruptMemoryError: a file is of another shard.
    """
    foreign = [path for path in paths if not path.partition(".")[0].endswith(f"_{shard_name(ordinal)}")]
    if foreign:
        raise CorruptMemoryError(f"{where} is damaged (checksums: {foreign[0]} is not of shard {ordinal})", fix)


def read_commits(store: Store, names: Sequence[str]) -> dict[int, Commit]:
    """Read the commit records with these file names, by ordinal."""
    with ThreadPoolExecutor(16) as threads:
        commits = threads.map(lambda name: read_commit(store, int(name.removesuffix(".json"))), names)
        return {commit.ordinal: commit for commit in commits if commit is not None}


def read_commit(store: Store, ordinal: int) -> Commit | None:
    """Read the commit record of a shard; None if it is missing.

    An empty file counts as missing: on a filesystem without hard links a writer that was killed may have left one.

    Raises:
        CorruptMemoryError: the record is damaged.
    """
    path = commit_path(ordinal)
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    if not data:
        warn_once(f"{store.root}/{path} is empty, so its shard counts as not embedded; the next embed writes it again")
        return None
    return Commit.from_json(data, f"{store.root}/{path}", ordinal)


def record_names(store: Store, folder: str) -> list[str]:
    """List the names of per-shard records in a folder, without other files."""
    return [name for name in store.list(folder) if re.fullmatch(r"\d{5,}\.json", name)]


def write_commit(store: Store, commit: Commit) -> Commit:
    """Create the record, stamped with time and retries, after all files that it names are written.

    Raises:
        ConcurrentWriterError: another driver committed other content for this shard.
    """
    commit = replace(commit, finished_s=time.time(), retries=RETRIES.take())
    path = commit_path(commit.ordinal)
    try:
        store.create(path, commit.to_json())
    except FileExistsError:
        committed = read_commit(store, commit.ordinal)
        if committed is None or (committed.uri, committed.etag, committed.checksums) != (
            commit.uri,
            commit.etag,
            commit.checksums,
        ):
            raise ConcurrentWriterError(
                f"{store.root}/{path}: another driver committed {committed.uri if committed else 'something'} instead "
                f"of {commit.uri}; let one finish, then run the other again"
            ) from None
        return committed  # the other driver did the same work, and the bytes are the same
    return commit


def commit_to_row(commit: Commit) -> dict[str, Any]:
    row = asdict(commit)
    return row | {name: json.dumps(row[name], sort_keys=True) for name in JSON_COLUMNS}


def commit_from_row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: json.loads(row[name]) for name in JSON_COLUMNS if name in row}  # older files have fewer columns


NEWER_COLUMNS = ("retries", "notes")


MAX_SHARDS = 1 << 21


def read_manifest_table(store: Store) -> tuple[pa.Table, dict[bytes, bytes]]:
    """Read ``manifest.parquet``: (its rows, its file metadata); FileNotFoundError if it is missing."""
    data, where = store.read(MANIFEST), f"{store.root}/{MANIFEST}"
    table = decode_table(data, MANIFEST_SCHEMA, where=where, optional=NEWER_COLUMNS, max_rows=MAX_SHARDS)
    return table, table.schema.metadata or {}
