"""What a memory holds already of a source that changed: the same pairs are not embedded again, changed ones replace.

A folder gains pictures, a listing gains lines, shards are fetched again: the source is planned anew, and its pairs are
compared with the rows of its earlier shards, by key. A row whose pair changed is deleted once its successor is
committed.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memory_builder.changes import delete
from memory_builder.manifest import Commit, metadata_path
from memory_builder.plan import REPLACED, Shard, real_name
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
    """The metadata rows of some committed shards, by key; of a key that comes again, the latest."""

    def __init__(self, store: Store, ordinals: Sequence[int], column_types: dict[str, str]) -> None:
        self._column_types = column_types
        self._rows: dict[str, dict[str, Any]] = {}
        for ordinal in ordinals:
            for row in read_parquet(store.read(metadata_path(ordinal))).to_pylist():
                self._rows[row["key"]] = row

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def holds(self, pair: Pair) -> bool:
        """Whether a row was made of the very same picture, caption and fields."""
        row = self._rows.get(pair.key)
        if row is None or not (_is_purged(row) or self._is_described(row, pair.caption, pair.fields)):
            return False
        return bool(row["sha256"] == (None if pair.image is None else sha256(pair.image)))

    def holds_row(self, row: Row, rules: PairRules) -> bool:
        """The same of a row of a table whose picture lies elsewhere: it has the same address, and is not fetched."""
        if row.link is None or row.fault or "://" not in row.link:
            return False
        known = self._rows.get(printable(row.key))
        try:
            caption = caption_of({}, row.fields, rules)
        except BadPairError:
            return False
        fields = {"url": row.link} | row.fields
        return (
            known is not None and known["member"] == printable(row.link) and self._is_described(known, caption, fields)
        )

    def _is_described(self, row: dict[str, Any], caption: str | None, fields: dict[str, Any]) -> bool:
        return row == metadata_row(
            row | {"caption": caption, "has_text": caption is not None}, fields, self._column_types
        )


def _is_purged(row: dict[str, Any]) -> bool:
    """Whether it was deleted for good, and its caption is gone: its picture must not come back."""
    return not row["has_image"] and not row["has_text"]


def delete_replaced(store: Store, shards: Sequence[Shard], commits: dict[int, Commit]) -> None:
    """Delete the rows that those of these committed shards replace; what is deleted already stays so."""
    replacing = [shard for shard in shards if shard.ordinal in commits and commits[shard.ordinal].notes.get(REPLACED)]
    stale = [np.zeros(0, np.int64)]
    for shard in with_earlier(replacing, commits.values()):
        fresh = set(_keys(store, shard.ordinal))
        is_published = split_uri(shard.uri)[1].is_published  # then all of the files is replaced
        for ordinal in shard.earlier:
            rows = [row for row, key in enumerate(_keys(store, ordinal)) if is_published or key in fresh]
            stale.append(row_ids(ordinal, np.array(rows, np.int64)))
    ids: Ids = np.concatenate(stale)
    if len(ids):
        say(f"{len(ids):,} rows of changed pairs are replaced")
        delete(store, ids=ids)


def _keys(store: Store, ordinal: int) -> list[str]:
    keys: list[str] = read_parquet(store.read(metadata_path(ordinal)))["key"].to_pylist()
    return keys
