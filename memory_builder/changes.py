"""Changes of a memory that has an index: append what was committed since, delete rows.

A change writes its files first and then one snapshot: it is there at one moment, whole. A writer that finds its
number taken starts from the newer state. Killed at any moment, the same command does what is left to do.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from memory_builder.arguments import several
from memory_builder.drift import warn_of_drift
from memory_builder.errors import ConcurrentWriterError, CorruptMemoryError, IndexBuildError, UsageError
from memory_builder.locks import turn
from memory_builder.manifest import Commit, Manifest, read_description
from memory_builder.parts import FillTask, PartRecord, fill, part_record, plan_parts, read_quantizer_hash
from memory_builder.progress import say
from memory_builder.rows import Ids, Keys, Rows
from memory_builder.runner import Runner
from memory_builder.snapshots import IndexView, Snapshot, read_current, read_snapshot, write_snapshot
from memory_builder.storage import Store
from memory_builder.tombstones import check_ids, current_tombstones, some, write_tombstones

PART_ROWS = 1_000_000
"""Rows in a part, about."""
ATTEMPTS = 20
LOCK = "snapshots.lock"
"""Held while a state becomes current, and while files that no state needs are removed: never both at once."""


def append(store: Store, *, runner: Runner, keys: Sequence[Keys] = ()) -> Snapshot:
    """Put the rows of shards that were committed since into the indexes, on the quantizers that are there.

    Args:
        store: the memory.
        runner: where the parts are filled.
        keys: key modalities; those that have an index unless given.

    Raises:
        IndexBuildError: there is no index to append to.
        ConcurrentWriterError: other writers were always faster.
    """
    store.sweep()
    manifest = Manifest.read(store)
    manifest.fold(store)
    version = Manifest.read_folded(store).version
    start = read_snapshot(store)
    asked = tuple(keys) or start.modalities
    say(f"append: {store.root}, {manifest.n_rows:,} rows in {len(manifest.commits):,} shards")
    new: dict[Keys, list[Commit]] = {}

    def appended(before: Snapshot) -> Snapshot:
        indexes = dict(before.indexes)
        for modality in asked:
            view = before.view(modality, store.root)
            new[modality] = _uncovered(store, view, manifest.commits)
            indexes[modality] = _with_segment(store, view, modality, new[modality], runner, start)
        if indexes == before.indexes:
            return before
        return replace(before, number=before.number + 1, manifest_version=version, indexes=indexes)

    if not asked:
        raise IndexBuildError(f"{store.root} has no index to append to: run memory-builder index {store.root}")
    after = settle(store, appended)
    for modality, commits in new.items():
        warn_of_drift(store, after.indexes[modality].index, modality, commits, current_tombstones(store, after))
    return after


def delete(
    store: Store,
    *,
    ids: npt.ArrayLike | None = None,
    keys: str | Sequence[str] | None = None,
    where: str | None = None,
) -> Snapshot:
    """Delete rows, named in one of three ways: no search finds them from the next opening on.

    Args:
        store: the memory.
        ids: row ids, i64[n].
        keys: keys of pairs, or one; every row that has one of them, in any shard.
        where: a filter, as for search.

    Raises:
        UsageError: none or several ways, a row that is not in the memory, a filter that cannot be, nothing that fits.
        ConcurrentWriterError: other writers were always faster.
    """
    if sum(given is not None for given in (ids, keys, where)) != 1:
        raise UsageError("give exactly one of ids, keys and where")
    store.sweep()
    say(f"delete: {store.root}")
    description = read_description(store)
    commits = Manifest.read(store).commits
    if ids is not None:
        chosen = check_ids(ids, commits, store.root)
    else:
        chosen = _rows_named(Rows(store, commits, description.d), () if keys is None else several(keys), where)
    if not len(chosen):
        raise UsageError(f"nothing to delete: no row of {store.root} is named by that")

    def deleted(before: Snapshot) -> Snapshot:
        gone = current_tombstones(store, before)
        together = np.union1d(gone, chosen)
        if len(together) == len(gone):
            return before
        path, digest = write_tombstones(store, together)
        return replace(before, number=before.number + 1, tombstones=path, tombstones_sha256=digest)

    return settle(store, deleted)


def _rows_named(rows: Rows, keys: Sequence[str], where: str | None) -> Ids:
    if where is not None:
        from memory_builder.where import matching_rows  # its parser takes a while to import

        return matching_rows(rows, where).ids()
    found, unknown = rows.with_keys(list(keys))
    if unknown and len(found):
        say(f"warning: {len(unknown):,} keys are in no shard: {some(unknown)}")
    return np.unique(found)


def settle(store: Store, change: Callable[[Snapshot], Snapshot]) -> Snapshot:
    """Apply a change to the current state until it is the next one; a change that returns its argument is none."""
    for _ in range(ATTEMPTS):
        before, is_whole = read_current(store)
        after = change(before)
        if after is before:
            if is_whole:
                return before
            after = replace(before, number=before.number + 1)  # the damaged file is behind us then
        try:
            return publish(store, after)
        except ConcurrentWriterError as error:
            refused = error
    raise refused


def publish(store: Store, snapshot: Snapshot) -> Snapshot:
    """Make a state current, if all it names is there.

    Raises:
        ConcurrentWriterError: another writer took the number, or removed a file meanwhile.
    """
    snapshot = replace(snapshot, written_s=time.time())
    with turn(store, LOCK) as held:
        for view in snapshot.indexes.values():
            there = set(store.list(f"{view.index}/parts"))
            missing = [name for name in view.parts if not {f"{name}.json", f"{name}.faiss"} <= there]
            if missing:
                raise ConcurrentWriterError(
                    f"{store.root}/{view.index}: another writer removed {some(missing)} meanwhile; run this again"
                )
        held.check()
        write_snapshot(store, snapshot)
    return snapshot


def records_of(store: Store, view: IndexView) -> list[PartRecord]:
    """The records of all parts of an index."""
    return [part_record(store, view.index, name) for names in view.segments for name in names]


def is_whole(store: Store, view: IndexView) -> bool:
    """Whether every part is there, as long as its record says."""
    try:
        return all(
            store.size(f"{view.index}/parts/{part.name}.faiss") == part.bytes for part in records_of(store, view)
        )
    except (CorruptMemoryError, FileNotFoundError):
        return False


def _uncovered(store: Store, view: IndexView, commits: dict[int, Commit]) -> list[Commit]:
    """Committed shards that no part of this index holds."""
    covered = {ordinal for record in records_of(store, view) for ordinal in record.ordinals}
    return [commit for ordinal, commit in commits.items() if ordinal not in covered]


def _with_segment(
    store: Store,
    view: IndexView,
    keys: Keys,
    commits: Sequence[Commit],
    runner: Runner,
    leaving_out: Snapshot,
) -> IndexView:
    if not commits:
        return view
    task = FillTask(
        memory=store,
        folder=view.index,
        keys=keys,
        quantizer_sha256=read_quantizer_hash(store, view.index),
        leaving_out=leaving_out,
    )
    salt = f"append {leaving_out.tombstones}" if leaving_out.tombstones else "append"
    records = fill(task, plan_parts(commits, keys, PART_ROWS, salt=salt), runner, f"append {keys}: filled")
    n_rows = view.n_rows + sum(record.n_rows for record in records)
    return replace(view, segments=[*view.segments, [record.name for record in records]], n_rows=n_rows)
