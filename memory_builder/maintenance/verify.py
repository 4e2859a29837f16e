"""Verify a memory: all files that its records name exist, unchanged, and no others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from memory_builder.ann.parts import read_part_record
from memory_builder.base.runner import Runner, run_all
from memory_builder.catalog.commits import MANIFEST, Commit, read_commit, record_names
from memory_builder.catalog.description import DESCRIPTION, described_by_manifest, read_description_strictly
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.paths import commit_path
from memory_builder.catalog.plan import PLAN, read_plan, read_plan_strictly
from memory_builder.catalog.snapshots import (
    Snapshot,
    describe_recovered,
    read_current,
    read_numbered_snapshot,
    read_tuning,
    recovered_snapshot,
    snapshot_numbers,
)
from memory_builder.catalog.tombstones import check_ids, current_tombstones
from memory_builder.errors import CorruptMemoryError, UsageError
from memory_builder.indexing.train import Quantizer, read_held_out, read_quantizer
from memory_builder.maintenance.purge import FOLDER as PURGES
from memory_builder.maintenance.purge import read_purge
from memory_builder.storage.store import Store

SHARD_FOLDERS = ("img_emb", "text_emb", "metadata", "rows", "rejects")
INDEX_AGAIN = "run memory-builder index, which rebuilds it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A file that does not match its record."""

    shard: int | None
    """Ordinal of the shard; None for other files."""
    file: str
    problem: str


def verify(store: Store, runner: Runner) -> list[Problem]:
    """Recompute every checksum; list missing, changed and foreign files.

    Raises:
        UsageError: no memory exists in ``store``.
    """
    problems = damaged_records(store)
    commits, damaged_commits = read_records(store)
    problems += damaged_commits
    problems += _plan_problems(store, commits)
    for _, problems_of_shard in run_all(runner, VerifyTask(memory=store), list(commits.values())):
        problems += problems_of_shard
    problems += _foreign_files(store, commits)
    snapshot, _ = read_current(store)
    problems += _index_problems(store, snapshot, commits)
    problems += _tombstone_problems(store, snapshot, commits)
    return sorted(problems, key=lambda problem: (problem.file, problem.problem))


def damaged_records(store: Store) -> list[Problem]:
    """List damaged description, manifest, plan and snapshots with their substitutes; takes no time.

    Raises:
        UsageError: no memory exists in ``store``.
    """
    problems = []
    try:
        read_description_strictly(store, store.read(DESCRIPTION))
    except FileNotFoundError:
        if described_by_manifest(store) is None and not record_names(store, "commits"):
            raise UsageError(
                f"no memory at {store.root}: {DESCRIPTION} is missing (memory-builder embed makes one)"
            ) from None
        problems.append(_problem(DESCRIPTION, "missing"))
    except CorruptMemoryError as error:
        problems.append(_problem(DESCRIPTION, error.problem))
    for file, read in ((MANIFEST, Manifest.read_strictly), (PLAN, read_plan_strictly)):
        try:
            read(store)
        except CorruptMemoryError as error:
            problems.append(_problem(file, f"{error.problem}; the commit records are read instead"))
        else:
            if not store.exists(file) and record_names(store, "commits"):
                problems.append(_problem(file, "missing; the commit records are read instead"))
    for number in snapshot_numbers(store):
        try:
            read_numbered_snapshot(store, number)
        except CorruptMemoryError as error:
            stands_in = describe_recovered(recovered_snapshot(store, number))
            consequence = (
                stands_in if number == snapshot_numbers(store)[-1] else "an earlier state, which nothing needs"
            )
            problems.append(_problem(f"snapshots/{number}.json", f"{error.problem}; {consequence}"))
    return problems


def _problem(file: str, problem: str) -> Problem:
    return Problem(shard=None, file=file, problem=problem)


