"""Damaged files of shards made again from their sources: the same input and configuration give the same bytes.

A shard is embedded into this process's memory, and what comes of it is compared with the checksums of its commit
record. Only then are the files put that were damaged or missing; everything else stays as it is.
"""

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from memory_builder.describe import EmbedConfig
from memory_builder.embed import EmbedTask
from memory_builder.encoder import EncoderConfig
from memory_builder.errors import CorruptMemoryError
from memory_builder.manifest import Commit, Description, Manifest, commit_path, read_description, rejects_path
from memory_builder.named import encoder_of
from memory_builder.plan import Shard, read_plan
from memory_builder.purge import read_purge
from memory_builder.runner import Runner
from memory_builder.storage import Store
from memory_builder.uris import split_uri
from memory_builder.verify import Problem, read_records, verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """What came of a repair."""

    files: list[str]
    """Made again; each is what its record says."""
    problems: list[Problem]
    """What remains, with why."""


def repair(store: Store, runner: Runner, *, encoder: EncoderConfig | None = None) -> Repaired:
    """Verify a memory and put right what can be made again from the sources; nothing is ever deleted.

    Args:
        store: where the memory lies.
        runner: where the shards are read, and embedded, again.
        encoder: where to find the memory's model, if not where it was.

    Raises:
        UsageError: there is no memory here.
        EncoderError: the model cannot be loaded, or is another one.
    """
    problems = verify(store, runner)
    try:
        records = _restore_records(store, problems)
        commits, _ = read_records(store)
    except CorruptMemoryError:  # verify said so
        return Repaired(files=[], problems=problems)
    damaged: dict[int, list[str]] = {}
    for problem in problems:
        if problem.shard in commits and problem.file in commits[problem.shard].checksums:
            damaged.setdefault(problem.shard, []).append(problem.file)
    if not records and not damaged:
        return Repaired(files=[], problems=problems)
    task = RepairTask(
        memory=store,
        embed=_as_embedded(store, read_description(store), encoder),
        damaged=damaged,
    )
    reasons: dict[str, str] = {}
    for (commit, _), result in runner.run(task, [(commits[i], _planned(store, commits[i])) for i in damaged]):
        if isinstance(result, Exception):
            reasons |= dict.fromkeys(damaged[commit.ordinal], f"{type(result).__name__}: {result}")
    remaining = [_with_reason(problem, reasons) for problem in verify(store, runner)]
    left = {problem.file for problem in remaining}
    files = [*records, *(file for files in damaged.values() for file in files)]
    return Repaired(files=sorted(file for file in files if file not in left), problems=remaining)


def _with_reason(problem: Problem, reasons: dict[str, str]) -> Problem:
    reason = reasons.get(problem.file)
    return replace(problem, problem=f"{problem.problem}; not repaired: {reason}") if reason else problem


def _restore_records(store: Store, problems: Sequence[Problem]) -> list[str]:
    """Write damaged commit records again as manifest.parquet has them; those that can be read are left alone."""
    folded = Manifest.read_folded(store).commits
    wanted = {commit_path(ordinal): commit for ordinal, commit in folded.items()}
    restored = []
    for path in {problem.file for problem in problems} & wanted.keys():
        try:
            Commit.from_json(store.read(path))
        except (FileNotFoundError, ValueError, TypeError, LookupError):
            store.put(path, wanted[path].to_json())
            restored.append(path)
    return restored


def _planned(store: Store, commit: Commit) -> Shard:
    """The shard as it was when it was committed; a plan that knows nothing of it does not matter."""
    size = {shard.ordinal: shard.bytes for shard in read_plan(store)}.get(commit.ordinal, 0)
    return Shard(ordinal=commit.ordinal, uri=commit.uri, etag=commit.etag, bytes=size)


def _as_embedded(store: Store, description: Description, encoder: EncoderConfig | None) -> EmbedTask:
    """The task that wrote this memory, from what memory.json says of it."""
    if encoder is None and description.fingerprint:  # without one, all its vectors were imported
        encoder = encoder_of(description, store.root)
    return EmbedTask(
        memory=store,
        encoder=encoder and replace(encoder, **_settings(EncoderConfig, description.config)),
        config=EmbedConfig(**_settings(EmbedConfig, description.config)),
        description=description,
    )


def _settings(kind: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a memory that are fields of this dataclass; what is newer than the memory has its default."""
    names = {field.name for field in fields(kind)} & config.keys() - {"model", "pretrained"}
    known = {name: config[name] for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairTask:
    """A worker with the memory's model loaded."""

    memory: Store | str
    embed: EmbedTask
    damaged: dict[int, list[str]]
    """Files to put again, by the ordinal of their shard."""
    wants_gpu: bool = True

    def start(self) -> Callable[[tuple[Commit, Shard]], list[str]]:
        scratch = Store(f"memory://repair-{uuid.uuid4().hex}")  # no file: gone with this process
        return partial(
            repair_shard,
            store=Store(self.memory),
            scratch=scratch,
            embed=replace(self.embed, memory=scratch.root).start(),
            damaged=self.damaged,
        )


def repair_shard(
    item: tuple[Commit, Shard],
    *,
    store: Store,
    scratch: Store,
    embed: Callable[[Shard], Commit],
    damaged: dict[int, list[str]],
) -> list[str]:
    """Embed one shard anew and put its damaged files.

    Returns:
        The paths put.

    Raises:
        SourceError: the source is gone, or is not what it was when it was committed.
        CorruptMemoryError: what comes of it is not what the commit record says, or rows of it were purged; nothing
            was changed.
    """
    commit, shard = item
    purge = read_purge(store, shard.ordinal)
    if purge is not None and not purge.checksums.keys().isdisjoint(damaged[shard.ordinal]):
        raise CorruptMemoryError(f"rows of {shard.uri} were purged, and embedding it anew would bring them back")
    retried = split_uri(shard.uri)[1].rejects
    if retried is not None:  # the pairs of such a shard are those that another one rejected
        rejects = rejects_path(retried)
        scratch.put(rejects, store.read(rejects))
    try:
        made = embed(shard).checksums
        differing = sorted(path for path, digest in commit.checksums.items() if made.get(path) != digest)
        if differing:
            raise CorruptMemoryError(
                f"{shard.uri} embedded anew gives other bytes than its commit record says ({', '.join(differing)}): "
                "another kind of machine, other versions of the libraries, or a damaged record"
            )
        for path in damaged[shard.ordinal]:
            store.put(path, scratch.read(path))
    finally:  # only its own: a worker may be at another shard meanwhile
        for path in (*commit.checksums, commit_path(shard.ordinal)):
            with suppress(FileNotFoundError):
                scratch.remove(path)
    return damaged[shard.ordinal]
