"""Find the shards named by paths, folders, globs and brace ranges, on any fsspec filesystem."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import bracex

from memory_builder.base.arguments import several, shortened
from memory_builder.base.log import logger
from memory_builder.errors import SourceError
from memory_builder.readers import folder, listing, parquet, webdataset
from memory_builder.readers.file_kinds import SUFFIXES, describe_passed_over, is_hidden, kind_of
from memory_builder.readers.folder import file_info
from memory_builder.readers.folder_tree import Selection, select
from memory_builder.readers.published import published_etag
from memory_builder.readers.shard import Source
from memory_builder.readers.shard_uri import Piece, join_uri, split_uri
from memory_builder.storage.filesystem import is_local, open_filesystem, uri_of
from memory_builder.storage.store import etag_of

TABLES_SPLIT_FROM_BYTES = 16 << 20
"""Size of the smallest parquet file that is split; planning a smaller one needs no read of its footer."""
EXPECTED = (
    f"expected tars ({', '.join(SUFFIXES['tar'])}), parquet files, listings (.csv, .tsv, .jsonl, .ndjson, "
    "compressed or not), a folder of these or of pictures, a glob (quote it) or a brace range such as "
    "{00000..00099}.tar"
)


def find_sources(patterns: str | Sequence[str]) -> list[Source]:
    """Find the shards named by paths, folders, globs and brace ranges on any fsspec filesystem; sorted, each once.

    A path that exists is taken literally, whatever characters it holds. Files in a folder that belong to no shard are
    counted in one log line.

    Raises:
        SourceError: a pattern matches nothing, or a folder cannot be listed.
    """
    sources: dict[str, Source] = {}
    for pattern in several(patterns):
        passed_over: list[str] = []
        try:
            names = [pattern] if _exists(pattern) else list(bracex.expand(pattern, limit=0))
            by_name = {name: list(_match(name, passed_over)) for name in names}
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(f"cannot list shards at {pattern}: {error}") from error
        matches = [source for matched in by_name.values() for source in matched]
        missing = [name for name, matched in by_name.items() if not matched and not glob.has_magic(name)]
        rest = f"passed over in {pattern}: {describe_passed_over(passed_over)}" if passed_over else ""
        if matches and missing:
            raise SourceError(
                f"{len(missing)} of {len(names)} shards named by {pattern} are missing: "
                f"{shortened(missing)}. "
                "Fetch them, or use a glob to take the existing ones"
            )
        if not matches:
            raise SourceError(f"nothing to read at {pattern}: {EXPECTED}{'; ' * bool(rest)}{rest}")
        if rest:
            logger.info(rest)
        sources |= {source.uri: source for source in matches}
    return _each_once(sources[uri] for uri in sorted(sources, key=_in_order))


def _each_once(sources: Iterable[Source]) -> list[Source]:
    """Keep the first of local files that are links to each other."""
    by_path: dict[str, Source] = {}
    for source in sources:
        path, piece = split_uri(source.uri)
        real = join_uri(os.path.realpath(path), piece) if os.path.exists(path) else source.uri
        by_path.setdefault(real, source)
    return list(by_path.values())


def _in_order(uri: str) -> tuple[str, str, int]:
    path, piece = split_uri(uri)
    return path, piece.folder or "", piece.items[0] if piece.items else 0


def _exists(name: str) -> bool:
    fs, path = open_filesystem(name)
    return bool(fs.exists(path))


def _match(name: str, passed_over: list[str]) -> Iterator[Source]:
    """Yield the sources of one name; add the unused files of a folder to ``passed_over``."""
    fs, path = open_filesystem(name)
    if not fs.exists(path):
        yield from _glob(fs, path, passed_over) if glob.has_magic(name) else ()
    elif fs.isdir(path):
        yield from _folder(fs, path, passed_over)
    elif kind_of(path) == "picture":
        raise SourceError(f"{name} is a picture: name its folder, or a listing of pictures")
    else:
        yield from _shards(fs, {path: fs.info(path)})


def _glob(fs: Any, pattern: str, passed_over: list[str]) -> Iterator[Source]:
    """Yield the shards among the matching files, or if there are none, those of the matching folders."""
    start = pattern[: next((i for i, character in enumerate(pattern) if character in "*?["), None)].rpartition("/")[0]
    named_hidden = pattern.rstrip("/").rsplit("/", 1)[-1].startswith((".", "_"))
    entries = {path.rstrip("/"): file_info(fs, info) for path, info in fs.glob(pattern, detail=True).items()}
    folders = sorted(path for path, info in entries.items() if info["type"] == "directory")
    tars = [path for path in entries if kind_of(path) == "tar"]
    beside = {webdataset.table_beside(path) for path in tars} | {f"{path}.parquet" for path in folders}
    files = {}
    for path, info in entries.items():
        if info["type"] == "directory" or path in beside:
            continue
        is_taken = kind_of(path) not in (None, "picture") and (named_hidden or not is_hidden(path[len(start) :]))
        if is_taken:
            files[path] = info
        else:
            passed_over.append(path.rsplit("/", 1)[-1])
    yield from _shards(fs, files)
    for path in folders:
        if not files:
            yield from _folder(fs, path, passed_over)


def _folder(fs: Any, path: str, passed_over: list[str]) -> Iterator[Source]:
    selection: Selection = select(fs, path)
    passed_over += selection.passed_over
    yield from _shards(fs, selection.shards)
    base = uri_of(fs, path)
    for piece, n_bytes, etag in folder.pieces(fs, path, selection.folders):
        yield Source(uri=join_uri(base, piece), bytes=n_bytes, etag=etag)


def _shards(fs: Any, entries: dict[str, Any]) -> Iterator[Source]:
    with ThreadPoolExecutor(16) as threads:  # reads a footer for each large table, follows a link for each file
        for sources in threads.map(lambda entry: list(_sources(fs, *entry)), entries.items()):
            yield from sources


def _sources(fs: Any, name: str, entry: dict[str, Any]) -> Iterator[Source]:
    # A local listing describes a link, not its target; a remote one saves a request for every shard.
    info = fs.info(name) if is_local(fs) else entry
    if info["type"] == "directory":
        return
    whole = _source(fs, name, info)
    pieces = _pieces(whole)
    for piece in pieces:
        yield Source(uri=join_uri(whole.uri, piece), bytes=whole.bytes // len(pieces), etag=whole.etag)


def _pieces(source: Source) -> list[Piece]:
    """Split a large table into pieces. An unreadable one becomes one shard, which fails alone, not the run."""
    with suppress(SourceError, OSError):
        return _split(source)
    return [Piece()]


def _split(source: Source) -> list[Piece]:
    kind = kind_of(source.uri)
    if kind == "parquet" and source.bytes >= TABLES_SPLIT_FROM_BYTES:
        return parquet.pieces(source.uri)
    if kind == "listing":
        return listing.pieces(source.uri)
    return [Piece()]


def _source(fs: Any, path: str, info: dict[str, Any]) -> Source:
    version = f"{info['size']:x}-{info['mtime']}" if is_local(fs) else etag_of(info) or f"{info['size']}"
    return Source(uri=uri_of(fs, path), bytes=info["size"] or 0, etag=version)


def current_etag(uri: str) -> str:
    """Return the current etag of a source; SourceError if it is missing."""
    named, piece = split_uri(uri)
    fs, path = open_filesystem(named)
    try:
        if piece.is_published:
            return published_etag(uri)
        return folder.measure(fs, path, piece)[1] if piece.folder is not None else _source(fs, path, fs.info(path)).etag
    except FileNotFoundError:
        raise SourceError(f"shard {uri} is missing since it was planned: restore it, or embed without it") from None
