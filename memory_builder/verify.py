"""Is everything that the records name there, whole, and nothing else?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from memory_builder.errors import BUILD_AGAIN, CorruptMemoryError, UsageError
from memory_builder.manifest import Commit, Manifest, commit_path, read_description, record_names
from memory_builder.parts import read_part_record
from memory_builder.plan import read_plan
from memory_builder.purge import read_purge
from memory_builder.runner import Runner, run_all
from memory_builder.snapshots import Snapshot, read_numbered_snapshot, read_snapshot, snapshot_numbers
from memory_builder.storage import Store
from memory_builder.tombstones import check_ids, current_tombstones

SHARD_FOLDERS = ("img_emb", "text_emb", "metadata", "rows", "rejects")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is not as its record says."""

    shard: int | None
    """Ordinal, where a shard is concerned."""
    file: str
    problem: str


def verify(store: Store, runner: Runner) -> list[Problem]:
    """Recompute every checksum; name what is missing, changed or foreign.

    Raises:
        UsageError: there is no memory here.
    """
    problems: list[Problem] = []
    try:
        description = read_description(store)
        commits, problems = read_records(store)
        problems += _plan_problems(store, commits, description.config_hash)
        for _, found in run_all(runner, VerifyTask(memory=store), list(commits.values())):
            problems += found
        problems += _foreign_files(store, commits)
        snapshot = read_snapshot(store)
        problems += _index_problems(store, snapshot)
        problems += _tombstone_problems(store, snapshot, commits)
    except CorruptMemoryError as error:  # so damaged that what hangs on it cannot be looked at
        problems.append(Problem(shard=None, file="", problem=str(error)))
    return sorted(problems, key=lambda problem: (problem.file, problem.problem))


def read_records(store: Store) -> tuple[dict[int, Commit], list[Problem]]:
    """Every commit record one by one, and how they differ from the folded manifest."""
    problems = []
    commits: dict[int, Commit] = {}
    for name in record_names(store, "commits"):
        try:
            commit = Commit.from_json(store.read(f"commits/{name}"))
            commits[commit.ordinal] = commit
        except (ValueError, TypeError, LookupError) as error:
            problems.append(Problem(shard=None, file=f"commits/{name}", problem=f"damaged: {error}"))
    for ordinal, folded in Manifest.read_folded(store).commits.items():
        if ordinal not in commits:
            problem = "missing or damaged, though manifest.parquet has it"
            problems.append(Problem(shard=ordinal, file=commit_path(ordinal), problem=problem))
        elif commits[ordinal] != folded:
            problem = "differs from what manifest.parquet has"
            problems.append(Problem(shard=ordinal, file=commit_path(ordinal), problem=problem))
        commits.setdefault(ordinal, folded)
    return dict(sorted(commits.items())), problems


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyTask:
    """A worker that reads the files of shards again."""

    memory: Store | str
    wants_gpu: bool = False

    def start(self) -> Callable[[Commit], list[Problem]]:
        return partial(verify_shard, store=Store(self.memory))


def verify_shard(commit: Commit, *, store: Store) -> list[Problem]:
    """Compare the files of one shard with its commit record."""
    problems = []
    purge = read_purge(store, commit.ordinal)
    purged = purge.checksums if purge else {}
    for path, expected in (commit.checksums | purged).items():
        found = _checksum(store, path)
        if found is None:
            problems.append(Problem(shard=commit.ordinal, file=path, problem="missing"))
        elif found != expected and path in purged:
            problem = f"checksum is {found[:12]}, its purge record says {expected[:12]}: run compact --purge again"
            problems.append(
                Problem(shard=None, file=path, problem=problem)
            )  # no shard: its source brings back the rows
        elif found != expected:
            problem = f"checksum is {found[:12]}, its commit record says {expected[:12]}"
            problems.append(Problem(shard=commit.ordinal, file=path, problem=problem))
    return problems


