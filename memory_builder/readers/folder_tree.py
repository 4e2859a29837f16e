"""Select the shards among all files below a folder; count the other files by kind.

The shards are files of the first kind that exists: tars, then parquet tables, then listings, then folders of pictures.
Two kinds of table are not shards: img2dataset's tables beside its tars and folders, which are joined to those, and a
listing beside pictures that names none of them.
"""

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from memory_builder.errors import SourceError
from memory_builder.readers import listing, parquet
from memory_builder.readers.file_kinds import is_hidden, kind_of, split_file_name
from memory_builder.readers.folder import file_info
from memory_builder.readers.sidecar_table import has_keys
from memory_builder.readers.webdataset import table_beside
from memory_builder.storage.filesystem import is_local

STATS = "_stats.json"  # img2dataset's, beside each shard


@dataclass(slots=True)
class Selection:
    """The shards of a folder."""

    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path → the filesystem's info of the file."""
    folders: list[str] = field(default_factory=list)
    """Folders of pictures, by their path below the root."""
    passed_over: list[str] = field(default_factory=list)
    """Files that are neither shards nor part of one, by their path below the root."""


def select(fs: Any, root: str) -> Selection:
    """Select the shards of a folder and all folders below it."""
    every = dict(sorted(_walk(fs, root)))
    files = {path: info for path, info in every.items() if _is_stored(path, info) and not is_hidden(path[len(root) :])}
    by_kind: dict[str | None, list[str]] = {}
    for path in files:
        by_kind.setdefault(kind_of(path), []).append(path)
    pictures = set(by_kind.get("picture", ()))
    with_pictures = {posixpath.dirname(path) for path in pictures}
    tars = by_kind.get("tar", [])
    beside = {table_beside(path) for path in tars}
    beside |= {path for path in by_kind.get("parquet", ()) if _describes_folder(fs, path, with_pictures)}
    tables = [path for path in by_kind.get("parquet", ()) if path not in beside]
    links = (
        {path: _pictures_named(fs, path) & pictures for path in (*tables, *by_kind.get("listing", ()))}
        if pictures
        else {}
    )
    listings = [path for path in by_kind.get("listing", ()) if links.get(path) or not pictures]
    shards = tars or tables or listings
    named = set[str]().union(*(links.get(path, ()) for path in shards))
    folders: set[str] = set()
    if shards is listings or not shards:
        folders = with_pictures - {posixpath.dirname(path) for path in named}
        if not shards and not pictures:
            folders = {posixpath.dirname(path) for path in files if split_file_name(path)[1] in ("txt", "json")}
    taken = {*shards, *named, *beside}
    taken |= {path for path in files if posixpath.dirname(path) in folders and _is_of_folder(path)}
    units = {*shards, *folders}
    taken |= {path for path in files if _is_statistics(path, units)}
    return Selection(
        shards={path: files[path] for path in shards},
        folders=sorted(path[len(root) :].strip("/") for path in folders),
        passed_over=[path[len(root) :].strip("/") for path in every if path not in taken],
    )


def _walk(fs: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, info) of every file below a folder; follow links, but enter each folder once."""
    if not is_local(fs):
        yield from _without_markers(root, fs.find(root, detail=True)).items()
        return
    left, seen = [root], {os.path.realpath(root)}
    while left:
        for listed in fs.ls(left.pop(), detail=True):
            info = file_info(fs, listed)
            if info["type"] != "directory":
                yield listed["name"], info
            elif (real := os.path.realpath(listed["name"])) not in seen:
                seen.add(real)
                left.append(listed["name"])


def _without_markers(root: str, files: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Leave out the empty objects that represent folders in an object store."""
    folders = {root.rstrip("/")}
    for path in files:
        while (path := posixpath.dirname(path)) not in folders and len(path) > len(root):
            folders.add(path)
    return {path: info for path, info in files.items() if not path.endswith("/") and path not in folders}


def _is_stored(path: str, info: dict[str, Any]) -> bool:
    """Whether a path is a regular file, or a broken link with a shard's name, which then fails as a shard."""
    is_lost_shard = bool(info.get("islink")) and kind_of(path) not in (None, "picture")
    return info["type"] == "file" or is_lost_shard


def _describes_folder(fs: Any, path: str, with_pictures: set[str]) -> bool:
    """Whether a table is img2dataset's beside a folder of pictures."""
    stem = path.removesuffix(".parquet")
    return stem != path and stem in with_pictures and has_keys(fs.unstrip_protocol(path))


def _is_of_folder(path: str) -> bool:
    return kind_of(path) == "picture" or split_file_name(path)[1] in ("txt", "json")


def _is_statistics(path: str, shards: set[str]) -> bool:
    stem = path.removesuffix(STATS)
    return stem != path and any(f"{stem}{suffix}" in shards for suffix in ("", ".tar", ".parquet"))


def _pictures_named(fs: Any, path: str) -> set[str]:
    """Return the paths of the pictures that a listing names; empty if it cannot be read."""
    folder = posixpath.dirname(path)
    try:
        reader = parquet if kind_of(path) == "parquet" else listing
        links = reader.links(fs.unstrip_protocol(path))
        return {posixpath.normpath(posixpath.join(folder, link)) for link in links}
    except (SourceError, OSError):
        return set()
