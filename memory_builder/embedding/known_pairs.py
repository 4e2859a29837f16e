"""What a memory holds already of a source that changed: the same pairs are not embedded again, changed ones replace.

A folder gains pictures, a listing gains lines, shards are fetched again: the source is planned anew, and its pairs are
compared with the rows of its earlier shards. A row whose pair changed is deleted once its successor is committed.
"""

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memory_builder.base.log import logger
from memory_builder.base.types import Ids, row_ids
from memory_builder.catalog.commits import Commit, read_commit
from memory_builder.catalog.delete_rows import delete_rows
from memory_builder.catalog.metadata import metadata_row
from memory_builder.catalog.paths import metadata_path
from memory_builder.catalog.plan import REPLACED_ROWS, REPLACEMENTS, real_name
from memory_builder.readers.columns import Row
from memory_builder.readers.pairs import BadPairError, Pair, PairRules, caption_of, printable
from memory_builder.readers.shard import Shard
from memory_builder.readers.shard_uri import split_uri
from memory_builder.storage.formats import read_parquet
from memory_builder.storage.store import Store, sha256

IDENTIFYING = ["key", "caption", "sha256", "member"]
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
    """The metadata rows of some committed shards; of a pair that was embedded several times, the latest.

    A pair is known by its key. A key that pairs of one state share, which only a table of several shards may have, says
    nothing of which row is whose: all its rows are known, and none of them is replaced. Where keys are row numbers,
    which others have once rows were put in between, a pair is known by its picture and caption, or by its picture in
    the same place with another caption. Pairs are asked for one after the other, in the order of their shard.
    """

    def __init__(self, store: Store, ordinals: Sequence[int], column_types: dict[str, str]) -> None:
        self._column_types = column_types
        self._by_key: dict[str, list[dict[str, Any]]] = {}
        self._by_file: dict[str, str] = {}
        self._by_content: dict[tuple[str | None, str | None], dict[str, Any]] = {}
        self._purged: dict[str, dict[str, Any]] = {}
        self._overtaken: set[int] = set()
        self.shared = shared_keys(store, ordinals)
        """Keys that pairs of one state share."""
        self.replacing: set[str] = set()
        """Keys of the pairs that take the place of an earlier row."""
        for ordinal in ordinals:
            for row in _read_rows(store, ordinal):
                self._by_key.setdefault(row["key"], []).append(row)
                self._by_content[picture_of(row), row["caption"]] = row
                if (name := file_of(row["key"], row["member"])) is not None:
                    self._by_file[name] = row["key"]
                if _is_purged(row) and row["sha256"] is not None:
                    self._purged[row["sha256"]] = row

    def admits(self, pair: Pair, *, is_fetched: bool = True) -> bool:
        """Whether a pair is to be embedded: it is new, or not what its earlier row was made of.

        Args:
            pair: as it is read now.
            is_fetched: its picture is there; else the address is taken for it.
        """
        if not self._by_key:
            return True
        digest = None if pair.image is None else sha256(pair.image)
        rows = self._of_number(pair, digest) if pair.is_numbered else self._of_key(pair.key, pair.member)
        for row in rows:
            is_same = row["sha256"] == digest if is_fetched else row["member"] == pair.member
            if is_same and (_is_purged(row) or self._is_described(row, pair.caption, pair.fields)):
                return False
        if rows and (pair.is_numbered or pair.key not in self.shared):
            self._overtaken.update(map(id, rows))
            self.replacing.add(pair.key)
        return True

    def _of_key(self, key: str, member: str | None) -> list[dict[str, Any]]:
        # one picture of a stem is called by it, several keep their suffix: the latest row of the file counts
        key = self._by_file.get(file_of(key, member) or "", key)
        rows = self._by_key.get(key, [])
        return rows if key in self.shared else rows[-1:]

    def _of_number(self, pair: Pair, digest: str | None) -> list[dict[str, Any]]:
        what = picture_of({"member": pair.member, "sha256": digest})
        row = self._by_content.get((what, pair.caption))
        if row is not None and id(row) not in self._overtaken:
            return [row]
        if digest in self._purged:  # of its address and caption nothing is left
            return [self._purged[digest]]
        at_key = self._by_key.get(pair.key, [])[-1:]
        return at_key if at_key and what is not None and picture_of(at_key[0]) == what else []

    def holds_row(self, row: Row, rules: PairRules) -> bool:
        """Whether a row of a table names an address that is in the memory with the same caption and fields already."""
        if row.link is None or row.fault or "://" not in row.link:
            return False
        try:
            caption = caption_of({}, row.fields, rules)
        except BadPairError:
            return False
        fields = {"url": row.link} | row.fields
        key, member = printable(row.key), printable(row.link)
        pair = Pair(key=key, caption=caption, member=member, fields=fields, is_numbered=row.is_numbered)
        return not self.admits(pair, is_fetched=False)

    def _is_described(self, row: dict[str, Any], caption: str | None, fields: dict[str, Any]) -> bool:
        now = row | {"caption": caption, "has_text": caption is not None}
        return row == metadata_row(now, fields, self._column_types)


