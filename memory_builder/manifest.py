"""What a memory's folder says of itself: the plan of shards, the commit records, the snapshots.

A shard is done when its commit record exists and for no other reason. The driver folds commit records into
``manifest.parquet`` so that a reader of a finished memory opens a handful of files, however many shards it has.
"""

import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from memory_builder.errors import (
    ConcurrentWriterError,
    ConfigMismatchError,
    CorruptMemoryError,
    IndexBuildError,
    UsageError,
)
from memory_builder.progress import say
from memory_builder.retry import RETRIES
from memory_builder.storage import Store, sha256
from memory_builder.tables import parquet_bytes, read_parquet

FORMAT_VERSION = 1
MAX_ORDINAL = 1 << 21  # a row id then stays below 2**53 and is exact in JavaScript
FOLD_EVERY = 1_000

PLAN_SCHEMA = pa.schema([("ordinal", pa.int64()), ("uri", pa.string()), ("bytes", pa.int64()), ("etag", pa.string())])
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One input file, as found."""

    uri: str
    bytes: int
    etag: str
    """Changes when the content does: an object store's ETag, or size and modification time of a local file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard(Source):
    """A source with its place in the plan."""

    ordinal: int

    def __post_init__(self) -> None:
        if not 0 <= self.ordinal < MAX_ORDINAL:
            raise UsageError(f"shard {self.ordinal} of {self.uri}: a memory holds at most {MAX_ORDINAL:,} shards")


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
    with _reading(store, "memory.json"):
        fields = json.loads(data)
        _check_format(store, fields)
        return Description(**fields)


@contextmanager
def _reading(store: Store, path: str) -> Iterator[None]:
    """What goes wrong while a file's content is made sense of is the file's fault, and is said of it."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:  # OSError: pyarrow, of its content
        raise CorruptMemoryError(
            f"{store.root}/{path} is damaged ({type(error).__name__}: {error}): run verify"
        ) from error


def _check_format(store: Store, fields: dict[str, Any]) -> None:
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


def read_plan(store: Store) -> list[Shard]:
    """All planned shards in order of their ordinals."""
    try:
        data = store.read("plan.parquet")
    except FileNotFoundError:
        return []
    with _reading(store, "plan.parquet"):
        return [Shard(**row) for row in read_parquet(data).to_pylist()]


def extend_plan(store: Store, sources: Sequence[Source]) -> list[Shard]:
    """Add the sources that are not planned yet, behind those that are; return the whole plan.

    A source that changed since it was planned becomes a new shard if its old one is committed (committed rows
    never move), and replaces its entry if it is not. Drivers that plan at the same time take turns.
    """
    plan = read_plan(store)
    planned = {(shard.uri, shard.etag) for shard in plan}
    if all((source.uri, source.etag) in planned for source in sources):
        return plan
    with store.turn("plan.lock"):
        plan = read_plan(store)
        committed = Manifest.read(store).commits
        n_again = _extend(plan, sources, committed)
        rows = [{name: getattr(shard, name) for name in PLAN_SCHEMA.names} for shard in plan]
        store.put("plan.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)))
    if n_again:
        say(f"{n_again} sources changed since they were embedded: they are embedded again, as new shards")
    return plan


def _extend(plan: list[Shard], sources: Sequence[Source], committed: dict[int, Commit]) -> int:
    """Extend a plan in place; how many sources are planned again behind their committed selves."""
    known = {shard.uri: shard for shard in plan}
    n_again = 0
    for source in sources:
        old = known.get(source.uri)
        if old is not None and old.etag == source.etag:
            continue
        replaces = old is not None and old.ordinal not in committed
        ordinal = old.ordinal if old is not None and replaces else len(plan)
        shard = Shard(ordinal=ordinal, uri=source.uri, bytes=source.bytes, etag=source.etag)
        plan[ordinal : ordinal + 1] = [shard]
        known[source.uri] = shard
        n_again += old is not None and not replaces
    return n_again


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
        with _reading(store, "manifest.parquet"):
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
    with _reading(store, path):
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
    path = f"commits/{shard_name(commit.ordinal)}.json"
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


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexView:
    """One index as a snapshot shows it."""

    index: str
    """Folder under ``index/``."""
    segments: list[list[str]]
    """Part names by segment: the first build, then one segment an append."""
    n_rows: int
    tuning: str = "tuning.json"
    """File in that folder: the settings that searches use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """``snapshots/<number>.json``: the state of a memory. The highest number is current."""

    number: int
    manifest_version: int
    indexes: dict[str, IndexView]
    """Key modality (``image`` or ``text``) → index."""
    tombstones: str | None = None
    """File of deleted row ids, if any."""
    tombstones_sha256: str | None = None
    written_s: float = field(default=0.0, compare=False)
    """Unix time; not part of the state."""
    format_version: int = FORMAT_VERSION

    @property
    def modalities(self) -> tuple[Literal["image", "text"], ...]:
        """The key modalities that have an index."""
        both: tuple[Literal["image", "text"], ...] = ("image", "text")
        return tuple(keys for keys in both if keys in self.indexes)

    def view(self, keys: str, root: str) -> IndexView:
        """The index of a key modality.

        Raises:
            IndexBuildError: there is none; the message says how to make it.
        """
        if keys not in self.indexes:
            raise IndexBuildError(
                f"{root} has no index of {keys} vectors ({', '.join(self.indexes) or 'none yet'}): "
                f"run memory-builder index {root} --keys {keys}"
            )
        return self.indexes[keys]


def read_snapshot(store: Store) -> Snapshot:
    """The current state; number 0, with no index, when none was written yet."""
    numbers = snapshot_numbers(store)
    return read_numbered_snapshot(store, numbers[-1]) if numbers else Snapshot(number=0, manifest_version=0, indexes={})


def snapshot_numbers(store: Store) -> list[int]:
    """Numbers of all snapshots, ascending. None is ever removed: a writer that is late must find its number taken."""
    stems = (name.removesuffix(".json") for name in store.list("snapshots") if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def read_numbered_snapshot(store: Store, number: int) -> Snapshot:
    """The state as it was at this number."""
    path = f"snapshots/{number}.json"
    data = store.read(path)
    with _reading(store, path):
        fields = json.loads(data)
        _check_format(store, fields)
        fields["indexes"] = {keys: IndexView(**view) for keys, view in fields["indexes"].items()}
        return Snapshot(**fields)


def write_snapshot(store: Store, snapshot: Snapshot) -> None:
    """Make a state current; refused when another writer took the number."""
    try:
        store.create(f"snapshots/{snapshot.number}.json", json.dumps(asdict(snapshot), indent=1).encode())
    except FileExistsError:
        raise ConcurrentWriterError(
            f"{store.root}: another writer made snapshot {snapshot.number} meanwhile; run the command again"
        ) from None


def _to_row(commit: Commit) -> dict[str, Any]:
    row = asdict(commit)
    return row | {name: json.dumps(row[name], sort_keys=True) for name in JSON_COLUMNS}


def _from_row(row: dict[str, Any]) -> Commit:
    return Commit(**row | {name: json.loads(row[name]) for name in JSON_COLUMNS if name in row})  # older: fewer columns
