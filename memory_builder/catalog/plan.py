"""The plan: all shards of a memory, committed or not, in order of their ordinals; it only grows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import pyarrow as pa

from memory_builder.base.log import logger, warn_once
from memory_builder.catalog.commits import Commit, record_names
from memory_builder.catalog.manifest import Manifest
from memory_builder.errors import CorruptMemoryError
from memory_builder.readers.shard import MAX_ORDINAL, Shard, Source
from memory_builder.readers.shard_uri import join_uri, split_uri
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.records import Ordinal, Seconds, decode_table, read_sound_record, reading, strict_record
from memory_builder.storage.store import Store

PLAN = "plan.parquet"
REPLACED = "pairs changed since they were embedded and replace their earlier rows"
"""Note of a shard that was planned again because its source changed."""
REPLACED_ROWS = "pairs of a table without keys changed since they were embedded and replace their earlier rows"
"""The same note for pairs that are identified by their content."""
REPLACEMENTS = (REPLACED, REPLACED_ROWS)
PLAN_SCHEMA = pa.schema([("ordinal", pa.int64()), ("uri", pa.string()), ("bytes", pa.int64()), ("etag", pa.string())])


def read_plan(store: Store) -> list[Shard]:
    """Read all planned shards in order of their ordinals.

    If the plan is damaged or missing, it is derived from the commit and failure records: shards that were not started
    are missing then, and are planned again by the embed that names them.
    """
    try:
        plan = read_plan_strictly(store)
    except CorruptMemoryError as error:
        warn_once(
            f"{error.problem}; the plan is derived from the records of committed and failed shards, without sizes"
        )
        return derived_plan(store)
    return derived_plan(store) if plan is None else plan


def read_plan_strictly(store: Store) -> list[Shard] | None:
    """Read ``plan.parquet``; None if it is missing.

    Raises:
        CorruptMemoryError: the file is damaged.
    """
    where = f"{store.root}/{PLAN}"
    try:
        data = store.read(PLAN)
    except FileNotFoundError:
        return None
    table = decode_table(data, PLAN_SCHEMA, where=where, max_rows=MAX_ORDINAL)
    with reading(where):
        rows = table.to_pylist()
        if any(value is None for row in rows for value in row.values()):
            raise ValueError("a value is missing")
        ordinals = [row["ordinal"] for row in rows]
        if any(low >= high for low, high in pairwise([-1, *ordinals])) or any(n >= MAX_ORDINAL for n in ordinals):
            raise ValueError("the ordinals do not ascend")
        return [Shard(**row) for row in rows]


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """``failures/<ordinal>.json``: why a shard failed last time."""

    ordinal: Ordinal
    uri: str
    error: str
    failed_s: Seconds


def derived_plan(store: Store) -> list[Shard]:
    """Derive the plan from the readable commit and failure records."""
    shards = {
        commit.ordinal: Shard(ordinal=commit.ordinal, uri=commit.uri, etag=commit.etag, bytes=0)
        for commit in Manifest.read(store).commits.values()
    }
    for name in record_names(store, "failures"):
        failure = read_sound_record(store, f"failures/{name}", Failure)
        if failure is not None:
            shard = Shard(ordinal=failure.ordinal, uri=failure.uri, etag="", bytes=0)
            shards.setdefault(failure.ordinal, shard)
    return [shard for _, shard in sorted(shards.items())]


def put_plan(store: Store, plan: Sequence[Shard]) -> None:
    """Write the whole plan."""
    rows = [{name: getattr(shard, name) for name in PLAN_SCHEMA.names} for shard in plan]
    store.put(PLAN, parquet_bytes(pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)))


def extend_plan(store: Store, sources: Sequence[Source]) -> list[Shard]:
    """Append the sources that are not planned yet; return the whole plan.

    A source that changed since it was planned becomes a new shard if its old one is committed (committed rows
    never move), and replaces its entry if it is not. A lock lets one driver plan at a time.
    """
    plan = read_plan(store)
    if not _unplanned(store, plan, sources):
        return plan
    with hold_lock(store, "plan.lock") as held:
        plan = read_plan(store)
        committed = Manifest.read(store).commits
        plan, n_again = _extended(plan, _unplanned(store, plan, sources), committed)
        held.check()
        put_plan(store, plan)
    if n_again:
        logger.info(f"{n_again} sources changed since they were embedded: their new and changed pairs are embedded")
    return plan


def _unplanned(store: Store, plan: Sequence[Shard], sources: Sequence[Source]) -> list[Source]:
    """Select the sources whose current version has no entry. A source that returned to a planned version needs no entry
    unless some of its rows were replaced meanwhile."""
    newest = {shard.uri: shard for shard in plan}
    planned = {(shard.uri, shard.etag) for shard in plan}
    fresh = [source for source in sources if source.uri not in newest or newest[source.uri].etag != source.etag]
    again = {source.uri for source in fresh if (source.uri, source.etag) in planned}
    if again:
        commits = Manifest.read(store).commits.values()
        again -= {commit.uri for commit in commits if commit.notes.keys() & {*REPLACEMENTS}}
    return [source for source in fresh if source.uri not in again]


def _extended(
    plan: Sequence[Shard], sources: Sequence[Source], committed: dict[int, Commit]
) -> tuple[list[Shard], int]:
    """Return (the plan with these sources, number of sources planned again because their shard is committed).

    A new shard takes the lowest free ordinal: the next one, unless the plan was lost and derived in part.
    """
    by_ordinal = {shard.ordinal: shard for shard in plan}
    known = {shard.uri: shard for shard in plan}
    free = (ordinal for ordinal in count() if ordinal not in by_ordinal)
    n_again = 0
    for source in sources:
        old = known.get(source.uri)
        replaces = old is not None and old.ordinal not in committed
        ordinal = old.ordinal if old is not None and replaces else next(free)
        shard = Shard(ordinal=ordinal, uri=source.uri, bytes=source.bytes, etag=source.etag)
        by_ordinal[ordinal] = known[source.uri] = shard
        n_again += old is not None and not replaces
    return [shard for _, shard in sorted(by_ordinal.items())], n_again


def spelled_as_planned(plan: Sequence[Shard], sources: Sequence[Source]) -> list[Source]:
    """Rename each source to its planned name, which may differ by symbolic links."""
    planned = {shard.uri for shard in plan}
    if all(source.uri in planned for source in sources):
        return list(sources)
    names = {real_name(shard.uri): shard.uri for shard in plan}
    return [
        source if source.uri in planned else replace(source, uri=names.get(real_name(source.uri), source.uri))
        for source in sources
    ]


def real_name(uri: str) -> str:
    """Resolve the symbolic links in a local shard's name; a remote one's is returned as it is."""
    path, piece = split_uri(uri)
    return uri if "://" in path else join_uri(os.path.realpath(path), piece)
