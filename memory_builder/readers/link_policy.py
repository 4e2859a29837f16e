"""Resolve links to pictures and decide which are followed, for embedding, the service, retrieval and training alike.

Trust depends on the origin of data, not on the location of a file. A table or memory from elsewhere may link neither to
local files nor to private addresses, unless the caller names the folder or the host.
"""

import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from memory_builder.readers.pairs import BadPairError
from memory_builder.storage.filesystem import is_local, open_filesystem, uri_of

WEB = ("http", "https")
CLOUD = ("s3", "s3a", "gs", "gcs", "abfs", "az")
_SCHEME = re.compile(r"([a-zA-Z][\w+.-]*)://")
KERNEL_FOLDERS = ("/proc", "/sys", "/dev")
NOT_NAMED = "shard was not embedded from here (--local-root names folders that may be read)"
NO_URL = "link is no URL"
OUTSIDE = "link leads out of its source's folder (--local-root names folders that may be read)"


@dataclass(frozen=True, slots=True)
class Target:
    """Checked target of a link: a local path, or a URI with the hosts that requests may go to."""

    uri: str
    is_local: bool
    hosts: tuple[str, ...] = ()
    is_own_host: bool = False
    """The host is the source's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkPolicy:
    """Rules for the shards and links that may be read to get the pictures of rows.

    A shard, and the files in its folder, may be read if it is one of ``sources`` or inside one of ``roots``. Links to
    http(s) are followed to public addresses and to ``hosts``; all other links, symbolic ones too, must stay in the
    folder of such a shard or in one of ``roots``.
    """

    sources: frozenset[str] = frozenset()
    """Shards (``uri`` without a piece) that this user embedded."""
    roots: tuple[str, ...] = ()
    """Local folders or URL prefixes that the caller allows."""
    hosts: tuple[str, ...] = ()
    """Hosts, or HOST:PORT, that requests may go to although their addresses are not public."""
    follows_named: bool = False
    """For embedding, where the caller names the sources: a local table may then link to any local picture."""

    def and_sources(self, sources: Iterable[str]) -> "LinkPolicy":
        """Return a copy with more shards that may be opened."""
        return replace(self, sources=self.sources.union(sources))

    def shard(self, path: str) -> None:
        """Check that a shard may be opened.

        Raises:
            BadPairError: the shard may not be opened.
        """
        if not (self.follows_named or path in self.sources or ("::" not in path and self._in_roots(path))):
            raise BadPairError(NOT_NAMED)

    def member(self, folder: str, member: str) -> Target:
        """Resolve a file of a folder of pictures.

        Args:
            folder: the folder that is the source.
            member: path below it.

        Raises:
            BadPairError: the file may not be read.
        """
        self.shard(folder)
        fs, root = open_filesystem(folder)
        path = posixpath.join(root, member)
        if not is_local(fs):
            if posixpath.isabs(member) or leaves_folder(member):
                raise BadPairError("link leaves its folder")
            return _target(uri_of(fs, path), self.hosts, own=folder)
        if not is_inside(path, root) and not self._in_roots(path):
            raise BadPairError(OUTSIDE)
        return Target(path, is_local=True)

    def link(self, link: str, table: str) -> Target:
        """Resolve the link of a table's row.

        Args:
            link: a path or URI.
            table: path or URI of the table.

        Raises:
            BadPairError: the link may not be followed.
        """
        scheme = match[1].lower() if (match := _SCHEME.match(link)) else None
        link = link if scheme is None else scheme + link[len(scheme) :]
        if scheme in WEB:
            if not _host_of(link):
                raise BadPairError(NO_URL)
            own = table if self.follows_named or table in self.sources else None
            return _target(link, self.hosts, own=own)
        if scheme in CLOUD:
            return self._cloud(link, table)
        if scheme is not None and scheme != "file":
            raise BadPairError(f"link of a kind that is not followed ({scheme[:20]})")
        if "\0" in link:
            raise BadPairError("no such file")
        fs, path = open_filesystem(table)
        name = link if scheme is None else _path_of(link)
        if not is_local(fs) and scheme is None and not posixpath.isabs(name):
            return self._beside(name, table, uri_of(fs, posixpath.join(posixpath.dirname(path), name)))
        return self._local(name, posixpath.dirname(path) if is_local(fs) else None, table)

    def _beside(self, name: str, table: str, uri: str) -> Target:
        """Resolve a file beside or below a remote table."""
        self.shard(table)
        if leaves_folder(name):
            raise BadPairError("link leaves its folder")
        return _target(uri, self.hosts, own=table)

    def _cloud(self, link: str, table: str) -> Target:
        """Resolve an object of a store that needs credentials: ours are used only for sources that the caller named."""
        is_near = table in self.sources and _is_below(link, posixpath.dirname(table))
        if not (self.follows_named or is_near or self._in_roots(link)):
            raise BadPairError(OUTSIDE)
        return Target(link, is_local=False)

    def _local(self, name: str, folder: str | None, table: str) -> Target:
        """Resolve a local file; ``folder`` is the table's, if the table is local too."""
        is_relative = not posixpath.isabs(name)
        if folder is not None:
            path = posixpath.join(folder, name)
            if self.follows_named:
                if is_relative and ".." in name.split("/"):
                    raise BadPairError("link leaves its folder")
                return Target(path, is_local=True)
            if table in self.sources and is_inside(path, folder):
                return Target(path, is_local=True)
        starts = [start for start in (folder, *self.roots) if start is not None] if is_relative else [""]
        for path in (posixpath.join(start, name) for start in starts):
            if self._in_roots(path) and os.path.exists(path):
                return Target(path, is_local=True)
        if folder is None and not self.roots:
            raise BadPairError("link to a local file in a table that is not local")
        raise BadPairError(OUTSIDE)

    def _in_roots(self, path: str) -> bool:
        """Whether a path or URI is inside one of ``roots``."""
        scheme = _SCHEME.match(path)
        if scheme is None or scheme[1] == "file":
            roots = [root for root in self.roots if not _SCHEME.match(root) or root.startswith("file:")]
            return any(is_inside(_path_of(path), _path_of(root)) for root in roots)
        return any(_is_below(path, root) for root in self.roots)


