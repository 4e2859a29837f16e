"""Snapshots: the states of a memory, each with its indexes, their parts, and the deleted rows."""

import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from memory_builder.base.log import warn_once
from memory_builder.base.types import MODALITIES
from memory_builder.errors import BUILD_AGAIN, REPAIR, ConcurrentWriterError, CorruptMemoryError, IndexBuildError
from memory_builder.storage.records import (
    FORMAT_VERSION,
    Count,
    Digest,
    IndexFolder,
    Modality,
    PartName,
    Seconds,
    TombstonesFile,
    TuningFile,
    check_format,
    decode,
    partial_record,
    record_bytes,
    strict_record,
)
from memory_builder.storage.store import Store, sha256

TOMBSTONES = "tombstones"


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class IndexView:
    """One index in a snapshot: its folder, parts and tuning file."""

    index: IndexFolder
    segments: list[list[PartName]]
    """Part names by segment: the first build, then one segment for each append."""
    n_rows: Count
    tuning: TuningFile = "tuning.json"
    """File in that folder with the search parameters."""

    @property
    def parts(self) -> list[str]:
        """Part names of all segments."""
        return [name for segment in self.segments for name in segment]


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """``snapshots/<number>.json``: the state of a memory. The highest number is current."""

    number: Count
    manifest_version: Count
    indexes: dict[Modality, IndexView]
    """Modality of the indexed vectors (``image`` or ``text``) → index."""
    tombstones: TombstonesFile | None = None
    """File of deleted row ids, if any."""
    tombstones_sha256: Digest | None = None
    written_s: Seconds = field(default=0.0, compare=False)
    """Unix time; not part of the state."""
    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION

    def to_json(self) -> bytes:
        return record_bytes(self)

    @property
    def modalities(self) -> tuple[Literal["image", "text"], ...]:
        """Modalities that have an index."""
        return tuple(modality for modality in MODALITIES if modality in self.indexes)

    def view(self, modality: str, root: str) -> IndexView:
        """Return the index of a modality.

        Raises:
            IndexBuildError: the modality has no index; the message names the command that builds one.
        """
        if modality not in self.indexes:
            raise IndexBuildError(
                f"{root} has no index of {modality} vectors ({', '.join(self.indexes) or 'none yet'}): "
                f"run memory-builder index {root} --modality {modality}"
            )
        return self.indexes[modality]


def read_snapshot(store: Store) -> Snapshot:
    """Read the current snapshot; number 0, without indexes, if none was written yet.

    If its file is damaged, the newest readable snapshot before it is used, with the newest tombstones.
    """
    return read_current(store)[0]


def read_current(store: Store) -> tuple[Snapshot, bool]:
    """Return (the current snapshot as ``read_snapshot`` does, whether its own file was readable)."""
    numbers = snapshot_numbers(store)
    if not numbers:
        return Snapshot(number=0, manifest_version=0, indexes={}), True
    try:
        return read_numbered_snapshot(store, numbers[-1]), True
    except CorruptMemoryError as error:
        recovered = recovered_snapshot(store, numbers[-1])
        warn_once(f"{error.problem}; {describe_recovered(recovered)}")
        return recovered, False


def describe_recovered(snapshot: Snapshot) -> str:
    """Describe the snapshot that is used in place of a damaged one."""
    indexes = ", ".join(snapshot.indexes) or "none"
    deleted = f"the deleted rows of {snapshot.tombstones}" if snapshot.tombstones else "no deleted rows"
    return (
        f"the newest readable snapshot before it is used (indexes: {indexes}; {deleted}). Run the append, index or "
        "compact that wrote the damaged one again"
    )