def _checksum(store: Store, path: str) -> str | None:
    try:
        return store.checksum(path)
    except FileNotFoundError:
        return None


def _plan_problems(store: Store, commits: dict[int, Commit], config_hash: str) -> Iterator[Problem]:
    planned = {shard.ordinal: shard for shard in read_plan(store)}
    for commit in commits.values():
        file = commit_path(commit.ordinal)
        shard = planned.get(commit.ordinal)
        if shard is None or shard.uri != commit.uri:
            there = shard.uri if shard else "nothing"
            problem = f"commits {commit.uri}, the plan has {there} there"
            yield Problem(shard=commit.ordinal, file=file, problem=problem)
        if commit.config_hash != config_hash:
            problem = f"config is {commit.config_hash}, memory.json says {config_hash}"
            yield Problem(shard=commit.ordinal, file=file, problem=problem)


def _foreign_files(store: Store, commits: dict[int, Commit]) -> Iterator[Problem]:
    known = {path for commit in commits.values() for path in commit.checksums}
    for folder in SHARD_FOLDERS:
        for name in store.list(folder):
            if f"{folder}/{name}" not in known:
                problem = "no commit record names it: left by a killed run, which the next embed replaces, or foreign"
                yield Problem(shard=None, file=f"{folder}/{name}", problem=problem)


def _index_problems(store: Store, snapshot: Snapshot) -> Iterator[Problem]:
    for view in snapshot.indexes.values():
        for name in ("trained.json", "index.json", view.tuning):
            try:
                if store.read_json(f"{view.index}/{name}", fix=BUILD_AGAIN) is None:
                    yield Problem(shard=None, file=f"{view.index}/{name}", problem="missing")
            except CorruptMemoryError as error:
                yield Problem(shard=None, file=f"{view.index}/{name}", problem=str(error))
        if not store.exists(f"{view.index}/held_out.npy"):
            yield Problem(shard=None, file=f"{view.index}/held_out.npy", problem="missing")
        trained = _checksum(store, f"{view.index}/trained.faiss")
        for name in view.parts:
            yield from _part_problems(store, view.index, name, trained)
        known = _parts_of_all_states(store, view.index)
        for name in store.list(f"{view.index}/parts"):
            if name not in known:
                problem = "no snapshot names it: left by a run that was killed or overtaken; compact removes it"
                yield Problem(shard=None, file=f"{view.index}/parts/{name}", problem=problem)


def _parts_of_all_states(store: Store, folder: str) -> set[str]:
    """File names of the parts of an index in any state: an earlier one may still be open somewhere."""
    snapshots = (read_numbered_snapshot(store, number) for number in snapshot_numbers(store))
    views = [view for snapshot in snapshots for view in snapshot.indexes.values() if view.index == folder]
    return {f"{name}.{suffix}" for view in views for name in view.parts for suffix in ("faiss", "json")}


def _tombstone_problems(store: Store, snapshot: Snapshot, commits: dict[int, Commit]) -> Iterator[Problem]:
    try:
        check_ids(current_tombstones(store, snapshot), commits, store.root)
    except (CorruptMemoryError, UsageError) as error:
        yield Problem(shard=None, file=snapshot.tombstones or "", problem=str(error))


def _part_problems(store: Store, folder: str, name: str, trained: str | None) -> Iterator[Problem]:
    path = f"{folder}/parts/{name}.faiss"
    record = read_part_record(store, folder, name)
    found = _checksum(store, path)
    if record is None:
        yield Problem(shard=None, file=f"{folder}/parts/{name}.json", problem="missing")
    elif found is None:
        yield Problem(shard=None, file=path, problem="missing")
    elif found != record.sha256:
        problem = f"checksum is {found[:12]}, its record says {record.sha256[:12]}"
        yield Problem(shard=None, file=path, problem=problem)
    elif trained != record.quantizer_sha256:
        problem = "missing, or not the quantizer its parts were filled with"
        yield Problem(shard=None, file=f"{folder}/trained.faiss", problem=problem)