def read_records(store: Store) -> tuple[dict[int, Commit], list[Problem]]:
    """Read every commit record, and list differences from the folded manifest."""
    problems = []
    commits: dict[int, Commit] = {}
    for name in record_names(store, "commits"):
        ordinal = int(name.removesuffix(".json"))
        try:
            commit = read_commit(store, ordinal)
            if commit is not None:
                commits[ordinal] = commit
            else:
                problems.append(Problem(shard=ordinal, file=f"commits/{name}", problem="empty"))
        except CorruptMemoryError as error:
            problems.append(Problem(shard=ordinal, file=f"commits/{name}", problem=error.problem))
    folded = folded_commits(store)
    known = {problem.shard for problem in problems}
    for ordinal, commit in folded.items():
        if ordinal not in commits and ordinal not in known:
            problem = f"missing, though {MANIFEST} has it"
            problems.append(Problem(shard=ordinal, file=commit_path(ordinal), problem=problem))
        elif ordinal in commits and commits[ordinal] != commit:
            problem = f"differs from what {MANIFEST} has"
            problems.append(Problem(shard=ordinal, file=commit_path(ordinal), problem=problem))
        commits.setdefault(ordinal, commit)
    return dict(sorted(commits.items())), problems


def folded_commits(store: Store) -> dict[int, Commit]:
    """Read the commits in ``manifest.parquet``; empty if it is damaged."""
    try:
        return Manifest.read_strictly(store).commits
    except CorruptMemoryError:
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyTask:
    """Worker that reads the files of shards."""

    memory: Store | str
    wants_gpu: bool = False

    def start(self) -> Callable[[Commit], list[Problem]]:
        return partial(verify_shard, store=Store(self.memory))


def verify_shard(commit: Commit, *, store: Store) -> list[Problem]:
    """Compare the files of one shard with its commit record."""
    problems = []
    purged: dict[str, str] = {}
    try:
        purge = read_purge(store, commit.ordinal)
        purged = purge.checksums if purge else {}
    except CorruptMemoryError as error:
        return [_problem(f"{PURGES}/{commit_path(commit.ordinal).partition('/')[2]}", str(error))]
    for path, expected in (commit.checksums | purged).items():
        checksum = checksum_of(store, path)
        if checksum is None:
            problems.append(Problem(shard=commit.ordinal, file=path, problem="missing"))
        elif checksum != expected and path in purged:
            problem = f"checksum is {checksum[:12]}, its purge record says {expected[:12]}: run compact --purge again"
            problems.append(
                Problem(shard=None, file=path, problem=problem)
            )  # no shard, since its source would restore the rows
        elif checksum != expected:
            problem = f"checksum is {checksum[:12]}, its commit record says {expected[:12]}"
            problems.append(Problem(shard=commit.ordinal, file=path, problem=problem))
    return problems


def checksum_of(store: Store, path: str) -> str | None:
    """SHA-256 of a file; None if it is missing."""
    try:
        return store.checksum(path)
    except FileNotFoundError:
        return None


def _plan_problems(store: Store, commits: dict[int, Commit]) -> Iterator[Problem]:
    try:
        planned = {shard.ordinal: shard for shard in read_plan(store)}
    except CorruptMemoryError:  # the plan and a commit record are damaged, and both are listed already
        return
    try:
        config_hash = read_description_strictly(store, store.read(DESCRIPTION)).config_hash
    except (FileNotFoundError, CorruptMemoryError):  # listed already
        config_hash = None
    for commit in commits.values():
        file = commit_path(commit.ordinal)
        shard = planned.get(commit.ordinal)
        if shard is None or shard.uri != commit.uri:
            planned_uri = shard.uri if shard else "nothing"
            problem = f"commits {commit.uri}, the plan has {planned_uri} there"
            yield Problem(shard=commit.ordinal, file=file, problem=problem)
        if config_hash is not None and commit.config_hash != config_hash:
            problem = f"config is {commit.config_hash}, memory.json says {config_hash}"
            yield Problem(shard=commit.ordinal, file=file, problem=problem)


def _foreign_files(store: Store, commits: dict[int, Commit]) -> Iterator[Problem]:
    known = {path for commit in commits.values() for path in commit.checksums}
    for folder in SHARD_FOLDERS:
        for name in store.list(folder):
            if f"{folder}/{name}" not in known:
                problem = "no commit record names it: left by a killed run, which the next embed replaces, or foreign"
                yield _problem(f"{folder}/{name}", problem)


