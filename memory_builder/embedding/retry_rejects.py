"""Retry rejected pairs.

Committed rows never move, so the rows of retried rejects become a shard of their own, whose URI names the shard that
rejected them. Rejects with a duplicate key are not retried.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace

from memory_builder.catalog.commits import Commit
from memory_builder.embedding.known_pairs import original_shard, path_of
from memory_builder.errors import SourceError
from memory_builder.readers.discover import current_etag
from memory_builder.readers.read import DUPLICATE_KEY
from memory_builder.readers.shard import Shard, Source
from memory_builder.readers.shard_uri import join_uri, split_uri


def rejected_sources(commits: Iterable[Commit], named: Collection[str] | None = None) -> list[Source]:
    """Return a source for the rejects of each shard that were not retried yet; ``named``: only of those URIs.

    A missing shard has a source too: it fails then, and the others are retried.
    """
    commits = list(commits)
    retried = _retried(commits)
    sources = []
    for commit in _current(commits):
        n = sum(n for reason, n in commit.reasons.items() if reason != DUPLICATE_KEY)
        path, piece = split_uri(commit.uri)
        is_named = named is None or join_uri(path, replace(piece, rejects=None)) in named
        if n and is_named and commit.ordinal not in retried:
            uri, etag = join_uri(path, replace(piece, rejects=commit.ordinal)), commit.etag
            with suppress(SourceError):
                etag = current_etag(uri)
            sources.append(Source(uri=uri, bytes=0, etag=etag))
    return sources


def latest_reasons(commits: Iterable[Commit]) -> Counter[str]:
    """Count rejects by reason, each pair once, by its latest attempt."""
    commits = list(commits)
    retried = _retried(commits)
    reasons: Counter[str] = Counter()
    for commit in _current(commits):
        last = commit.reasons
        if commit.ordinal in retried:
            last = {reason: n for reason, n in last.items() if reason == DUPLICATE_KEY}
        reasons.update(last)
    return reasons


def _retried(commits: list[Commit]) -> set[int]:
    ordinals = (split_uri(commit.uri)[1].rejects for commit in commits)
    return {ordinal for ordinal in ordinals if ordinal is not None}


def _current(commits: list[Commit]) -> list[Commit]:
    """Select the commits whose pairs were not read again by a shard of a later version of their source."""
    by_ordinal = {commit.ordinal: commit for commit in commits}
    by_path: dict[tuple[str, str], list[Commit]] = defaultdict(list)
    for commit in commits:
        if split_uri(commit.uri)[1].rejects is None:
            by_path[path_of(commit.uri)].append(commit)
    return [
        commit
        for commit in commits
        if not any(_reads_again(other, original_shard(commit, by_ordinal)) for other in by_path[path_of(commit.uri)])
    ]


def _reads_again(later: Commit, first: Shard | Commit) -> bool:
    if later.ordinal <= first.ordinal or later.etag == first.etag:
        return False
    pieces = split_uri(later.uri)[1].items, split_uri(first.uri)[1].items
    return None in pieces or max(start for start, _ in filter(None, pieces)) < min(
        stop for _, stop in filter(None, pieces)
    )
