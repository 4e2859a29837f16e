"""Repair a memory: records from other records, files of shards from their sources, indexes from vectors.

The same input and configuration give the same bytes. A shard is embedded into this process's memory and compared with
the checksums of its commit record. Only if they match are damaged or missing files written; all others stay unchanged.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

from memory_builder.base.runner import Runner
from memory_builder.base.stage import Stage
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import DESCRIPTION, EMBED_AGAIN, read_description
from memory_builder.catalog.metadata import LOOKUP_FIELDS
from memory_builder.catalog.paths import commit_path, lookup_path, metadata_path, rejects_path
from memory_builder.catalog.plan import read_plan
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.trusted_sources import encoder_of
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.embed_shard import EmbedTask
from memory_builder.embedding.import_shard import ImportTask
from memory_builder.embedding.known_pairs import with_earlier
from memory_builder.embedding.settings import settings_in
from memory_builder.errors import CorruptMemoryError
from memory_builder.maintenance.purge import Purge, read_purge
from memory_builder.maintenance.repair_index import repair_indexes
from memory_builder.maintenance.repair_records import Repairs, repair_records
from memory_builder.maintenance.verify import Problem, checksum_of, read_records, verify
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.shard import Shard
from memory_builder.readers.shard_uri import split_uri
from memory_builder.storage.formats import arrow_bytes
from memory_builder.storage.records import reading
from memory_builder.storage.store import Store, sha256


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """Result of a repair."""

    files: list[str]
    """Repaired files; each matches its record."""
    problems: list[Problem]
    """Remaining problems, with reason and fix."""
    lost: list[str] = field(default_factory=list)
    """Information that repaired files have lost, with the fix."""


def repair(store: Store, runner: Runner, *, encoder: EncoderConfig | None = None) -> Repaired:
    """Verify a memory, and repair the files that can be rebuilt; nothing is ever deleted.

    Args:
        store: storage of the memory.
        runner: reads and embeds the shards again.
        encoder: the memory's model at its current path, if it has moved.

    Raises:
        UsageError: no memory exists in ``store``.
        EncoderError: the model cannot be loaded, or has other weights.
    """
    problems = verify(store, runner)
    if not problems:
        return Repaired(files=[], problems=[])
    repairs = repair_records(store, problems)
    commits, _ = read_records(store)
    damaged: dict[int, list[str]] = {}
    for problem in problems:
        shard, file = problem.shard, problem.file
        is_lost = shard is not None and shard not in commits and file == commit_path(shard)
        if shard is not None and (is_lost or (shard in commits and file in commits[shard].checksums)):
            damaged.setdefault(shard, []).append(file)
    _derive_lookups(store, commits, damaged, repairs)
    if damaged:
        _embed_again(store, commits, damaged, runner, encoder, repairs)
    repair_indexes(store, problems, runner, repairs)
    remaining = [_with_reason(problem, repairs.reasons) for problem in verify(store, runner)]
    left = {problem.file for problem in remaining}
    return Repaired(files=sorted({*repairs.files} - left), problems=remaining, lost=repairs.lost)


def _embed_again(
    store: Store,
    commits: dict[int, Commit],
    damaged: dict[int, list[str]],
    runner: Runner,
    encoder: EncoderConfig | None,
    repairs: Repairs,
) -> None:
    """Rebuild damaged files of shards from their sources."""
    items: list[tuple[Commit | None, Shard]] = []
    for ordinal, files in damaged.items():
        shard = _planned(store, commits.get(ordinal), ordinal)
        if shard is None:
            lost = "its source is not known: remove the record and embed the source again, as a new shard"
            repairs.reasons.update(dict.fromkeys(files, lost))
        else:
            items += [(commits.get(ordinal), known) for known in with_earlier([shard], commits.values())]
    with _settings_errors_to(repairs, damaged):
        for (_, shard), result in _repaired(store, items, damaged, runner, encoder):
            if isinstance(result, Exception):
                reason = f"{type(result).__name__}: {result}"
                repairs.reasons.update(dict.fromkeys(damaged[shard.ordinal], reason))
            else:
                repairs.files.extend(result)


def _repaired(
    store: Store,
    items: Sequence[tuple[Commit | None, Shard]],
    damaged: dict[int, list[str]],
    runner: Runner,
    encoder: EncoderConfig | None,
) -> Iterator[tuple[tuple[Commit | None, Shard], list[str] | Exception]]:
    """Embed or import shards again with their first settings; yield each with the files written."""
    description = read_description(store)
    with reading(f"{store.root}/{DESCRIPTION}", EMBED_AGAIN):
        config = EmbedConfig(**settings_in(EmbedConfig, description.config))
    published = [item for item in items if split_uri(item[1].uri)[1].is_published]
    embedded = [item for item in items if item not in published]
    tasks: list[tuple[EmbedTask | ImportTask, list[tuple[Commit | None, Shard]]]] = []
    if published:
        tasks.append((ImportTask(memory=store, config=config, description=description), published))
    if embedded:
        encoder = encoder or encoder_of(description, store.root)
        with reading(f"{store.root}/{DESCRIPTION}", EMBED_AGAIN):
            encoder = replace(encoder, **settings_in(EncoderConfig, description.config))
        tasks.append((EmbedTask(memory=store, encoder=encoder, config=config, description=description), embedded))
    for task, group in tasks:
        repair_task = RepairTask(memory=store, task=task, damaged=damaged, wants_gpu=task.wants_gpu)
        yield from Stage(name="verify: repaired", task=repair_task, runner=runner).outcomes(group)


@contextmanager
def _settings_errors_to(repairs: Repairs, damaged: dict[int, list[str]]) -> Iterator[None]:
    """Record damaged settings of the memory as the reason why no shard was embedded."""
    try:
        yield
    except CorruptMemoryError as error:
        for files in damaged.values():
            repairs.reasons.update(dict.fromkeys(files, str(error)))


def _derive_lookups(store: Store, commits: dict[int, Commit], damaged: dict[int, list[str]], repairs: Repairs) -> None:
    """Rebuild damaged look-up files from the metadata, without the source."""
    for ordinal, files in list(damaged.items()):
        path = lookup_path(ordinal)
        if path not in files or ordinal not in commits:
            continue
        purge = _sound_purge(store, ordinal)
        checksums = commits[ordinal].checksums | (purge.checksums if purge else {})
        with suppress(CorruptMemoryError):
            rows = Rows(store, commits, read_description(store).d)
            data = arrow_bytes(rows.shard_metadata(ordinal, LOOKUP_FIELDS))
            if sha256(data) == checksums.get(path):
                store.put(path, data)
                repairs.files.append(path)
                files.remove(path)
        if not files:
            del damaged[ordinal]


def _sound_purge(store: Store, ordinal: int) -> Purge | None:
    with suppress(CorruptMemoryError):
        return read_purge(store, ordinal)
    return None


def _with_reason(problem: Problem, reasons: dict[str, str]) -> Problem:
    reason = reasons.get(problem.file)
    return replace(problem, problem=f"{problem.problem}; not repaired: {reason}") if reason else problem


def _planned(store: Store, commit: Commit | None, ordinal: int) -> Shard | None:
    """The shard as committed, or as planned if its commit record is lost; None if it is in neither."""
    planned = {shard.ordinal: shard for shard in read_plan_if_sound(store)}.get(ordinal)
    if commit is None:
        return planned
    return Shard(ordinal=ordinal, uri=commit.uri, etag=commit.etag, bytes=planned.bytes if planned else 0)


def read_plan_if_sound(store: Store) -> list[Shard]:
    """Read the plan; empty if it is damaged, since a commit record may be too."""
    with suppress(CorruptMemoryError):
        return read_plan(store)
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairTask:
    """Worker that loads the memory's model and repairs shards."""

    memory: Store | str
    task: EmbedTask | ImportTask
    """Task that wrote these shards."""
    damaged: dict[int, list[str]]
    """Shard ordinal → files to repair."""
    wants_gpu: bool = True

    def start(self) -> Callable[[tuple[Commit | None, Shard]], list[str]]:
        scratch = Store(f"memory://repair-{uuid.uuid4().hex}")  # in RAM, so it ends with this process
        return partial(
            repair_shard,
            store=Store(self.memory),
            scratch=scratch,
            make=replace(self.task, memory=scratch.root).start(),
            damaged=self.damaged,
        )