def _index_problems(store: Store, snapshot: Snapshot, commits: dict[int, Commit]) -> Iterator[Problem]:
    for view in snapshot.indexes.values():
        reads: dict[str, Callable[[], object]] = {
            "trained.json": lambda view=view: read_quantizer(store, view.index),  # type: ignore[misc]
            "index.json": lambda view=view: store.read_json(f"{view.index}/index.json"),  # type: ignore[misc]
            view.tuning: lambda view=view: read_tuning(store, view),  # type: ignore[misc]
            "held_out.npy": lambda view=view: read_held_out(store, view.index, commits),  # type: ignore[misc]
        }
        for name, read in reads.items():
            try:
                if read() is None:
                    yield _problem(f"{view.index}/{name}", "missing")
            except CorruptMemoryError as error:
                yield _problem(f"{view.index}/{name}", error.problem)
        yield from _quantizer_problems(store, view.index)
        for name in view.parts:
            yield from _part_problems(store, view.index, name)
        known = _parts_of_all_states(store, view.index)
        for name in store.list(f"{view.index}/parts"):
            if name not in known:
                problem = "no snapshot names it: left by a run that was killed or overtaken; compact removes it"
                yield _problem(f"{view.index}/parts/{name}", problem)


def _parts_of_all_states(store: Store, folder: str) -> set[str]:
    """File names of an index's parts in any snapshot: an earlier one may still be open."""
    views = [view for snapshot in sound_snapshots(store) for view in snapshot.indexes.values() if view.index == folder]
    return {f"{name}.{suffix}" for view in views for name in view.parts for suffix in ("faiss", "json")}


def sound_snapshots(store: Store) -> Iterator[Snapshot]:
    """Iterate over readable snapshots, newest first."""
    for number in reversed(snapshot_numbers(store)):
        try:
            yield read_numbered_snapshot(store, number)
        except CorruptMemoryError:
            continue


def _tombstone_problems(store: Store, snapshot: Snapshot, commits: dict[int, Commit]) -> Iterator[Problem]:
    try:
        check_ids(current_tombstones(store, snapshot), commits, store.root)
    except CorruptMemoryError as error:
        yield _problem(snapshot.tombstones or "", error.problem)
    except UsageError as error:
        yield _problem(snapshot.tombstones or "", str(error))


def _quantizer_problems(store: Store, folder: str) -> Iterator[Problem]:
    checksum = checksum_of(store, f"{folder}/trained.faiss")
    expected = quantizer_hash(store, folder)
    if checksum is None:
        yield _problem(f"{folder}/trained.faiss", "missing")
    elif expected is not None and checksum != expected:
        problem = f"checksum is {checksum[:12]}, its record says {expected[:12]}"
        yield _problem(f"{folder}/trained.faiss", problem)


def quantizer_hash(store: Store, folder: str) -> str | None:
    """SHA-256 in the quantizer's record; None if the record cannot be read."""
    try:
        record: Quantizer | None = read_quantizer(store, folder)
    except CorruptMemoryError:
        return None
    return record.sha256 if record else None


def _part_problems(store: Store, folder: str, name: str) -> Iterator[Problem]:
    path = f"{folder}/parts/{name}.faiss"
    try:
        record = read_part_record(store, folder, name)
    except CorruptMemoryError as error:
        yield _problem(f"{folder}/parts/{name}.json", error.problem)
        return
    checksum, trained = checksum_of(store, path), quantizer_hash(store, folder)
    if record is None:
        yield _problem(f"{folder}/parts/{name}.json", "missing")
    elif checksum is None:
        yield _problem(path, "missing")
    elif checksum != record.sha256:
        yield _problem(path, f"checksum is {checksum[:12]}, its record says {record.sha256[:12]}")
    elif trained is not None and trained != record.quantizer_sha256:
        yield _problem(path, f"filled with quantizer {record.quantizer_sha256[:12]}, the index has {trained[:12]}")
