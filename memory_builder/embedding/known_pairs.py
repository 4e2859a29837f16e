"""Compare a changed source with its earlier rows: unchanged pairs are not embedded again, changed ones replace rows.

When a folder gains pictures, a listing gains lines or shards are fetched again, the source is planned again and its
pairs are compared with the rows of its earlier shards. A row whose pair changed is deleted once its successor is
committed.
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
    """Set ``earlier`` of each shard: the committed shards of earlier versions of its source, of any piece."""
    by_ordinal = {commit.ordinal: commit for commit in commits} if shards else {}
    by_path: dict[tuple[str, str], list[Commit]] = defaultdict(list)
    for _, commit in sorted(by_ordinal.items()):
        by_path[path_of(commit.uri)].append(commit)
    return [
        replace(shard, earlier=_earlier(shard, by_path.get(path_of(shard.uri), ()), by_ordinal)) for shard in shards
    ]


def _earlier(shard: Shard, commits: Sequence[Commit], by_ordinal: Mapping[int, Commit]) -> tuple[int, ...]:
    """Return the ordinals of the commits of earlier versions; a version may return after another one."""
    own = original_shard(shard, by_ordinal)
    others = [commit.ordinal for commit in commits if commit.ordinal < own.ordinal and commit.etag != own.etag]
    last_other = max(others, default=-1)
    return tuple(c.ordinal for c in commits if original_shard(c, by_ordinal).ordinal <= last_other)


def original_shard(shard: Shard | Commit, by_ordinal: Mapping[int, Commit]) -> Shard | Commit:
    """Return the shard whose rejects a shard retries; any other shard itself."""
    while (rejecting := split_uri(shard.uri)[1].rejects) is not None and rejecting in by_ordinal:
        shard = by_ordinal[rejecting]
    return shard


def path_of(uri: str) -> tuple[str, str]:
    """Return an identifier of the source that a shard is a piece of, for comparing its versions."""
    path, piece = split_uri(real_name(uri))
    if piece.is_published and piece.items is not None:  # its rows are replaced as a whole, not by key
        return path, f"{piece.vectors} {piece.items[0]}"
    return path, piece.folder or piece.embeddings or piece.vectors or ""


class KnownPairs:
    """Metadata rows of the earlier shards of a source; of a pair that was embedded several times, the latest.

    A pair is identified by its key. A key that several pairs of one version share (possible in a table of several
    shards) is ambiguous: all its rows are compared, and none is replaced. If keys are row numbers, which shift when
    rows are inserted, a pair is identified by its picture and caption, or by its picture in the same row with another
    caption. ``admits`` must be called in the order of the shard's pairs.
    """

    def __init__(self, store: Store, ordinals: Sequence[int], column_types: dict[str, str]) -> None:
        self._column_types = column_types
        self._by_key: dict[str, list[dict[str, Any]]] = {}
        self._by_file: dict[str, str] = {}
        self._by_content: dict[tuple[str | None, str | None], dict[str, Any]] = {}
        self._purged: dict[str, dict[str, Any]] = {}
        self._replaced: set[int] = set()
        self.shared = shared_keys(store, ordinals)
        """Keys that several pairs of one version share."""
        self.replacing: set[str] = set()
        """Keys of the pairs that replace an earlier row."""
        for ordinal in ordinals:
            for row in _read_rows(store, ordinal):
                self._by_key.setdefault(row["key"], []).append(row)
                self._by_content[picture_of(row), row["caption"]] = row
                if (name := file_of(row["key"], row["member"])) is not None:
                    self._by_file[name] = row["key"]
                if _is_purged(row) and row["sha256"] is not None:
                    self._purged[row["sha256"]] = row

    def admits(self, pair: Pair, *, is_fetched: bool = True) -> bool:
        """Whether a pair must be embedded: it is new, or differs from its earlier row.

        Args:
            pair: the pair of the current version.
            is_fetched: its picture is loaded; else its URL is compared instead.
        """
        if not self._by_key:
            return True
        digest = None if pair.image is None else sha256(pair.image)
        rows = self._rows_by_content(pair, digest) if pair.is_numbered else self._rows_by_key(pair.key, pair.member)
        for row in rows:
            is_same = row["sha256"] == digest if is_fetched else row["member"] == pair.member
            if is_same and (_is_purged(row) or self._is_described(row, pair.caption, pair.fields)):
                return False
        if rows and (pair.is_numbered or pair.key not in self.shared):
            self._replaced.update(map(id, rows))
            self.replacing.add(pair.key)
        return True

    def _rows_by_key(self, key: str, member: str | None) -> list[dict[str, Any]]:
        # The key of a stem's only picture is the stem, those of several include the suffix: compare by file.
        key = self._by_file.get(file_of(key, member) or "", key)
        rows = self._by_key.get(key, [])
        return rows if key in self.shared else rows[-1:]

    def _rows_by_content(self, pair: Pair, digest: str | None) -> list[dict[str, Any]]:
        picture = picture_of({"member": pair.member, "sha256": digest})
        row = self._by_content.get((picture, pair.caption))
        if row is not None and id(row) not in self._replaced:
            return [row]
        if digest in self._purged:  # a purged row has neither URL nor caption
            return [self._purged[digest]]
        at_key = self._by_key.get(pair.key, [])[-1:]
        return at_key if at_key and picture is not None and picture_of(at_key[0]) == picture else []

    def holds_row(self, row: Row, rules: PairRules) -> bool:
        """Whether the memory already holds the URL of a table's row with the same caption and fields."""
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
    """Return the keys that several pairs of one version of a source share, in committed shards of all versions."""
    commits = {ordinal: commit for ordinal in ordinals if (commit := read_commit(store, ordinal)) is not None}
    shared: set[str] = set()
    etags: dict[str, str] = {}
    for ordinal, commit in commits.items():
        etag = original_shard(commit, commits).etag
        for row in _read_rows(store, ordinal, ["key"]):
            if etags.get(row["key"]) == etag:
                shared.add(row["key"])
            etags[row["key"]] = etag
    return shared


