"""What a memory's folder says of itself: ``memory.json``, the commit records, and the manifest they are folded into.

A shard is done when its commit record exists and for no other reason. The driver folds commit records into
``manifest.parquet`` so that a reader of a finished memory opens a handful of files, however many shards it has.
"""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from memory_builder.errors import (
    ConcurrentWriterError,
    ConfigMismatchError,
    CorruptMemoryError,
    UsageError,
)
from memory_builder.locks import turn
from memory_builder.retry import RETRIES
from memory_builder.storage import Store, sha256
from memory_builder.tables import parquet_bytes, read_parquet

FORMAT_VERSION = 1
FOLD_EVERY = 1_000

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

JSON_COLUMNS = ("reasons", "checksums", "seconds", "notes")


def config_hash(config: dict[str, Any]) -> str:
    """Sixteen hex digits over a configuration's canonical JSON."""
    return sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())[:16]


def shard_name(ordinal: int) -> str:
    """The number in every file name of a shard: five digits, more when needed."""
    return f"{ordinal:05d}"


def commit_path(ordinal: int) -> str:
    """Where a shard's commit record lies."""
    return f"commits/{shard_name(ordinal)}.json"


def metadata_path(ordinal: int) -> str:
    """Where all that is known of a shard's pairs lies."""
    return f"metadata/metadata_{shard_name(ordinal)}.parquet"


def lookup_path(ordinal: int) -> str:
    """Where what is looked up most of a shard's pairs lies."""
    return f"rows/rows_{shard_name(ordinal)}.arrow"


def rejects_path(ordinal: int) -> str:
    """Where the pairs that a shard rejected are named."""
    return f"rejects/rejects_{shard_name(ordinal)}.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The record that makes one shard's files exist."""

    ordinal: int
    uri: str
    etag: str
    config_hash: str
    n_read: int
    """Pairs met in the input; ``n_written`` plus the rejects."""
    n_written: int
    n_images: int
    """Rows whose image vector is not blank; likewise ``n_texts``."""
    n_texts: int
    reasons: dict[str, int]
    """Rejects by reason."""
    partial: str | None
    """Why and where the input broke off; None when it was read to its end."""
    checksums: dict[str, str]
    """Path under the memory → SHA-256."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by what it went into (``decode`` and ``forward`` among them), and ``total``."""
    finished_s: float = 0.0
    """Unix time."""
    retries: int = 0
    """Storage requests that this worker had to make again since its commit before."""
    notes: dict[str, int] = field(default_factory=dict)
    """What else is worth knowing of its rows, with how many it concerns."""

    def n_present(self, keys: str) -> int:
        """Rows whose vector of this modality is not blank."""
        return self.n_images if keys == "image" else self.n_texts

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> "Commit":
        return Commit(**json.loads(data))


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """``memory.json``: what every row of this memory has in common."""

    model: str
    pretrained: str | None
    fingerprint: str
    d: int
    columns: dict[str, str]
    """Metadata columns taken from the pairs' json, beside the fixed ones: name → Arrow type."""
    config: dict[str, Any]
    """Every setting, for people to read."""
    config_hash: str
    """Over those that are not at their default: a later version's new setting does not lock this memory."""
    dtype: str = "float16"
    format_version: int = FORMAT_VERSION


def read_description(store: Store) -> Description:
    """``memory.json``, or an error that says there is no memory here."""
    try:
        data = store.read("memory.json")
    except FileNotFoundError:
        raise UsageError(
            f"no memory at {store.root}: memory.json is missing (memory-builder embed makes one)"
        ) from None
    with reading(store, "memory.json"):
        fields = json.loads(data)
        check_format(store, fields)
        return Description(**fields)


