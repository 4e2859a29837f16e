"""The manifest: all commit records of a memory, folded into one table.

A shard is done when its commit record exists and for no other reason. The driver folds commit records into
``manifest.parquet`` so that a reader of a finished memory opens a handful of files, however many shards it has.
"""

from contextlib import suppress

import pyarrow as pa

from memory_builder.base.log import warn_once
from memory_builder.catalog.commits import (
    MANIFEST,
    MANIFEST_SCHEMA,
    Commit,
    checked_commit,
    commit_from_row,
    commit_to_row,
    read_commits,
    read_manifest_table,
    record_names,
)
from memory_builder.catalog.description import Description, description_if_any
from memory_builder.catalog.paths import shard_name
from memory_builder.catalog.snapshots import read_snapshot
from memory_builder.errors import CorruptMemoryError
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.records import FORMAT_VERSION, decode_value, reading
from memory_builder.storage.store import Store

FOLD_EVERY = 1_000


class Manifest:
    """The commit records of a memory.

    ``version`` counts the folds: a snapshot names the version it needs, and later versions only add shards.
    """

    def __init__(self, commits: dict[int, Commit], version: int, folded: frozenset[int]) -> None:
        self.commits = commits
        self.version = version
        self.folded = folded

    @staticmethod
    def read_folded(store: Store) -> "Manifest":
        """Read ``manifest.parquet`` alone; if it is missing or damaged, the commit records.

        Raises:
            CorruptMemoryError: the table is damaged, and a commit record too.
        """
        try:
            manifest = Manifest.read_strictly(store)
            if manifest.version:
                return manifest
        except CorruptMemoryError as error:
            warn_once(f"{error.problem}; the commit records are read instead, and the next change writes it anew")
        commits = read_commits(store, record_names(store, "commits"))
        return Manifest(dict(sorted(commits.items())), 0, frozenset())

    @staticmethod
    def read_strictly(store: Store) -> "Manifest":
        """Read ``manifest.parquet`` alone; an empty manifest if it is missing.

        Raises:
            CorruptMemoryError: the table is damaged.
        """
        where = f"{store.root}/{MANIFEST}"
        try:
            table, metadata = read_manifest_table(store)
        except FileNotFoundError:
            return Manifest({}, 0, frozenset())
        with reading(where):
            version = int(metadata[b"version"])
            if not 1 <= version < 1 << 53:
                raise ValueError(f"version {version}")
            rows = [commit_from_row(row) for row in table.to_pylist()]
        checked = [checked_commit(decode_value(Commit, row, where=where), where) for row in rows]
        commits = {commit.ordinal: commit for commit in checked}
        return Manifest(dict(sorted(commits.items())), version, frozenset(commits))

    @staticmethod
    def read(store: Store) -> "Manifest":
        """Read ``manifest.parquet`` and the commit records written since."""
        manifest = Manifest.read_folded(store)
        names = {f"{shard_name(ordinal)}.json" for ordinal in manifest.commits}
        later = [name for name in record_names(store, "commits") if name not in names]
        commits = manifest.commits | read_commits(store, later)
        return Manifest(dict(sorted(commits.items())), manifest.version, manifest.folded)

    def add(self, commit: Commit) -> None:
        self.commits[commit.ordinal] = commit

    def fold(self, store: Store) -> None:
        """Write all commit records as one table, including those that another process folded meanwhile.

        The records are kept: they are authoritative, and the table is a faster way to read them.
        """
        with hold_lock(store, "manifest.lock") as held:
            folded = Manifest.read_folded(store)
            self.commits = dict(sorted((folded.commits | self.commits).items()))
            if folded.folded == self.commits.keys():
                self.version, self.folded = folded.version, folded.folded
                return
            # If the file was lost, its version was at least the one that the current snapshot needs.
            reached = folded.version or read_snapshot(store).manifest_version - 1
            self.version = max(self.version, reached, 0) + 1
            held.check()
            store.put(MANIFEST, self._to_parquet(description_if_any(store)))
            self.folded = frozenset(self.commits)

    @staticmethod
    def rewrite(store: Store) -> None:
        """Rewrite ``manifest.parquet`` from the commit records alone.

        Raises:
            CorruptMemoryError: a commit record is damaged.
        """
        with hold_lock(store, "manifest.lock") as held:
            commits = read_commits(store, record_names(store, "commits"))
            manifest = Manifest(dict(sorted(commits.items())), read_snapshot(store).manifest_version, frozenset())
            with suppress(CorruptMemoryError):
                manifest.version = max(manifest.version, Manifest.read_strictly(store).version)
            manifest.version = max(1, manifest.version)
            held.check()
            store.put(MANIFEST, manifest._to_parquet(description_if_any(store)))

    def _to_parquet(self, description: Description | None) -> bytes:
        rows = [commit_to_row(commit) for commit in self.commits.values()]
        metadata = {"version": str(self.version), "format": str(FORMAT_VERSION)}
        if description is not None:  # a copy, in case memory.json is lost
            metadata["description"] = description.to_json().decode()
        return parquet_bytes(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA.with_metadata(metadata)))

    @property
    def n_rows(self) -> int:
        return sum(commit.n_written for commit in self.commits.values())