def shared_keys(store: Store, ordinals: Sequence[int]) -> set[str]:
    """Keys that several pairs of one state of a source have, in committed shards of several states."""
    commits = {ordinal: commit for ordinal in ordinals if (commit := read_commit(store, ordinal)) is not None}
    shared: set[str] = set()
    etags: dict[str, str] = {}
    for ordinal, commit in commits.items():
        etag = first_try(commit, commits).etag
        for row in _read_rows(store, ordinal, ["key"]):
            if etags.get(row["key"]) == etag:
                shared.add(row["key"])
            etags[row["key"]] = etag
    return shared


def picture_of(row: Mapping[str, Any]) -> str | None:
    """What identifies the picture of a table's row: the file or address that it names, or the checksum of its bytes."""
    member: str | None = row["member"]
    checksum: str | None = row["sha256"]
    return checksum if member is None or member.startswith("row ") else member


def file_of(key: str, member: str | None) -> str | None:
    """The path of a pair's picture where the key is that, with its suffix or without."""
    name = posixpath.join(posixpath.dirname(key), posixpath.basename(member or ""))
    return name if name == key or name.startswith(f"{key}.") else None


def _is_purged(row: Mapping[str, Any]) -> bool:
    """Whether it was deleted for good, and its caption is gone: its picture must not come back."""
    return not row["has_image"] and not row["has_text"]


def delete_replaced(store: Store, shards: Sequence[Shard], commits: dict[int, Commit]) -> None:
    """Delete the rows that those of these committed shards replace; what is deleted already stays so."""
    replacing = [s for s in shards if s.ordinal in commits and commits[s.ordinal].notes.keys() & {*REPLACEMENTS}]
    stale = [np.zeros(0, np.int64)]
    for shard in with_earlier(replacing, commits.values()):
        is_published = split_uri(shard.uri)[1].is_published  # then all of the files is replaced
        is_numbered = REPLACED_ROWS in commits[shard.ordinal].notes
        shared = set() if is_published or is_numbered else shared_keys(store, shard.earlier)
        identify = _of_numbered if is_numbered else _of_keyed
        fresh = {
            identity
            for row in _read_rows(store, shard.ordinal, IDENTIFYING)
            if row["key"] not in shared
            for identity in identify(row)
        }
        for ordinal in shard.earlier:
            replaced = [
                number
                for number, row in enumerate(_read_rows(store, ordinal, IDENTIFYING))
                if is_published or (row["key"] not in shared and not fresh.isdisjoint(identify(row)))
            ]
            stale.append(row_ids(ordinal, np.array(replaced, np.int64)))
    ids: Ids = np.concatenate(stale)
    if len(ids):
        logger.info(f"{len(ids):,} rows of changed pairs are replaced")
        delete_rows(store, np.unique(ids))


def _of_keyed(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    file = file_of(row["key"], row["member"])
    return [("key", row["key"])] if file is None else [("key", row["key"]), ("file", file)]


def _of_numbered(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    what = picture_of(row)
    by_content = ("content", what or "", row["caption"] or "")
    return [by_content] if what is None else [by_content, ("number", row["key"], what)]


def _read_rows(store: Store, ordinal: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
    table = read_parquet(store.read(metadata_path(ordinal)))
    rows: list[dict[str, Any]] = (table if columns is None else table.select(columns)).to_pylist()
    return rows
