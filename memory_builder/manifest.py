"""What a memory's folder says of itself: ``memory.json``, the commit records, and the manifest they are folded into.

A shard is done when its commit record exists and for no other reason. The driver folds commit records into
``manifest.parquet`` so that a reader of a finished memory opens a handful of files, however many shards it has.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field

from memory_builder.errors import (
    BUILD_AGAIN,
    REPAIR,
    ConcurrentWriterError,
    ConfigMismatchError,
    CorruptMemoryError,
    UsageError,
)
from memory_builder.locks import turn
from memory_builder.progress import warn
from memory_builder.records import (
    FORMAT_VERSION,
    ColumnType,
    Count,
    Digest,
    Ordinal,
    RowCount,
    Seconds,
    ShardFile,
    ShortHash,
    check_format,
    decode,
    decode_table,
    decode_value,
    reading,
    strict_record,
)
from memory_builder.retry import RETRIES
from memory_builder.snapshots import read_snapshot
from memory_builder.storage import Store, sha256
from memory_builder.tables import parquet_bytes

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

NEWER_COLUMNS = ("retries", "notes")
MAX_SHARDS = 1 << 21
DESCRIPTION = "memory.json"
MANIFEST = "manifest.parquet"
EMBED_AGAIN = (
    "run the embed or import command that made this memory once more, with the same settings: it writes the file anew"
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


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The record that makes one shard's files exist."""

    ordinal: Ordinal
    uri: str
    etag: str
    config_hash: ShortHash
    n_read: Count
    """Pairs met in the input; ``n_written`` plus the rejects."""
    n_written: RowCount
    n_images: RowCount
    """Rows whose image vector is not blank; likewise ``n_texts``."""
    n_texts: RowCount
    reasons: dict[str, Count]
    """Rejects by reason."""
    partial: str | None
    """Why and where the input broke off; None when it was read to its end."""
    checksums: dict[ShardFile, Digest]
    """Path under the memory → SHA-256."""
    seconds: dict[str, Seconds] = field(default_factory=dict)
    """Wall time by what it went into (``decode`` and ``forward`` among them), and ``total``."""
    finished_s: Seconds = 0.0
    """Unix time."""
    retries: Count = 0
    """Storage requests that this worker had to make again since its commit before."""
    notes: dict[str, Count] = field(default_factory=dict)
    """What else is worth knowing of its rows, with how many it concerns."""

    def n_present(self, keys: str) -> int:
        """Rows whose vector of this modality is not blank."""
        return self.n_images if keys == "image" else self.n_texts

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @staticmethod
    def from_json(data: bytes, where: str = "a commit record", ordinal: int | None = None) -> "Commit":
        """The record in a file, which is named after the ordinal if one is given.

        Raises:
            CorruptMemoryError: it is damaged.
        """
        return _checked(decode(Commit, data, where=where), where, ordinal)


def _checked(commit: Commit, where: str, ordinal: int | None = None) -> Commit:
    """A commit that speaks of its own shard alone."""
    check_own_files(commit.ordinal, commit.checksums, where)
    if ordinal not in (None, commit.ordinal):
        raise CorruptMemoryError(f"{where} is damaged (ordinal: it is of shard {commit.ordinal})", REPAIR)
    if not max(commit.n_images, commit.n_texts) <= commit.n_written <= commit.n_read:
        raise CorruptMemoryError(f"{where} is damaged (n_written: not between what was read and what is there)", REPAIR)
    return commit


def refuse_uncommitted(ordinals: Iterable[int], commits: Mapping[int, Commit], where: str) -> None:
    """Refuse a part that holds rows of shards that the memory does not have.

    Raises:
        CorruptMemoryError: it does.
    """
    unknown = [ordinal for ordinal in ordinals if ordinal not in commits]
    if unknown:
        raise CorruptMemoryError(f"{where} holds rows of shard {unknown[0]}, which is not committed", BUILD_AGAIN)


