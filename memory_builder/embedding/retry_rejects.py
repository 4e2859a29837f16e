"""Rejected pairs, and a second try at them.

Committed rows never move, so what a second try makes of a shard's rejects becomes a shard of its own, whose name says
whose rejects they are. The same pair twice is not tried again: the second never was one.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace

from memory_builder.catalog.commits import Commit
from memory_builder.embedding.known_pairs import first_try, path_of
from memory_builder.errors import SourceError
from memory_builder.readers.discover import current_etag
from memory_builder.readers.read import DUPLICATE_KEY
from memory_builder.readers.shard import Shard, Source
from memory_builder.readers.shard_uri import join_uri, split_uri


def rejected_sources(commits: Iterable[Commit], named: Collection[str] | None = None) -> list[Source]:
    """A source for the rejects of each shard that were not tried again yet; ``named``: only of those uris.

    Of a shard that is gone too: that one then fails, and the others are tried.
    """
    commits = list(commits)
    tried = _tried_again(commits)
    sources = []
    for commit in _standing(commits):
        n = sum(n for reason, n in commit.reasons.items() if reason != DUPLICATE_KEY)
        path, piece = split_uri(commit.uri)
        is_named = named is None or join_uri(path, replace(piece, rejects=None)) in named
        if n and is_named and commit.ordinal not in tried:
            uri, etag = join_uri(path, replace(piece, rejects=commit.ordinal)), commit.etag
            with suppress(SourceError):
                etag = current_etag(uri)
            sources.append(Source(uri=uri, bytes=0, etag=etag))
    return sources


def standing_reasons(commits: Iterable[Commit]) -> Counter[str]:
    """Rejects by reason, each pair counted once, by what came of it last."""
    commits = list(commits)
    tried = _tried_again(commits)
    reasons: Counter[str] = Counter()
    for commit in _standing(commits):
        last = commit.reasons
        if commit.ordinal in tried:
            last = {reason: n for reason, n in last.items() if reason == DUPLICATE_KEY}
        reasons.update(last)
    return reasons


def _tried_again(commits: list[Commit]) -> set[int]:
    ordinals = (split_uri(commit.uri)[1].rejects for commit in commits)
    return {ordinal for ordinal in ordinals if ordinal is not None}


def _standing(commits: list[Commit]) -> list[Commit]:
    """Those whose pairs were not read again by a shard of a later state of their source, which says what became of
    them."""
    by_ordinal = {commit.ordinal: commit for commit in commits}
    by_path: dict[tuple[str, str], list[Commit]] = defaultdict(list)
    for commit in commits:
        if split_uri(commit.uri)[1].rejects is None:
            by_path[path_of(commit.uri)].append(commit)
    return [
        commit
        for commit in commits
        if not any(_reads_again(other, first_try(commit, by_ordinal)) for other in by_path[path_of(commit.uri)])
    ]


def _reads_again(later: Commit, first: Shard | Commit) -> bool:
    if later.ordinal <= first.ordinal or later.etag == first.etag:
        return False
    pieces = split_uri(later.uri)[1].items, split_uri(first.uri)[1].items
    return None in pieces or max(start for start, _ in filter(None, pieces)) < min(
        stop for _, stop in filter(None, pieces)
    )