@contextmanager
def reading(store: Store, path: str) -> Iterator[None]:
    """What goes wrong while a file's content is made sense of is the file's fault, and is said of it."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:  # OSError: pyarrow, of its content
        raise CorruptMemoryError(
            f"{store.root}/{path} is damaged ({type(error).__name__}: {error}): run verify"
        ) from error


def check_format(store: Store, fields: dict[str, Any]) -> None:
    """Refuse what a newer version wrote.

    Raises:
        UsageError: its format is newer than what this version reads.
    """
    if fields["format_version"] > FORMAT_VERSION:
        raise UsageError(
            f"{store.root} has format {fields['format_version']}, this version reads up to {FORMAT_VERSION}: "
            "install a newer memory-builder"
        )


def settle_description(store: Store, description: Description) -> None:
    """Write ``memory.json`` for a new memory; for an existing one check that it agrees."""
    data = json.dumps(asdict(description), indent=1).encode()
    try:
        store.create("memory.json", data)
    except FileExistsError:
        there = read_description(store)
        if there.config_hash != description.config_hash:
            differing = {
                name: (there.config.get(name), description.config.get(name))
                for name in sorted(there.config.keys() | description.config.keys())
                if there.config.get(name) != description.config.get(name)
            }
            changes = ", ".join(f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in differing.items())
            raise ConfigMismatchError(
                f"{store.root} was written with config {there.config_hash}, this run has {description.config_hash} "
                f"({changes}). Use the same settings, or another --memory folder."
            ) from None


class Manifest:
    """The commit records of a memory.

    ``version`` counts the folds: a snapshot names the version it needs, and later ones only ever add shards.
    """

    def __init__(self, commits: dict[int, Commit], version: int, folded: frozenset[int]) -> None:
        self.commits = commits
        self.version = version
        self.folded = folded

    @staticmethod
    def read_folded(store: Store) -> "Manifest":
        """Only ``manifest.parquet``: one file, whatever the number of shards."""
        try:
            data = store.read("manifest.parquet")
        except FileNotFoundError:
            return Manifest({}, 0, frozenset())
        with reading(store, "manifest.parquet"):
            table = read_parquet(data)
            commits = {row["ordinal"]: _from_row(row) for row in table.to_pylist()}
            version = int(table.schema.metadata[b"version"])
        return Manifest(dict(sorted(commits.items())), version, frozenset(commits))

    @staticmethod
    def read(store: Store) -> "Manifest":
        """``manifest.parquet`` and the commit records written since."""
        manifest = Manifest.read_folded(store)
        names = {f"{shard_name(ordinal)}.json" for ordinal in manifest.folded}
        later = [name for name in record_names(store, "commits") if name not in names]
        with ThreadPoolExecutor(16) as threads:
            fresh = threads.map(lambda name: _read_commit(store, f"commits/{name}"), later)
            commits = manifest.commits | {commit.ordinal: commit for commit in fresh}
        return Manifest(dict(sorted(commits.items())), manifest.version, manifest.folded)

    def add(self, commit: Commit) -> None:
        self.commits[commit.ordinal] = commit

    def fold(self, store: Store) -> None:
        """Write all commit records as one table, those another process folded meanwhile among them.

        The records stay where they are: they are the truth, this is a faster way to read them.
        """
        with turn(store, "manifest.lock"):
            there = Manifest.read_folded(store)
            self.commits = dict(sorted((there.commits | self.commits).items()))
            if there.folded == self.commits.keys():
                self.version, self.folded = there.version, there.folded
                return
            rows = [_to_row(commit) for commit in self.commits.values()]
            self.version = max(self.version, there.version) + 1
            schema = MANIFEST_SCHEMA.with_metadata({"version": str(self.version), "format": str(FORMAT_VERSION)})
            store.put("manifest.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=schema)))
            self.folded = frozenset(self.commits)

    @property
    def n_rows(self) -> int:
        return sum(commit.n_written for commit in self.commits.values())


def _read_commit(store: Store, path: str) -> Commit:
    data = store.read(path)
    with reading(store, path):
        return Commit.from_json(data)


def record_names(store: Store, folder: str) -> list[str]:
    """Names of the per-shard records in a folder; what else lies there is not ours."""
    return [name for name in store.list(folder) if re.fullmatch(r"\d{5,}\.json", name)]


def write_commit(store: Store, commit: Commit) -> Commit:
    """Create the record, stamped with time and retries. Everything it names must already lie there.

    Raises:
        ConcurrentWriterError: another driver committed something else in this place.
    """
    commit = replace(commit, finished_s=time.time(), retries=RETRIES.take())
    path = commit_path(commit.ordinal)
    try:
        store.create(path, commit.to_json())
    except FileExistsError:
        there = Commit.from_json(store.read(path))
        if (there.uri, there.etag, there.checksums) != (commit.uri, commit.etag, commit.checksums):
            raise ConcurrentWriterError(
                f"{store.root}/{path}: another driver committed {there.uri} in the place of {commit.uri}; let one "
                "finish, then run the other again"
            ) from None
        return there  # it did the same work, and the bytes are the same
    return commit


def _to_row(commit: Commit) -> dict[str, Any]:
    row = asdict(commit)
    return row | {name: json.dumps(row[name], sort_keys=True) for name in JSON_COLUMNS}


def _from_row(row: dict[str, Any]) -> Commit:
    return Commit(**row | {name: json.loads(row[name]) for name in JSON_COLUMNS if name in row})  # older: fewer columns
