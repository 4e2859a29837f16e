"""Repair records of a memory from others with the same content; what no other record holds is listed as lost."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow.compute as pc

from memory_builder.base.types import Ids, row_ids
from memory_builder.catalog.commits import MANIFEST, Commit, read_commit, record_names
from memory_builder.catalog.description import DESCRIPTION, EMBED_AGAIN, described_by_manifest, read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.paths import commit_path
from memory_builder.catalog.plan import PLAN, derived_plan, put_plan
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import (
    Snapshot,
    describe_recovered,
    read_current,
    recovered_snapshot,
    snapshot_numbers,
    write_snapshot,
)
from memory_builder.catalog.tombstones import check_ids, current_tombstones, read_tombstones, write_tombstones
from memory_builder.catalog.update_snapshot import LOCK
from memory_builder.errors import CorruptMemoryError, UsageError
from memory_builder.maintenance.purge import FOLDER as PURGES
from memory_builder.maintenance.verify import Problem, folded_commits, sound_snapshots, verify_shard
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Repairs:
    """Result of repairing files."""

    files: list[str] = field(default_factory=list)
    """Repaired files."""
    lost: list[str] = field(default_factory=list)
    """Information that they have lost, with the fix."""
    reasons: dict[str, str] = field(default_factory=dict)
    """File → reason why it is still damaged, with the fix."""


def repair_records(store: Store, problems: list[Problem]) -> Repairs:
    """Rewrite records that can be derived: memory.json, commit records, manifest, plan, snapshots, tombstones."""
    repairs, damaged = Repairs(), {problem.file for problem in problems}
    if DESCRIPTION in damaged:
        _repair_description(store, repairs)
    _repair_commits(store, damaged, repairs)
    if MANIFEST in damaged or _differs(store):
        _try(repairs, MANIFEST, lambda: Manifest.rewrite(store))
    if PLAN in damaged:
        _try(repairs, PLAN, lambda: _repair_plan(store, repairs))
    for number in snapshot_numbers(store):
        if f"snapshots/{number}.json" in damaged:
            _repair_snapshot(store, number, repairs)
    _repair_tombstones(store, repairs)
    return repairs


def _try(repairs: Repairs, file: str, write: Callable[[], None]) -> None:
    try:
        write()
    except CorruptMemoryError as error:  # its source records are damaged too
        repairs.reasons[file] = error.problem
    else:
        repairs.files.append(file)


def _repair_description(store: Store, repairs: Repairs) -> None:
    copy = described_by_manifest(store)
    if copy is None:
        repairs.reasons[DESCRIPTION] = EMBED_AGAIN
    else:
        store.put(DESCRIPTION, copy.to_json())
        repairs.files.append(DESCRIPTION)


def _repair_commits(store: Store, damaged: set[str], repairs: Repairs) -> None:
    """Restore commit records from ``manifest.parquet`` if they are unreadable or do not match the files."""
    folded = {commit_path(ordinal): commit for ordinal, commit in folded_commits(store).items()}
    for path in sorted(damaged & folded.keys()):
        try:
            committed = read_commit(store, folded[path].ordinal)
        except CorruptMemoryError:
            committed = None
        if committed is None or (_fits(store, folded[path]) and not _fits(store, committed)):
            store.put(path, folded[path].to_json())
            repairs.files.append(path)


def _fits(store: Store, commit: Commit) -> bool:
    return not verify_shard(commit, store=store)


def _differs(store: Store) -> bool:
    """Whether the folded commits differ from the commit records, which are authoritative."""
    folded = folded_commits(store)
    with suppress(CorruptMemoryError):
        return any(read_commit(store, ordinal) not in (None, commit) for ordinal, commit in folded.items())
    return False


def _repair_plan(store: Store, repairs: Repairs) -> None:
    with hold_lock(store, "plan.lock") as held:
        plan = derived_plan(store)
        held.check()
        put_plan(store, plan)
    repairs.lost.append(
        f"{PLAN}: which shards were planned and not yet worked at, and the sizes of all sources; "
        "the next embed of the same sources plans them again"
    )


def _repair_snapshot(store: Store, number: int, repairs: Repairs) -> None:
    path = f"snapshots/{number}.json"
    with hold_lock(store, LOCK) as held:
        recovered = recovered_snapshot(store, number)
        held.check()
        store.put(path, recovered.to_json())
    repairs.files.append(path)
    if number == snapshot_numbers(store)[-1]:
        repairs.lost.append(f"{path}: {describe_recovered(recovered)}")


def _repair_tombstones(store: Store, repairs: Repairs) -> None:
    """Write a snapshot with the deleted rows that are still known, if the tombstone file is damaged."""
    snapshot, _ = read_current(store)
    try:
        commits = Manifest.read(store).commits
        if _is_sound(store, snapshot, commits):
            return
        path, known = _newest_sound(store, commits)
        purged = _purged_rows(store, commits)
    except CorruptMemoryError as error:
        repairs.reasons[snapshot.tombstones or ""] = error.problem
        return
    deleted = np.union1d(known, purged)
    written: tuple[str | None, str | None] = write_tombstones(store, deleted) if len(deleted) else (None, None)
    with hold_lock(store, LOCK) as held:
        after = replace(snapshot, number=snapshot.number + 1, tombstones=written[0], tombstones_sha256=written[1])
        held.check()
        write_snapshot(store, after)
    repairs.files.append(snapshot.tombstones or "")
    repairs.lost.append(
        f"{snapshot.tombstones}: which rows were deleted after {path or 'the beginning'}, except those that were "
        f"purged; they can be found again until they are deleted again. {len(deleted):,} rows are deleted now"
    )


def _is_sound(store: Store, snapshot: Snapshot, commits: dict[int, Commit]) -> bool:
    try:
        check_ids(current_tombstones(store, snapshot), commits, store.root)
    except (CorruptMemoryError, UsageError):
        return False
    return True


def _newest_sound(store: Store, commits: dict[int, Commit]) -> tuple[str | None, Ids]:
    """(file, deleted rows) of the newest snapshot with readable tombstones."""
    for snapshot in sound_snapshots(store):
        if _is_sound(store, snapshot, commits):
            return snapshot.tombstones, read_tombstones(store, snapshot.tombstones)
    return None, np.zeros(0, np.int64)


def _purged_rows(store: Store, commits: dict[int, Commit]) -> Ids:
    """i64[n] rows without picture and caption, which only a purge can make."""
    rows = Rows(store, commits, read_description(store).d)
    ids = [np.zeros(0, np.int64)]
    for name in record_names(store, PURGES):
        ordinal = int(name.removesuffix(".json"))
        if ordinal in commits:
            table = rows.shard_metadata(ordinal, ["has_image", "has_text"])
            blank = pc.invert(pc.or_(table["has_image"], table["has_text"])).to_numpy()
            ids.append(row_ids(ordinal, np.flatnonzero(blank)))
    return np.concatenate(ids)
