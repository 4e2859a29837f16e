"""Read the current state of a memory from its commit records: on any machine, also while a job runs."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory_builder.ann.parts import part_record
from memory_builder.base.types import Ids
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import read_description
from memory_builder.catalog.failures import failed_ordinals
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.plan import read_plan
from memory_builder.catalog.snapshots import IndexView, read_snapshot, read_tuning
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.embedding.retry_rejects import latest_reasons
from memory_builder.errors import BUILD_AGAIN, CorruptMemoryError
from memory_builder.indexing.train import read_quantizer
from memory_builder.maintenance.verify import damaged_records
from memory_builder.storage.store import Store

RATE_OVER_SHARDS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Info:
    """State of a memory; ``info --json`` prints its fields."""

    rows: int
    shards: dict[str, int]
    """Number of shards that are done, partial (read until the input broke off), failed or pending: all planned ones."""
    rejects: dict[str, int]
    """Reason → number of rejects."""
    notes: dict[str, int]
    """Note of the commit records → number of rows or shards."""
    deleted: int
    """Number of these rows that are deleted."""
    indexes: dict[str, dict[str, Any]]
    """Modality → index key, rows (also of each segment), deleted rows still in its parts, bytes, and for each query
    modality the search parameters and measured recall."""
    input_bytes: int
    """Bytes of committed shards."""
    retries: int
    """Number of retried storage requests for the committed shards."""
    pairs_per_s: float | None
    """Pairs read each second over the latest shards."""
    time_left_s: float | None
    """Seconds left for the pending shards at this rate; None if nothing is pending or the rate is unknown."""
    model: str
    fingerprint: str
    d: int
    snapshot: int
    damaged: list[str]
    """Damaged records, with their substitutes; see ``verify``."""


def read_info(store: Store) -> Info:
    """Read the state of a memory.

    Raises:
        UsageError: no memory exists in ``store``.
    """
    description = read_description(store)
    plan = read_plan(store)
    commits = Manifest.read(store).commits
    planned = {shard.ordinal for shard in plan}
    failed = failed_ordinals(store, commits) & planned
    snapshot = read_snapshot(store)
    deleted = current_tombstones(store, snapshot)
    rejects = latest_reasons(commits.values())
    partial = sum(commit.partial is not None for commit in commits.values())
    pending = len(planned - commits.keys() - failed)
    rate = pairs_per_second(list(commits.values()))
    return Info(
        rows=sum(commit.n_written for commit in commits.values()),
        shards={"done": len(commits) - partial, "partial": partial, "failed": len(failed), "pending": pending},
        rejects=dict(rejects.most_common()),
        notes=dict(sum((Counter(commit.notes) for commit in commits.values()), Counter()).most_common()),
        deleted=len(deleted),
        indexes={modality: _index_info(store, view, deleted) for modality, view in snapshot.indexes.items()},
        input_bytes=sum(shard.bytes for shard in plan if shard.ordinal in commits),
        retries=sum(commit.retries for commit in commits.values()),
        pairs_per_s=rate,
        time_left_s=_time_left(list(commits.values()), pending, rate),
        model=description.model,
        fingerprint=description.fingerprint,
        d=description.d,
        snapshot=snapshot.number,
        damaged=[f"{problem.file}: {problem.problem}" for problem in damaged_records(store)],
    )


def pairs_per_second(commits: Sequence[Commit]) -> float | None:
    """Pairs read each second over the latest shards, by all workers together."""
    latest = sorted(commits, key=lambda commit: commit.finished_s)[-RATE_OVER_SHARDS:]
    if not latest:
        return None
    began = latest[0].finished_s - latest[0].seconds.get("total", 0.0)
    seconds = latest[-1].finished_s - began
    return sum(commit.n_read for commit in latest) / seconds if seconds > 0 else None


def _time_left(commits: Sequence[Commit], pending: int, rate: float | None) -> float | None:
    if not pending or not rate:
        return None
    pairs = pending * sum(commit.n_read for commit in commits) / len(commits)
    return math.ceil(pairs / rate)


def _index_info(store: Store, view: IndexView, deleted: Ids) -> dict[str, Any]:
    tuning, quantizer = read_tuning(store, view), read_quantizer(store, view.index)
    if quantizer is None:
        raise CorruptMemoryError(f"{store.root}/{view.index}/trained.json is missing", BUILD_AGAIN)
    segments = [[part_record(store, view.index, name) for name in segment] for segment in view.segments]
    parts = [part for segment in segments for part in segment]
    return {
        "index_key": quantizer.index_key,
        "rows": view.n_rows,
        "bytes": sum(part.bytes for part in parts),
        "parts": len(parts),
        "segments": [sum(part.n_rows for part in segment) for segment in segments],
        "deleted": sum(part.n_dead(deleted) for part in parts),
        "queries": tuning["sides"],
    }