def check_own_files(ordinal: int, paths: Iterable[str], where: str, fix: str = REPAIR) -> None:
    """Refuse the record of a shard that names files of another.

    Raises:
        CorruptMemoryError: it does.
    """
    foreign = [path for path in paths if not path.partition(".")[0].endswith(f"_{shard_name(ordinal)}")]
    if foreign:
        raise CorruptMemoryError(f"{where} is damaged (checksums: {foreign[0]} is not of shard {ordinal})", fix)


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """``memory.json``: what every row of this memory has in common."""

    model: str
    pretrained: str | None
    fingerprint: str
    d: Annotated[int, Field(ge=1, le=1 << 16)]
    columns: dict[str, ColumnType]
    """Metadata columns taken from the pairs' json, beside the fixed ones: name → Arrow type."""
    config: dict[str, Any]
    """Every setting, for people to read."""
    config_hash: ShortHash
    """Over those that are not at their default: a later version's new setting does not lock this memory."""
    dtype: Literal["float16"] = "float16"
    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_description(store: Store) -> Description:
    """``memory.json``; where that is missing or damaged, the copy of it in ``manifest.parquet``.

    Raises:
        UsageError: there is no memory here.
        CorruptMemoryError: it is damaged, and there is no copy.
    """
    missing = UsageError(f"no memory at {store.root}: {DESCRIPTION} is missing (memory-builder embed makes one)")
    error: UsageError | CorruptMemoryError
    try:
        data = store.read(DESCRIPTION)
        return read_description_strictly(store, data)
    except FileNotFoundError:
        error = missing
    except CorruptMemoryError as damaged:
        error = damaged
    copy = described_by_manifest(store)
    if copy is None:
        raise error from None
    warn(f"{store.root}/{DESCRIPTION} is missing or damaged; the copy in {MANIFEST} is used. {_writes_anew(store)}")
    return copy


def _writes_anew(store: Store) -> str:
    return f"memory-builder verify {store.root} --repair writes it anew"


def read_description_strictly(store: Store, data: bytes) -> Description:
    """What ``memory.json`` says.

    Raises:
        UsageError: a newer version wrote it.
        CorruptMemoryError: it is damaged.
    """
    check_format(store, data)
    return decode(Description, data, where=f"{store.root}/{DESCRIPTION}", fix=EMBED_AGAIN)


def described_by_manifest(store: Store) -> Description | None:
    """The copy of ``memory.json`` in the folded commits; None where there is none, as in older memories."""
    try:
        _, metadata = _read_manifest_table(store)
        return read_description_strictly(store, metadata[b"description"])
    except (FileNotFoundError, LookupError, CorruptMemoryError):
        return None


def _description_if_any(store: Store) -> Description | None:
    try:
        return read_description(store)
    except (UsageError, CorruptMemoryError):
        return None


def settle_description(store: Store, description: Description) -> None:
    """Write ``memory.json`` for a new memory, or anew where it was lost; for an existing one check that it agrees.

    Raises:
        ConfigMismatchError: the memory was written with other settings.
    """
    try:
        there: Description | None = read_description(store)
    except (UsageError, CorruptMemoryError):  # a new memory; or what is there is lost
        there = None
    hashes = {there.config_hash} if there else {commit.config_hash for commit in Manifest.read(store).commits.values()}
    if hashes - {description.config_hash}:
        _refuse_other_settings(store, there, hashes.pop(), description)
    if there is None:
        try:
            store.create(DESCRIPTION, description.to_json())
        except FileExistsError:
            _settle_with_the_first(store, description)


def _settle_with_the_first(store: Store, description: Description) -> None:
    """Another writer created ``memory.json`` meanwhile, or it is damaged."""
    data = store.read(DESCRIPTION)
    try:
        there = read_description_strictly(store, data)
    except CorruptMemoryError:
        store.put(DESCRIPTION, description.to_json())
        return
    if there.config_hash != description.config_hash:
        _refuse_other_settings(store, there, there.config_hash, description)