def picture_of(row: Mapping[str, Any]) -> str | None:
    """Identify the picture of a table's row: its path or URL, or the checksum of its bytes."""
    member: str | None = row["member"]
    checksum: str | None = row["sha256"]
    return checksum if member is None or member.startswith("row ") else member


def file_of(key: str, member: str | None) -> str | None:
    """Return the path of a pair's picture if the key is that path, with or without the suffix."""
    name = posixpath.join(posixpath.dirname(key), posixpath.basename(member or ""))
    return name if name == key or name.startswith(f"{key}.") else None


def _is_purged(row: Mapping[str, Any]) -> bool:
    """Whether a row was purged; its picture must not be embedded again."""
    return not row["has_image"] and not row["has_text"]


def delete_replaced(store: Store, shards: Sequence[Shard], commits: dict[int, Commit]) -> None:
    """Delete the earlier rows that the rows of these shards, if committed, replace."""
    replacing = [s for s in shards if s.ordinal in commits and commits[s.ordinal].notes.keys() & {*REPLACEMENTS}]
    stale = [np.zeros(0, np.int64)]
    for shard in with_earlier(replacing, commits.values()):
        is_published = split_uri(shard.uri)[1].is_published  # replaced as a whole
        is_numbered = REPLACED_ROWS in commits[shard.ordinal].notes
        shared = set() if is_published or is_numbered else shared_keys(store, shard.earlier)
        identify = _content_identities if is_numbered else _key_identities
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


def _key_identities(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    file = file_of(row["key"], row["member"])
    return [("key", row["key"])] if file is None else [("key", row["key"]), ("file", file)]


def _content_identities(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    picture = picture_of(row)
    by_content = ("content", picture or "", row["caption"] or "")
    return [by_content] if picture is None else [by_content, ("number", row["key"], picture)]


def _read_rows(store: Store, ordinal: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
    table = read_parquet(store.read(metadata_path(ordinal)))
    rows: list[dict[str, Any]] = (table if columns is None else table.select(columns)).to_pylist()
    return rows
