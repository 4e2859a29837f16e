"""Read pairs from folders of pictures, each with its caption in a ``.txt`` or ``.json`` of the same name.

Every folder below the given one is a shard, a large one several. A pair's key is its path below the given folder.
"""

import os
import posixpath
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from memory_builder.readers.file_kinds import IMAGE_SUFFIXES, split_file_name
from memory_builder.readers.linked_pictures import fetch, read_ahead
from memory_builder.readers.pairs import BadPairError, Files, Pair, PairRules, Reject, pairs_of_files, printable
from memory_builder.readers.shard_uri import PAIRS_A_SHARD, Piece
from memory_builder.readers.sidecar_table import read_table_beside
from memory_builder.storage.filesystem import is_local, open_filesystem
from memory_builder.storage.store import sha256, version_of

_Entry = tuple[str, int, str]  # file name, bytes, version
_SUFFIXES = IMAGE_SUFFIXES | {"txt", "json"}


def read(root: str, piece: Piece, rules: PairRules) -> Iterator[Pair | Reject]:
    """Yield the pairs of one folder, or of some of its names.

    A table of img2dataset beside the folder, with the folder's name, is joined by key.
    """
    fs, path = open_filesystem(root)
    below = piece.folder or ""
    folder = _below(path, piece)
    names = _names(fs, path, piece)
    table = read_table_beside(f"{fs.unstrip_protocol(folder)}.parquet", rules.notes)
    wanted = (named for named in names.items() if _is_wanted(posixpath.join(below, named[0]), rules))
    for files in read_ahead(partial(_files, fs=fs, folder=folder, below=below), wanted):
        if not isinstance(files, Reject):
            files.fields, fault = table.describe(posixpath.basename(files.key))
            files.fault = files.fault or fault
        yield from [files] if isinstance(files, Reject) else pairs_of_files(files, rules)
    table.note(rules.notes, is_whole=rules.only is None and piece.items is None)


def pieces(fs: Any, path: str, folders: Iterable[str]) -> list[tuple[Piece, int, str]]:
    """Split folders, given by their paths below ``path``, into pieces: (piece, bytes, etag)."""
    result = []
    for below in sorted(folders):
        n_names = len(_names(fs, path, Piece(folder=below)))
        for start in range(0, n_names, PAIRS_A_SHARD):
            items = (start, start + PAIRS_A_SHARD) if n_names > PAIRS_A_SHARD else None
            piece = Piece(folder=below, items=items)
            result.append((piece, *measure(fs, path, piece)))
    return result


def measure(fs: Any, path: str, piece: Piece) -> tuple[int, str]:
    """Return (bytes, etag) of a piece; FileNotFoundError if it has no files."""
    entries = [entry for files in _names(fs, path, piece).values() for entry in files]
    if not entries:
        raise FileNotFoundError(_below(path, piece))
    return sum(size for _, size, _ in entries), sha256(repr(entries).encode())[:32]


def file_info(fs: Any, info: dict[str, Any]) -> dict[str, Any]:
    """Return a listed file's info; for a local link, that of its target."""
    if is_local(fs) and info.get("islink") and os.path.exists(info["name"]):
        target: dict[str, Any] = fs.info(info["name"])
        return target
    return info


def _below(path: str, piece: Piece) -> str:
    return posixpath.join(path, piece.folder) if piece.folder else path


def _names(fs: Any, path: str, piece: Piece) -> dict[str, list[_Entry]]:
    """Group the files by their name without suffix, in order."""
    names: dict[str, list[_Entry]] = {}
    for listed in fs.ls(_below(path, piece), detail=True):
        info = file_info(fs, listed)
        if info["type"] != "file":
            continue
        name = posixpath.basename(listed["name"])
        stem, suffix = split_file_name(name)
        if suffix in _SUFFIXES and not name.startswith("."):
            version = version_of(info)
            names.setdefault(stem, []).append((name, info["size"] or 0, version))
    start, stop = piece.items or (0, None)
    return {stem: sorted(names[stem]) for stem in sorted(names)[start:stop]}


def _is_wanted(key: str, rules: PairRules) -> bool:
    """Whether a pair with this stem is wanted; if a stem has several pictures, their keys include the suffix."""
    name = printable(key)
    return rules.only is None or name in rules.only or any(split_file_name(only)[0] == name for only in rules.only)


def _files(named: tuple[str, list[_Entry]], *, fs: Any, folder: str, below: str) -> Files | Reject:
    stem, entries = named
    files = Files(posixpath.join(below, stem))
    try:
        for name, _, _ in entries:
            files.add(split_file_name(name)[1], name, fetch(fs, posixpath.join(folder, name)))
    except BadPairError as bad:
        return Reject(key=printable(files.key), reason=str(bad))
    return files
