"""Compact a memory: refill parts without deleted rows, merge small parts, remove unused files.

New parts equal a first filling with the remaining rows. Readers of earlier snapshots can go on: their files stay until
two later snapshots exist and ten minutes have passed.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_builder.ann.parts import PART_ROWS, FillTask, PartRecord, fill, part_of, read_quantizer_hash, records_of
from memory_builder.base.log import logger
from memory_builder.base.runner import Runner
from memory_builder.base.types import Ids, Modality
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import are_rows
from memory_builder.catalog.snapshots import (
    TOMBSTONES,
    IndexView,
    Snapshot,
    read_numbered_snapshot,
    read_snapshot,
    snapshot_numbers,
)
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.catalog.update_snapshot import LOCK, update_snapshot
from memory_builder.errors import REPAIR, ConcurrentWriterError, CorruptMemoryError
from memory_builder.export.faiss_ondisk import remove_merged
from memory_builder.maintenance.purge import purge_rows
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.records import is_index_folder, is_part_file
from memory_builder.storage.store import Store

KEEP_S = 600
"""Seconds that a snapshot's files stay after the next one: a reader may have opened it without reading its files."""
STATES_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
    """Parts of one index, and the parts that replace them."""

    index: str
    old: frozenset[str]
    new: tuple[PartRecord, ...]


def compact(store: Store, *, runner: Runner, purge: bool = False, part_rows: int = PART_ROWS) -> Snapshot:
    """Refill parts without deleted rows, and merge small parts into larger ones of about ``part_rows`` rows.

    Args:
        store: storage of the memory.
        runner: fills the parts.
        purge: also blank the vectors, captions and URLs of deleted rows in their files, and remove at once every file
            that holds one of them: earlier snapshots can then no longer be searched.
        part_rows: approximate number of rows in a part.

    Raises:
        ConcurrentWriterError: the index was rebuilt meanwhile, or other writers kept winning the race.
    """
    store.sweep()
    start = read_snapshot(store)
    deleted = current_tombstones(store, start)
    logger.info(f"compact: {store.root}, {len(deleted):,} deleted rows")
    manifest = Manifest.read(store)
    if not are_rows(deleted, manifest.commits).all():
        raise CorruptMemoryError(f"{store.root}/{start.tombstones} names rows that the memory does not have", REPAIR)
    manifest.fold(store)  # workers read the folded records
    rewrites: dict[Modality, Rewrite] = {}
    for modality in start.modalities:
        rewrites[modality] = _rewrite(store, start, modality, deleted, runner, part_rows)

    def compacted(before: Snapshot) -> Snapshot:
        indexes = dict(before.indexes)
        for modality, rewrite in rewrites.items():
            if rewrite.old:
                indexes[modality] = _replaced(store, before.indexes.get(modality), rewrite)
        return replace(before, number=before.number + 1, indexes=indexes) if indexes != before.indexes else before

    after = update_snapshot(store, compacted)
    if purge:
        purge_rows(store, deleted, runner)
        folders = [f"index/{name}" for name in store.list("index", "directory") if is_index_folder(name)]
        remove_unused(store, keep_s=0, states_kept=1, folders=folders)
        remove_merged(store, folders)
    else:
        remove_unused(store)
    return after


def _rewrite(
    store: Store, snapshot: Snapshot, modality: Modality, deleted: Ids, runner: Runner, part_rows: int
) -> Rewrite:
    view = snapshot.indexes[modality]
    groups = [
        group
        for group in _groups(records_of(store, view), deleted, part_rows)
        if len(group) > 1 or group[0].n_dead(deleted)
    ]
    task = FillTask(
        memory=store,
        folder=view.index,
        modality=modality,
        quantizer_sha256=read_quantizer_hash(store, view.index),
        deleted_as_of=snapshot,
    )
    ordinals = [sorted(ordinal for record in group for ordinal in record.ordinals) for group in groups]
    parts = [part_of(group, salt=f"compact {snapshot.tombstones}") for group in ordinals]
    records = fill(task, parts, runner, f"compact {modality}: filled") if parts else []
    old = frozenset(record.name for group in groups for record in group)
    return Rewrite(index=view.index, old=old, new=tuple(records))