def _refuse_other_settings(store: Store, there: Description | None, hash_there: str, description: Description) -> None:
    config = there.config if there else {}
    differing = {
        name: (config.get(name), description.config.get(name))
        for name in sorted(config.keys() | description.config.keys())
        if there and config.get(name) != description.config.get(name)
    }
    changes = ", ".join(f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in differing.items())
    raise ConfigMismatchError(
        f"{store.root} was written with config {hash_there}, this run has {description.config_hash} "
        f"({changes or 'memory.json is lost, so what differs is not known'}). Use the same settings, or another "
        "--memory folder."
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
        """Only ``manifest.parquet``: one file, whatever the number of shards. Without it, the commit records.

        Raises:
            CorruptMemoryError: it is damaged, and a commit record too.
        """
        try:
            manifest = Manifest.read_strictly(store)
            if manifest.version:
                return manifest
        except CorruptMemoryError as error:
            warn(f"{error.problem}; the commit records are read instead, and the next change writes it anew")
        commits = _read_commits(store, record_names(store, "commits"))
        return Manifest(dict(sorted(commits.items())), 0, frozenset())

    @staticmethod
    def read_strictly(store: Store) -> "Manifest":
        """Only ``manifest.parquet``; empty where there is none.

        Raises:
            CorruptMemoryError: it is damaged.
        """
        where = f"{store.root}/{MANIFEST}"
        try:
            table, metadata = _read_manifest_table(store)
        except FileNotFoundError:
            return Manifest({}, 0, frozenset())
        with reading(where):
            version = int(metadata[b"version"])
            if not 1 <= version < 1 << 53:
                raise ValueError(f"version {version}")
            rows = [_from_row(row) for row in table.to_pylist()]
        found = [_checked(decode_value(Commit, row, where=where), where) for row in rows]
        commits = {commit.ordinal: commit for commit in found}
        return Manifest(dict(sorted(commits.items())), version, frozenset(commits))

    @staticmethod
    def read(store: Store) -> "Manifest":
        """``manifest.parquet`` and the commit records written since."""
        manifest = Manifest.read_folded(store)
        names = {f"{shard_name(ordinal)}.json" for ordinal in manifest.commits}
        later = [name for name in record_names(store, "commits") if name not in names]
        commits = manifest.commits | _read_commits(store, later)
        return Manifest(dict(sorted(commits.items())), manifest.version, manifest.folded)

    def add(self, commit: Commit) -> None:
        self.commits[commit.ordinal] = commit

    def fold(self, store: Store) -> None:
        """Write all commit records as one table, those another process folded meanwhile among them.

        The records stay where they are: they are the truth, this is a faster way to read them.
        """
        with turn(store, "manifest.lock") as held:
            there = Manifest.read_folded(store)
            self.commits = dict(sorted((there.commits | self.commits).items()))
            if there.folded == self.commits.keys():
                self.version, self.folded = there.version, there.folded
                return
            # Where the file was lost, its version is what the current state needs at least.
            reached = there.version or read_snapshot(store).manifest_version - 1
            self.version = max(self.version, reached, 0) + 1
            held.check()
            store.put(MANIFEST, self._to_parquet(_description_if_any(store)))
            self.folded = frozenset(self.commits)

    @staticmethod
    def rewrite(store: Store) -> None:
        """Write ``manifest.parquet`` anew from the commit records alone, whatever it says.

        Raises:
            CorruptMemoryError: a commit record is damaged.
        """
        with turn(store, "manifest.lock") as held:
            commits = _read_commits(store, record_names(store, "commits"))
            manifest = Manifest(dict(sorted(commits.items())), read_snapshot(store).manifest_version, frozenset())
            with suppress(CorruptMemoryError):
                manifest.version = max(manifest.version, Manifest.read_strictly(store).version)
            manifest.version = max(1, manifest.version)
            held.check()
            store.put(MANIFEST, manifest._to_parquet(_description_if_any(store)))

    def _to_parquet(self, description: Description | None) -> bytes:
        rows = [_to_row(commit) for commit in self.commits.values()]
        metadata = {"version": str(self.version), "format": str(FORMAT_VERSION)}
        if description is not None:  # should memory.json be lost
            metadata["description"] = description.to_json().decode()
        return parquet_bytes(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA.with_metadata(metadata)))

    @property
    def n_rows(self) -> int:
        return sum(commit.n_written for commit in self.commits.values())


def _read_manifest_table(store: Store) -> tuple[pa.Table, dict[bytes, bytes]]:
    """(the rows, what stands beside them); FileNotFoundError when there is none."""
    data, where = store.read(MANIFEST), f"{store.root}/{MANIFEST}"
    table = decode_table(data, MANIFEST_SCHEMA, where=where, optional=NEWER_COLUMNS, max_rows=MAX_SHARDS)
    return table, table.schema.metadata or {}


def _read_commits(store: Store, names: Sequence[str]) -> dict[int, Commit]:
    """The commit records with these file names, by ordinal."""
    with ThreadPoolExecutor(16) as threads:
        found = threads.map(lambda name: read_commit(store, int(name.removesuffix(".json"))), names)
        return {commit.ordinal: commit for commit in found if commit is not None}


def read_commit(store: Store, ordinal: int) -> Commit | None:
    """The commit record of a shard; None when there is none.

    An empty file is none: on a filesystem without hard links a writer that was killed may have left one.

    Raises:
        CorruptMemoryError: it is damaged.
    """
    path = commit_path(ordinal)
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    if not data:
        warn(f"{store.root}/{path} is empty, so its shard counts as not embedded; the next embed makes it again")
        return None
    return Commit.from_json(data, f"{store.root}/{path}", ordinal)


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
        there = read_commit(store, commit.ordinal)
        if there is None or (there.uri, there.etag, there.checksums) != (commit.uri, commit.etag, commit.checksums):
            raise ConcurrentWriterError(
                f"{store.root}/{path}: another driver committed {there.uri if there else 'something'} in the place of "
                f"{commit.uri}; let one finish, then run the other again"
            ) from None
        return there  # it did the same work, and the bytes are the same
    return commit


def _to_row(commit: Commit) -> dict[str, Any]:
    row = asdict(commit)
    return row | {name: json.dumps(row[name], sort_keys=True) for name in JSON_COLUMNS}


def _from_row(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: json.loads(row[name]) for name in JSON_COLUMNS if name in row}  # older: fewer columns