def _target(uri: str, hosts: tuple[str, ...], own: str | None) -> Target:
    """Make the target of a URI; requests to its source's own host are allowed even at a private address."""
    netloc = _host_of(own) if own is not None and own.startswith(("http://", "https://")) else ""
    is_own = bool(netloc) and _host_of(uri) == netloc
    return Target(uri, is_local=False, hosts=(*hosts, netloc) if is_own else hosts, is_own_host=is_own)


def _host_of(url: str) -> str:
    """Return host and port of a URL; empty if it is not a URL."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _path_of(link: str) -> str:
    """Return the local path of a path or ``file:`` URL."""
    if not link.startswith("file:"):
        return link
    parts = urlsplit(link)
    if parts.netloc not in ("", "localhost"):
        raise BadPairError("link to a file of another machine")
    return link.split("://", 1)[-1].removeprefix(parts.netloc) if "://" in link else link.removeprefix("file:")


def _is_below(uri: str, root: str) -> bool:
    """Whether a URI is below another, without steps upwards or chained protocols."""
    return uri.startswith(f"{root.rstrip('/')}/") and "::" not in uri and not leaves_folder(uri)


def leaves_folder(name: str) -> bool:
    """Whether a name has a step upwards, plain or percent-encoded."""
    return ".." in re.split(r"[/\\]", unquote(name))


def is_inside(path: str, folder: str) -> bool:
    """Whether a local path, with symbolic links resolved, is inside a folder."""
    try:
        root, real = os.path.realpath(folder), os.path.realpath(path)
    except (OSError, ValueError):
        return False
    return os.path.commonpath([root, real]) == root and not is_kernel_path(real)


def is_kernel_path(real: str) -> bool:
    """Whether a path is in /proc, /sys or /dev, which hold no stored files."""
    return any(real == folder or real.startswith(f"{folder}/") for folder in KERNEL_FOLDERS)
