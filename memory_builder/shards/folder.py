"""Folders of pictures, each with its caption in a ``.txt`` or ``.json`` of the same name → pairs.

Every folder below the one that was named is a shard, a large one several. The key is the path below the named one.
"""

import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any

from memory_builder.retry import open_filesystem
from memory_builder.shards.links import fetch, read_ahead
from memory_builder.shards.pairs import (
    IMAGE_SUFFIXES,
    BadPairError,
    Files,
    Pair,
    PairRules,
    Reject,
    pair_of_files,
    printable,
)
from memory_builder.storage import sha256, version_of
from memory_builder.uris import PAIRS_A_SHARD, Piece

_Entry = tuple[str, int, str]  # file name, bytes, what changes with its content
_SUFFIXES = IMAGE_SUFFIXES | {"txt", "json"}


def read(root: str, piece: Piece, rules: PairRules) -> Iterator[Pair | Reject]:
    """The pairs of one folder, or of some of its names."""
    fs, path = open_filesystem(root)
    names = _names(fs, path, piece)
    below = piece.folder or ""
    wanted = (named for named in names.items() if rules.wants(printable(posixpath.join(below, named[0]))))
    return read_ahead(partial(_pair, fs=fs, folder=_below(path, piece), below=below, rules=rules), wanted)


def pieces(fs: Any, path: str) -> list[tuple[Piece, int, str]]:
    """(piece, bytes, etag) of every folder at or below a path that holds pictures or texts."""
    found = []
    for folder in sorted(where for where, _, _ in fs.walk(path)):
        below = folder.removeprefix(path).strip("/")
        n_names = len(_names(fs, path, Piece(folder=below)))
        for start in range(0, n_names, PAIRS_A_SHARD):
            items = (start, start + PAIRS_A_SHARD) if n_names > PAIRS_A_SHARD else None
            piece = Piece(folder=below, items=items)
            found.append((piece, *measure(fs, path, piece)))
    return found


def measure(fs: Any, path: str, piece: Piece) -> tuple[int, str]:
    """(bytes, etag) of a piece; FileNotFoundError when it is gone."""
    entries = [entry for files in _names(fs, path, piece).values() for entry in files]
    if not entries:
        raise FileNotFoundError(_below(path, piece))
    return sum(size for _, size, _ in entries), sha256(repr(entries).encode())[:32]


def split_file_name(name: str) -> tuple[str, str]:
    """``a/10.12.PNG`` → (``a/10.12``, ``png``): unlike in a tar, at the last dot, as people name their files."""
    stem, suffix = posixpath.splitext(name)
    return stem, suffix[1:].lower()


def _below(path: str, piece: Piece) -> str:
    return posixpath.join(path, piece.folder) if piece.folder else path


def _names(fs: Any, path: str, piece: Piece) -> dict[str, list[_Entry]]:
    """Name without suffix → its files, in order of the names."""
    names: dict[str, list[_Entry]] = {}
    for info in fs.ls(_below(path, piece), detail=True):
        if info["type"] != "file":
            continue
        name = posixpath.basename(info["name"])
        stem, suffix = split_file_name(name)
        if suffix in _SUFFIXES and not name.startswith("."):
            version = version_of(info)
            names.setdefault(stem, []).append((name, info["size"] or 0, version))
    start, stop = piece.items or (0, None)
    return {stem: sorted(names[stem]) for stem in sorted(names)[start:stop]}


def _pair(named: tuple[str, list[_Entry]], *, fs: Any, folder: str, below: str, rules: PairRules) -> Pair | Reject:
    stem, entries = named
    files = Files(posixpath.join(below, stem))
    try:
        for name, _, _ in entries:
            files.members[split_file_name(name)[1]] = (name, fetch(fs, posixpath.join(folder, name)))
    except BadPairError as bad:
        return Reject(key=printable(files.key), reason=str(bad))
    return pair_of_files(files, rules)
