"""Append newly committed shards to the indexes of a memory.

A change writes its files first and then one snapshot, so that it is visible at once and complete. A writer whose
snapshot number is taken starts again from the newer snapshot. After a kill, the same command resumes.
"""

from collections.abc import Sequence
from dataclasses import replace

from memory_builder.ann.parts import PART_ROWS, FillTask, fill, plan_parts, read_quantizer_hash, records_of
from memory_builder.base.log import logger
from memory_builder.base.runner import Runner
from memory_builder.base.types import Modality
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.snapshots import IndexView, Snapshot, read_snapshot
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.catalog.update_snapshot import update_snapshot
from memory_builder.errors import IndexBuildError
from memory_builder.indexing.drift import warn_of_drift
from memory_builder.storage.store import Store


def append(store: Store, *, runner: Runner, modalities: Sequence[Modality] = ()) -> Snapshot:
    """Add the rows of shards committed since to the indexes, with their existing quantizers.

    Args:
        store: storage of the memory.
        runner: fills the parts.
        modalities: modalities of the indexes to extend (default: all).

    Raises:
        IndexBuildError: the memory has no index.
        ConcurrentWriterError: other writers kept winning the race for a snapshot.
    """
    store.sweep()
    manifest = Manifest.read(store)
    manifest.fold(store)
    version = Manifest.read_folded(store).version
    start = read_snapshot(store)
    modalities = tuple(modalities) or start.modalities
    logger.info(f"append: {store.root}, {manifest.n_rows:,} rows in {len(manifest.commits):,} shards")
    new: dict[Modality, list[Commit]] = {}

    def appended(before: Snapshot) -> Snapshot:
        indexes = dict(before.indexes)
        for modality in modalities:
            view = before.view(modality, store.root)
            new[modality] = _uncovered(store, view, manifest.commits)
            indexes[modality] = _with_segment(store, view, modality, new[modality], runner, start)
        if indexes == before.indexes:
            return before
        return replace(before, number=before.number + 1, manifest_version=version, indexes=indexes)

    if not modalities:
        raise IndexBuildError(f"{store.root} has no index to append to: run memory-builder index {store.root}")
    after = update_snapshot(store, appended)
    for modality, commits in new.items():
        warn_of_drift(store, after.indexes[modality].index, modality, commits, current_tombstones(store, after))
    return after


def _uncovered(store: Store, view: IndexView, commits: dict[int, Commit]) -> list[Commit]:
    """Committed shards that are in no part of this index."""
    covered = {ordinal for record in records_of(store, view) for ordinal in record.ordinals}
    return [commit for ordinal, commit in commits.items() if ordinal not in covered]


def _with_segment(
    store: Store,
    view: IndexView,
    modality: Modality,
    commits: Sequence[Commit],
    runner: Runner,
    deleted_as_of: Snapshot,
) -> IndexView:
    if not commits:
        return view
    task = FillTask(
        memory=store,
        folder=view.index,
        modality=modality,
        quantizer_sha256=read_quantizer_hash(store, view.index),
        deleted_as_of=deleted_as_of,
    )
    salt = f"append {deleted_as_of.tombstones}" if deleted_as_of.tombstones else "append"
    records = fill(task, plan_parts(commits, modality, PART_ROWS, salt=salt), runner, f"append {modality}: filled")
    n_rows = view.n_rows + sum(record.n_rows for record in records)
    return replace(view, segments=[*view.segments, [record.name for record in records]], n_rows=n_rows)
