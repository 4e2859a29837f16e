"""Find the shards that paths, folders, globs and brace ranges name, on any filesystem fsspec knows."""

import glob
from collections.abc import Iterator, Sequence
from typing import Any

import bracex
import fsspec
from fsspec.implementations.local import LocalFileSystem

from memory_builder.errors import SourceError
from memory_builder.manifest import Source
from memory_builder.storage import etag_of

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def find_sources(patterns: Sequence[str]) -> list[Source]:
    """Shards named by paths, folders, globs and brace ranges, local or on any fsspec filesystem; sorted, each once.

    Raises:
        SourceError: a pattern that matches nothing, or a place that cannot be looked into.
    """
    found: dict[str, Source] = {}
    for pattern in patterns:
        try:
            expanded = bracex.expand(pattern, limit=0)
            by_name = {name: list(_match(name)) for name in expanded}
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(f"cannot look for shards at {pattern}: {error}") from error
        matches = [source for sources in by_name.values() for source in sources]
        missing = [name for name, sources in by_name.items() if not sources and not glob.has_magic(name)]
        if matches and missing:
            raise SourceError(
                f"{len(missing)} of {len(expanded)} shards named by {pattern} are not there: "
                f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}. "
                "Fetch them, or use a glob to take what is there"
            )
        if not matches:
            raise SourceError(
                f"nothing to read at {pattern}: expected tar shards ({', '.join(SHARD_SUFFIXES)}), a folder of them, "
                "a glob (quote it) or a brace range such as {00000..00099}.tar"
            )
        found |= {source.uri: source for source in matches}
    return [found[uri] for uri in sorted(found)]


def _match(pattern: str) -> Iterator[Source]:
    fs, path = fsspec.core.url_to_fs(pattern, use_listings_cache=False)
    if glob.has_magic(pattern):
        entries = fs.glob(path, detail=True)
    elif fs.isdir(path):
        entries = {entry["name"]: entry for entry in fs.ls(path, detail=True) if entry["name"].endswith(SHARD_SUFFIXES)}
    else:
        entries = {path: fs.info(path)} if fs.exists(path) else {}
    for name, entry in entries.items():
        # A local listing tells of a link, not of its target; a remote one saves a request for every shard.
        info = fs.info(name) if isinstance(fs, LocalFileSystem) else entry
        if info["type"] != "directory" and (name.endswith(SHARD_SUFFIXES) or not glob.has_magic(pattern)):
            yield _source(fs, name, info)


def _source(fs: Any, path: str, info: dict[str, Any]) -> Source:
    local = isinstance(fs, LocalFileSystem)
    version = f"{info['size']:x}-{info['mtime']}" if local else etag_of(info) or f"{info['size']}"
    return Source(uri=path if local else fs.unstrip_protocol(path), bytes=info["size"] or 0, etag=version)


def current_etag(uri: str) -> str:
    """The etag a source has now; SourceError when it is gone."""
    fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    try:
        return _source(fs, path, fs.info(path)).etag
    except FileNotFoundError:
        raise SourceError(f"shard {uri} is gone since it was planned: put it back, or embed without it") from None
