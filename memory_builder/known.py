"""What a memory holds already of a source that changed: the same pairs are not embedded again, changed ones replace.

A folder gains pictures, a listing gains lines, shards are fetched again: the source is planned anew, and its pairs are
compared with the rows of its earlier shards, by key. A row whose pair changed is deleted once its successor is
committed.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memory_builder.changes import delete
from memory_builder.manifest import Commit, Manifest, metadata_path
from memory_builder.plan import REPLACED, Shard, real_name
from memory_builder.progress import say
from memory_builder.rows import Ids, row_ids
from memory_builder.shards.links import Row
from memory_builder.shards.pairs import BadPairError, Pair, PairRules, caption_of, printable
from memory_builder.storage import Store, sha256
from memory_builder.tables import metadata_row, read_parquet
from memory_builder.uris import split_uri

SHARED_KEY = "pairs are new or changed under a key that several have: earlier rows of that key stay"


def with_earlier(shards: Sequence[Shard], commits: Iterable[Commit]) -> list[Shard]:
    """The shards, each with the committed shards of an earlier state of its source, whatever piece of it they hold."""
    by_ordinal = {commit.ordinal: commit for commit in commits} if shards else {}
    by_path: dict[tuple[str, str], list[Commit]] = defaultdict(list)
    for _, commit in sorted(by_ordinal.items()):
        by_path[path_of(commit.uri)].append(commit)
    return [
        replace(shard, earlier=_earlier(shard, by_path.get(path_of(shard.uri), ()), by_ordinal)) for shard in shards
    ]


def _earlier(shard: Shard, commits: Sequence[Commit], by_ordinal: Mapping[int, Commit]) -> tuple[int, ...]:
    """Ordinals of those of these commits that hold an earlier state; another state may lie between two equal ones."""
    own = first_try(shard, by_ordinal)
    others = [commit.ordinal for commit in commits if commit.ordinal < own.ordinal and commit.etag != own.etag]
    last_other = max(others, default=-1)
    return tuple(c.ordinal for c in commits if first_try(c, by_ordinal).ordinal <= last_other)


def first_try(shard: Shard | Commit, by_ordinal: Mapping[int, Commit]) -> Shard | Commit:
    """The shard that rejected the pairs of a second try; any other shard itself."""
    while (rejecting := split_uri(shard.uri)[1].rejects) is not None and rejecting in by_ordinal:
        shard = by_ordinal[rejecting]
    return shard


def path_of(uri: str) -> tuple[str, str]:
    """The source that a shard is a piece of: all states of it are compared."""
    path, piece = split_uri(real_name(uri))
    if piece.is_published and piece.items is not None:  # its rows are replaced as a whole, not by key
        return path, f"{piece.vectors} {piece.items[0]}"
    return path, piece.folder or piece.embeddings or piece.vectors or ""


class KnownPairs:
    """The metadata rows of some committed shards, by key; of a key that comes again, the latest.

    A key that pairs of one state share, which only a table of several shards may have, says nothing of which row is
    whose: all its rows are known, and none of them is replaced.
    """

    def __init__(self, store: Store, ordinals: Sequence[int], column_types: dict[str, str]) -> None:
        self._column_types = column_types
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._by_file: dict[str, str] = {}
        self.shared: set[str] = set()
        """Keys that pairs of one state share."""
        commits = Manifest.read(store).commits if ordinals else {}
        etags: dict[str, str] = {}
        for ordinal in ordinals:
            etag = first_try(commits[ordinal], commits).etag
            for row in _read_rows(store, ordinal):
                key = row["key"]
                if etags.get(key) == etag:
                    self.shared.add(key)
                etags[key] = etag
                self._rows.setdefault(key, []).append(row)
                if (name := file_of(row["key"], row["member"])) is not None:
                    self._by_file[name] = key

    def _known(self, key: str, member: str | None) -> list[dict[str, Any]]:
        """The rows that may be of this pair."""
        # one picture of a stem is called by it, several keep their suffix: the latest row of the file counts
        key = self._by_file.get(file_of(key, member) or "", key)
        rows = self._rows.get(key, [])
        return rows if key in self.shared else rows[-1:]

    def replaces(self, key: str, member: str | None) -> bool:
        """Whether a pair that is not held takes the place of a row."""
        return key not in self.shared and bool(self._known(key, member))

    def holds(self, pair: Pair) -> bool:
        """Whether a row was made of the very same picture, caption and fields."""
        digest = None if pair.image is None else sha256(pair.image)
        return any(
            row["sha256"] == digest and (_is_purged(row) or self._is_described(row, pair.caption, pair.fields))
            for row in self._known(pair.key, pair.member)
        )

    def holds_row(self, row: Row, rules: PairRules) -> bool:
        """The same of a row of a table whose picture lies elsewhere: it has the same address, and is not fetched."""
        if row.link is None or row.fault or "://" not in row.link:
            return False
        try:
            caption = caption_of({}, row.fields, rules)
        except BadPairError:
            return False
        fields = {"url": row.link} | row.fields
        member = printable(row.link)
        return any(
            known["member"] == member and self._is_described(known, caption, fields)
            for known in self._known(printable(row.key), member)
        )

    def _is_described(self, row: dict[str, Any], caption: str | None, fields: dict[str, Any]) -> bool:
        return row == metadata_row(
            row | {"caption": caption, "has_text": caption is not None}, fields, self._column_types
        )


def file_of(key: str, member: str | None) -> str | None:
    """The path of a pair's picture where the key is that, with its suffix or without."""
    name = posixpath.join(posixpath.dirname(key), posixpath.basename(member or ""))
    return name if name == key or name.startswith(f"{key}.") else None


def _is_purged(row: dict[str, Any]) -> bool:
    """Whether it was deleted for good, and its caption is gone: its picture must not come back."""
    return not row["has_image"] and not row["has_text"]


def delete_replaced(store: Store, shards: Sequence[Shard], commits: dict[int, Commit]) -> None:
    """Delete the rows that those of these committed shards replace; what is deleted already stays so."""
    replacing = [shard for shard in shards if shard.ordinal in commits and commits[shard.ordinal].notes.get(REPLACED)]
    stale = [np.zeros(0, np.int64)]
    for shard in with_earlier(replacing, commits.values()):
        is_published = split_uri(shard.uri)[1].is_published  # then all of the files is replaced
        shared = set() if is_published else KnownPairs(store, shard.earlier, {}).shared
        rows = [row for row in _read_rows(store, shard.ordinal) if row["key"] not in shared]
        keys, files = {row["key"] for row in rows}, {file_of(row["key"], row["member"]) for row in rows} - {None}
        for ordinal in shard.earlier:
            replaced = [
                number
                for number, row in enumerate(_read_rows(store, ordinal))
                if is_published
                or (row["key"] not in shared and (row["key"] in keys or file_of(row["key"], row["member"]) in files))
            ]
            stale.append(row_ids(ordinal, np.array(replaced, np.int64)))
    ids: Ids = np.concatenate(stale)
    if len(ids):
        say(f"{len(ids):,} rows of changed pairs are replaced")
        delete(store, ids=ids)


def _read_rows(store: Store, ordinal: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_parquet(store.read(metadata_path(ordinal))).to_pylist()
    return rows