def _groups(records: list[PartRecord], deleted: Ids, part_rows: int) -> list[list[PartRecord]]:
    """Group parts to merge: small neighbours together, others alone."""
    groups: list[list[PartRecord]] = []
    room = 0
    for record in sorted(records, key=lambda record: record.ordinals):
        n_rows = max(0, record.n_rows - record.n_dead(deleted))
        is_small = 2 * n_rows <= part_rows
        if room and is_small and n_rows <= room:
            groups[-1].append(record)
            room -= n_rows
        else:
            groups.append([record])
            room = part_rows - n_rows if is_small else 0
    return groups


def _replaced(store: Store, view: IndexView | None, rewrite: Rewrite) -> IndexView:
    """Return an index with the new parts in place of the old ones."""
    names = set(view.parts) if view is not None else set()
    if view is None or view.index != rewrite.index or not rewrite.old <= names:
        raise ConcurrentWriterError(
            f"{store.root}/{rewrite.index}: another writer compacted or rebuilt it meanwhile; run compact again"
        )
    # rows appended while we were filling stay a segment of their own
    merged = [segment for segment in view.segments if rewrite.old & set(segment)]
    kept = [name for segment in merged for name in segment if name not in rewrite.old]
    others = [segment for segment in view.segments if segment not in merged]
    segments = [sorted([*kept, *(record.name for record in rewrite.new)]), *others]
    changed = replace(view, segments=segments)
    return replace(changed, n_rows=sum(record.n_rows for record in records_of(store, changed)))


def remove_unused(
    store: Store, *, keep_s: float = KEEP_S, states_kept: int = STATES_KEPT, folders: Sequence[str] | None = None
) -> list[str]:
    """Remove parts and tombstone files that neither the latest snapshots nor those of the last ``keep_s`` need.

    Searches the folders of the current indexes by default: an index in the making has no snapshot yet.
    """
    with hold_lock(store, LOCK) as held:
        try:
            kept = _kept_states(store, keep_s, states_kept)
        except CorruptMemoryError as error:
            logger.warning(f"{error.problem}, so the files that it needs are unknown and none is removed")
            return []
        views = [view for snapshot in kept for view in snapshot.indexes.values()]
        named = {f"{view.index}/parts/{name}" for view in views for name in view.parts}
        named |= {snapshot.tombstones.removesuffix(".npy") for snapshot in kept if snapshot.tombstones}
        if folders is None:
            folders = sorted({view.index for view in kept[0].indexes.values()}) if kept else []
        candidates = [f"{folder}/parts/{name}" for folder in folders for name in _part_files(store, folder)]
        # A later number belongs to a writer that is about to write the next snapshot.
        numbers = [name for name in store.list(TOMBSTONES) if re.fullmatch(r"[0-9]{1,18}\.npy", name)]
        candidates += [
            f"{TOMBSTONES}/{name}" for name in numbers if kept and int(name.removesuffix(".npy")) <= kept[0].number
        ]
        unused = [path for path in candidates if path.rsplit(".", 1)[0] not in named]
        held.check()
        for path in sorted(unused, key=lambda path: not path.endswith(".json")):  # the record first
            store.remove(path)
    return unused


def _part_files(store: Store, folder: str) -> list[str]:
    """File names of parts in an index's folder; files with other names are never removed."""
    return [name for name in store.list(f"{folder}/parts") if is_part_file(name)]


def _kept_states(store: Store, keep_s: float, states_kept: int) -> list[Snapshot]:
    """Snapshots to keep, latest first: the last ``states_kept``, and those that were current within ``keep_s``."""
    kept: list[Snapshot] = []
    for number in reversed(snapshot_numbers(store)):
        if len(kept) >= states_kept and time.time() - kept[-1].written_s >= keep_s:
            break
        kept.append(read_numbered_snapshot(store, number))
    return kept
