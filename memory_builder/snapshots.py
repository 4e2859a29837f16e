"""The states of a memory: which indexes answer, with which parts, and which rows are deleted."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from memory_builder.errors import BUILD_AGAIN, ConcurrentWriterError, CorruptMemoryError, IndexBuildError
from memory_builder.manifest import FORMAT_VERSION, check_format, reading
from memory_builder.storage import Store


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

    @property
    def parts(self) -> list[str]:
        """Part names of all segments."""
        return [name for segment in self.segments for name in segment]


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
                f"run memory-builder index {root} --modality {keys}"
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
    with reading(store, path):
        fields = json.loads(data)
        check_format(store, fields)
        fields["indexes"] = {keys: IndexView(**view) for keys, view in fields["indexes"].items()}
        return Snapshot(**fields)


def read_tuning(store: Store, view: IndexView) -> dict[str, Any]:
    """What was measured of an index: settings, recall, curves (``tuning.json``).

    Raises:
        CorruptMemoryError: it is missing or damaged.
    """
    path = f"{view.index}/{view.tuning}"
    tuning = store.read_json(path, fix=BUILD_AGAIN)
    if tuning is None:
        raise CorruptMemoryError(f"{store.root}/{path} is missing: {BUILD_AGAIN}")
    return tuning


def write_snapshot(store: Store, snapshot: Snapshot) -> None:
    """Make a state current; refused when another writer took the number."""
    try:
        store.create(f"snapshots/{snapshot.number}.json", json.dumps(asdict(snapshot), indent=1).encode())
    except FileExistsError:
        raise ConcurrentWriterError(
            f"{store.root}: another writer made snapshot {snapshot.number} meanwhile; run the command again"
        ) from None