def repair_shard(
    item: tuple[Commit | None, Shard],
    *,
    store: Store,
    scratch: Store,
    make: Callable[[Shard], Commit],
    damaged: dict[int, list[str]],
) -> list[str]:
    """Embed one shard again and write its damaged files; without a commit record, all files that differ, and the
    record.

    Returns:
        Paths of the files written.

    Raises:
        SourceError: the source is missing, or has changed since the commit.
        CorruptMemoryError: the new bytes do not match the commit record, or rows were purged; nothing
            was changed.
    """
    commit, shard = item
    wanted = damaged[shard.ordinal]
    purge = read_purge(store, shard.ordinal)
    if purge is not None and (commit is None or not purge.checksums.keys().isdisjoint(wanted)):
        raise CorruptMemoryError(f"rows of {shard.uri} were purged, and embedding it again would restore them")
    needed = _needed(shard)
    for path in needed:
        scratch.put(path, store.read(path))
    made = make(shard)
    try:
        if commit is None:
            differing = [path for path, digest in made.checksums.items() if checksum_of(store, path) != digest]
            wanted = [*differing, commit_path(shard.ordinal)]
        else:
            _refuse_other_bytes(shard, commit, made)
        for path in wanted:
            store.put(path, scratch.read(path))
    finally:  # only its own: the worker may process another shard concurrently
        for path in (*made.checksums, commit_path(shard.ordinal), *needed):
            with suppress(FileNotFoundError):
                scratch.remove(path)
    return wanted


def _needed(shard: Shard) -> list[str]:
    """Files of other shards that decide which pairs of this one are embedded."""
    retried = split_uri(shard.uri)[1].rejects
    earlier = [path for ordinal in shard.earlier for path in (metadata_path(ordinal), commit_path(ordinal))]
    return earlier if retried is None else [*earlier, rejects_path(retried)]


def _refuse_other_bytes(shard: Shard, commit: Commit, made: Commit) -> None:
    differing = sorted(path for path, digest in commit.checksums.items() if made.checksums.get(path) != digest)
    if differing:
        raise CorruptMemoryError(
            f"{shard.uri} embedded again gives other bytes than its commit record ({', '.join(differing)}): "
            "another CPU or GPU, other library versions, or a damaged record"
        )
