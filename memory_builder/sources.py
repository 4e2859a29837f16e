"""Find the shards that paths, folders, globs and brace ranges name, on any filesystem fsspec knows."""

import glob
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import bracex

from memory_builder.errors import SourceError
from memory_builder.imports import embeddings_etag
from memory_builder.plan import Source
from memory_builder.retry import is_local, open_filesystem, uri_of
from memory_builder.shards import folder, listing, parquet, webdataset
from memory_builder.shards.pairs import IMAGE_SUFFIXES
from memory_builder.storage import etag_of
from memory_builder.uris import Piece, join_uri, split_uri

TABLES_SPLIT_FROM_BYTES = 16 << 20
"""A smaller parquet file is one shard, and its footer need not be read to plan it."""
KINDS = (webdataset.SUFFIXES, parquet.SUFFIXES, listing.SUFFIXES)
"""By rank: what a folder holds of the first kind found in it are its shards."""
EXPECTED = (
    f"expected tars ({', '.join(webdataset.SUFFIXES)}), parquet files, listings ({', '.join(listing.SUFFIXES)}), "
    "a folder of such or of pictures, a glob (quote it) or a brace range such as {00000..00099}.tar"
)


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
            raise SourceError(f"nothing to read at {pattern}: {EXPECTED}")
        found |= {source.uri: source for source in matches}
    return [found[uri] for uri in sorted(found, key=_in_order)]


def _in_order(uri: str) -> tuple[str, str, int]:
    path, piece = split_uri(uri)
    return path, piece.folder or "", piece.items[0] if piece.items else 0


def _match(pattern: str) -> list[Source]:
    fs, path = open_filesystem(pattern)
    if glob.has_magic(pattern):
        entries = {name: info for name, info in fs.glob(path, detail=True).items() if _kind(name) is not None}
        return _shards(fs, entries)
    if fs.isdir(path):
        entries = {entry["name"]: entry for entry in fs.ls(path, detail=True)}
        ranks = {name: _kind(name) for name in entries}
        rank = min((rank for rank in ranks.values() if rank is not None), default=None)
        if rank is None or (rank == 2 and _has_pictures(entries)):  # such a listing describes the pictures, or is lost
            return _folders(fs, path)
        return _shards(fs, {name: entry for name, entry in entries.items() if ranks[name] == rank})
    return _shards(fs, {path: fs.info(path)}) if fs.exists(path) else []


def _kind(name: str) -> int | None:
    return next((rank for rank, suffixes in enumerate(KINDS) if name.endswith(suffixes)), None)


def _has_pictures(names: Any) -> bool:
    return any(folder.split_file_name(name)[1] in IMAGE_SUFFIXES for name in names)


def _folders(fs: Any, path: str) -> list[Source]:
    base = uri_of(fs, path)
    return [
        Source(uri=join_uri(base, piece), bytes=n_bytes, etag=etag) for piece, n_bytes, etag in folder.pieces(fs, path)
    ]


def _shards(fs: Any, entries: dict[str, Any]) -> list[Source]:
    """The files as sources; the tables that img2dataset puts beside its tars are part of those."""
    tables = {webdataset.table_beside(name) for name in entries if _kind(name) == 0}
    named = [(name, info) for name, info in entries.items() if name not in tables]
    with ThreadPoolExecutor(16) as threads:  # a footer to read for each large table, a link to follow for each file
        found = threads.map(lambda entry: list(_sources(fs, *entry)), named)
        return [source for sources in found for source in sources]


def _sources(fs: Any, name: str, entry: dict[str, Any]) -> Iterator[Source]:
    # A local listing tells of a link, not of its target; a remote one saves a request for every shard.
    info = fs.info(name) if is_local(fs) else entry
    if info["type"] == "directory":
        return
    whole = _source(fs, name, info)
    pieces = _pieces(whole)
    for piece in pieces:
        yield Source(uri=join_uri(whole.uri, piece), bytes=whole.bytes // len(pieces), etag=whole.etag)


def _pieces(source: Source) -> list[Piece]:
    """What a large table is cut into. One that cannot be read is a shard that fails, not a run that does."""
    with suppress(SourceError, OSError):
        return _cut(source)
    return [Piece()]


def _cut(source: Source) -> list[Piece]:
    if source.uri.endswith(parquet.SUFFIXES) and source.bytes >= TABLES_SPLIT_FROM_BYTES:
        return parquet.pieces(source.uri)
    if source.uri.endswith(listing.SUFFIXES):
        return listing.pieces(source.uri)
    return [Piece()]


def _source(fs: Any, path: str, info: dict[str, Any]) -> Source:
    version = f"{info['size']:x}-{info['mtime']}" if is_local(fs) else etag_of(info) or f"{info['size']}"
    return Source(uri=uri_of(fs, path), bytes=info["size"] or 0, etag=version)


def current_etag(uri: str) -> str:
    """The etag a source has now; SourceError when it is gone."""
    named, piece = split_uri(uri)
    fs, path = open_filesystem(named)
    try:
        if piece.embeddings is not None:
            return embeddings_etag(uri)
        return folder.measure(fs, path, piece)[1] if piece.folder is not None else _source(fs, path, fs.info(path)).etag
    except FileNotFoundError:
        raise SourceError(f"shard {uri} is gone since it was planned: put it back, or embed without it") from None