def recovered_snapshot(store: Store, number: int) -> Snapshot:
    """Replace a damaged snapshot by the newest readable one before it, under the damaged one's number.

    Tombstones only grow, so the newest tombstones file is used: deleted rows stay deleted.
    """
    before = Snapshot(number=0, manifest_version=0, indexes={})
    for earlier in reversed([stored for stored in snapshot_numbers(store) if stored < number]):
        try:
            before = read_numbered_snapshot(store, earlier)
            break
        except CorruptMemoryError:
            continue
    path, digest = _newest_tombstones(store) or (before.tombstones, before.tombstones_sha256)
    return replace(before, number=number, tombstones=path, tombstones_sha256=digest)


def _newest_tombstones(store: Store) -> tuple[str, str] | None:
    """Return (path, SHA-256) of the newest tombstones file; skip empty ones, whose writers were killed."""
    for number in sorted(map(int, _stems(store, TOMBSTONES, ".npy")), reverse=True):
        data = store.read(f"{TOMBSTONES}/{number}.npy")
        if data:
            return f"{TOMBSTONES}/{number}.npy", sha256(data)
    return None


def snapshot_numbers(store: Store) -> list[int]:
    """List the numbers of all snapshots, ascending. None is ever removed, so that a late writer's number is taken."""
    return sorted(int(stem) for stem in _stems(store, "snapshots", ".json"))


def _stems(store: Store, folder: str, suffix: str) -> list[str]:
    """List the stems of the files in a folder that are named by a number without leading zeros."""
    stems = (name.removesuffix(suffix) for name in store.list(folder) if name.endswith(suffix))
    return [stem for stem in stems if stem.isascii() and stem.isdecimal() and len(stem) < 19 and stem == str(int(stem))]


def read_numbered_snapshot(store: Store, number: int) -> Snapshot:
    """Read the snapshot of this number.

    Raises:
        CorruptMemoryError: the file is damaged.
        FileNotFoundError: the file does not exist.
        UsageError: a newer version wrote the file.
    """
    path = f"snapshots/{number}.json"
    data, where = store.read(path), f"{store.root}/{path}"
    check_format(store, data)
    snapshot = decode(Snapshot, data, where=where)
    if snapshot.number != number:
        raise CorruptMemoryError(f"{where} is damaged (number: the record has {snapshot.number})", REPAIR)
    return snapshot


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Tuned search parameters, with their measured recall and latency."""

    nprobe: Annotated[int, Field(ge=1, le=1 << 31)]
    refine: Annotated[int, Field(ge=0, le=1 << 20)]
    recall: Annotated[float, Field(alias="recall@10")]
    strict_recall: Annotated[float, Field(alias="strict_recall@10")]
    p50_s: float


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """``tuning.json``: the fields that a search needs."""

    target_recall: float
    sides: dict[Modality, Setting]
    curves: dict[Modality, list[dict[str, Any]]]


def read_tuning(store: Store, view: IndexView) -> dict[str, Any]:
    """Read the tuning of an index (``tuning.json``): search parameters, recall, curves.

    Raises:
        CorruptMemoryError: the file is missing or damaged.
    """
    path = f"{view.index}/{view.tuning}"
    tuning = read_tuning_file(store, path)
    if tuning is None:
        raise CorruptMemoryError(f"{store.root}/{path} is missing", BUILD_AGAIN)
    return tuning


def read_tuning_file(store: Store, path: str) -> dict[str, Any] | None:
    """Read a tuning file; None if it is missing.

    Raises:
        CorruptMemoryError: the file is damaged.
    """
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    decode(Tuning, data, where=f"{store.root}/{path}", fix=BUILD_AGAIN)
    tuning: dict[str, Any] = json.loads(data)
    return tuning


def write_snapshot(store: Store, snapshot: Snapshot) -> None:
    """Write a snapshot, which makes it current; ConcurrentWriterError if another writer took its number."""
    try:
        store.create(f"snapshots/{snapshot.number}.json", snapshot.to_json())
    except FileExistsError:
        raise ConcurrentWriterError(
            f"{store.root}: another writer made snapshot {snapshot.number} meanwhile; run the command again"
        ) from None
