"""What a memory holds already of a source that changed: the same pairs are not embedded again, changed ones replace.

A folder gains pictures, a listing gains lines, shards are fetched again: the source is planned anew, and its pairs are
compared with the rows of its earlier shards, by key. A row whose pair changed is deleted once its successor is
committed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memory_builder.changes import delete
from memory_builder.manifest import Commit, metadata_path
from memory_builder.plan import REPLACED_ROWS, REPLACEMENTS, Shard, real_name
from memory_builder.progress import say
from memory_builder.rows import Ids, row_ids
from memory_builder.shards.links import Row
from memory_builder.shards.pairs import BadPairError, Pair, PairRules, caption_of, printable
from memory_builder.storage import Store, sha256
from memory_builder.tables import metadata_row, read_parquet
from memory_builder.uris import split_uri


def with_earlier(shards: Sequence[Shard], commits: Iterable[Commit]) -> list[Shard]:
    """The shards, each with the committed shards of an earlier state of its source, whatever piece of it they hold."""
    by_path: dict[tuple[str, str], list[Commit]] = defaultdict(list)
    if shards:
        for commit in sorted(commits, key=lambda commit: commit.ordinal):
            by_path[_path_of(commit.uri)].append(commit)
    return [replace(shard, earlier=_earlier(shard, by_path.get(_path_of(shard.uri), ()))) for shard in shards]


def _earlier(shard: Shard, commits: Iterable[Commit]) -> tuple[int, ...]:
    if split_uri(shard.uri)[1].rejects is not None:
        return ()
    return tuple(c.ordinal for c in commits if c.ordinal < shard.ordinal and c.etag != shard.etag)


def _path_of(uri: str) -> tuple[str, str]:
    path, piece = split_uri(real_name(uri))
    return path, piece.folder or piece.embeddings or piece.vectors or ""


class KnownPairs:
    """The metadata rows of some committed shards; of a pair that was embedded several times, the latest.

    A pair is known by its key. Where keys are row numbers, which others have once rows were put in between, it is known
    by its picture and caption, or by its picture in the same place with another caption. Pairs are asked for one after
    the other, in the order of their shard.
    """

    def __init__(self, store: Store, ordinals: Sequence[int], column_types: dict[str, str]) -> None:
        self._column_types = column_types
        self._by_key: dict[str, dict[str, Any]] = {}
        self._by_content: dict[tuple[str | None, str | None], dict[str, Any]] = {}
        self._purged: dict[str, dict[str, Any]] = {}
        self._overtaken: set[int] = set()
        self.replacing: set[str] = set()
        """Keys of the pairs that take the place of an earlier row."""
        for ordinal in ordinals:
            for row in read_parquet(store.read(metadata_path(ordinal))).to_pylist():
                self._by_key[row["key"]] = row
                self._by_content[picture_of(row), row["caption"]] = row
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
        row = self._earlier(pair, digest)
        if row is None:
            return True
        is_same = row["sha256"] == digest if is_fetched else row["member"] == pair.member
        if is_same and (_is_purged(row) or self._is_described(row, pair.caption, pair.fields)):
            return False
        self._overtaken.add(id(row))
        self.replacing.add(pair.key)
        return True

    def _earlier(self, pair: Pair, digest: str | None) -> dict[str, Any] | None:
        at_key = self._by_key.get(pair.key)
        if not pair.is_numbered:
            return at_key
        what = picture_of({"member": pair.member, "sha256": digest})
        row = self._by_content.get((what, pair.caption))
        if row is not None and id(row) not in self._overtaken:
            return row
        if digest in self._purged:  # of its address and caption nothing is left
            return self._purged[digest]
        return at_key if at_key is not None and what is not None and picture_of(at_key) == what else None

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


def picture_of(row: Mapping[str, Any]) -> str | None:
    """What identifies the picture of a table's row: the file or address that it names, or the checksum of its bytes."""
    member: str | None = row["member"]
    checksum: str | None = row["sha256"]
    return checksum if member is None or member.startswith("row ") else member


def _is_purged(row: dict[str, Any]) -> bool:
    """Whether it was deleted for good, and its caption is gone: its picture must not come back."""
    return not row["has_image"] and not row["has_text"]


def delete_replaced(store: Store, shards: Sequence[Shard], commits: dict[int, Commit]) -> None:
    """Delete the rows that those of these committed shards replace; what is deleted already stays so."""
    replacing = [s for s in shards if s.ordinal in commits and commits[s.ordinal].notes.keys() & {*REPLACEMENTS}]
    stale = [np.zeros(0, np.int64)]
    for shard in with_earlier(replacing, commits.values()):
        is_published = split_uri(shard.uri)[1].is_published  # then all of the files is replaced
        identify = _of_numbered if REPLACED_ROWS in commits[shard.ordinal].notes else _of_keyed
        fresh = {identity for row in _rows(store, shard.ordinal) for identity in identify(row)}
        for ordinal in shard.earlier:
            rows = [
                number
                for number, row in enumerate(_rows(store, ordinal))
                if is_published or not fresh.isdisjoint(identify(row))
            ]
            stale.append(row_ids(ordinal, np.array(rows, np.int64)))
    ids: Ids = np.concatenate(stale)
    if len(ids):
        say(f"{len(ids):,} rows of changed pairs are replaced")
        delete(store, ids=ids)


def _of_keyed(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [(row["key"],)]


def _of_numbered(row: Mapping[str, Any]) -> list[tuple[str, ...]]:
    what = picture_of(row)
    by_content = ("content", what or "", row["caption"] or "")
    return [by_content] if what is None else [by_content, ("number", row["key"], what)]


def _rows(store: Store, ordinal: int) -> list[dict[str, Any]]:
    table = read_parquet(store.read(metadata_path(ordinal)))
    rows: list[dict[str, Any]] = table.select(["key", "caption", "sha256", "member"]).to_pylist()
    return rows
