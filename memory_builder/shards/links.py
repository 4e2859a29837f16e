"""Rows that name a picture → pairs: the files are fetched some ahead, in threads, in order.

A table that came from elsewhere must not make us read this machine's files: a remote one may name remote pictures and
what lies beside or below it, a local one local pictures too.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import fsspec

from memory_builder.ahead import map_ahead
from memory_builder.retry import is_local, open_filesystem, uri_of
from memory_builder.shards.pairs import BadPairError, Break, Pair, PairRules, Reject, caption_of, check_sides, printable
from memory_builder.shards.tars import MAX_MEMBER_BYTES

FETCH_THREADS = 16
FETCH_AHEAD = 64

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: the picture itself or where it is, and everything else."""

    key: str
    image: bytes | None
    link: str | None
    fields: dict[str, Any]
    fault: str | None = None
    member: str | None = None
    """Where the row is, when the picture is inside it."""


def pairs_of_rows(rows: Iterable[Row | Break], table: str, rules: PairRules) -> Iterator[Pair | Reject | Break]:
    """The pairs of a table that lies at ``table``."""
    wanted = (row for row in rows if isinstance(row, Break) or rules.wants(printable(row.key)))
    return read_ahead(partial(_pair, table=table, rules=rules), wanted)


def read_ahead(load: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Pairs whose files are waited for rather than worked on."""
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        yield from map_ahead(load, items, threads, FETCH_AHEAD)


def _pair(row: Row | Break, *, table: str, rules: PairRules) -> Pair | Reject | Break:
    if isinstance(row, Break):
        return row
    key = printable(row.key)
    try:
        if row.fault and not rules.pictures_only:
            raise BadPairError(row.fault)
        caption = caption_of({}, row.fields, rules)
        image = row.image if row.link is None else fetch_link(resolve(row.link, table))
        if image is not None and not image:
            raise BadPairError("empty image file")
        check_sides(image is not None, caption is not None, rules)
    except BadPairError as bad:
        return Reject(key=key, reason=str(bad))
    fields = row.fields
    if row.link is not None and "://" in row.link:
        fields = {"url": row.link} | fields
    member = row.member if row.link is None else printable(row.link)
    return Pair(key=key, image=image, caption=caption, member=member, fields=fields)


def resolve(link: str, table: str) -> str:
    """Where a link of a table leads.

    Raises:
        BadPairError: to where it must not.
    """
    fs, path = fsspec.core.url_to_fs(table)
    local = is_local(fs)
    if "://" in link:
        scheme = link.split("://", 1)[0]
        if scheme not in ("http", "https", "s3", "s3a", "gs", "gcs", "abfs", "az") and not (local and scheme == "file"):
            raise BadPairError(f"link of a kind that is not followed ({printable(scheme)[:20]})")
        return link
    if posixpath.isabs(link):
        if not local:
            raise BadPairError("link to a local file in a table that is not local")
        return link
    if ".." in link.split("/"):
        raise BadPairError("link leaves its folder")
    beside = posixpath.join(posixpath.dirname(path), link)
    return uri_of(fs, beside)


def fetch_link(link: str) -> bytes:
    """What lies at a path or URI.

    Raises:
        BadPairError: as ``fetch``, or what is needed to go there is not installed.
    """
    try:
        fs, path = open_filesystem(link)
    except ImportError as error:  # fsspec says of which package
        raise BadPairError(f"file cannot be fetched ({error})") from None
    return fetch(fs, path)


def fetch(fs: Any, path: str) -> bytes:
    """The file's content.

    Raises:
        BadPairError: it is not there, too large, or cannot be had.
    """
    try:
        with fs.open(path, "rb") as file:
            data: bytes = file.read(MAX_MEMBER_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadPairError("no such file") from None
    except PermissionError:
        raise BadPairError("file may not be read") from None
    except Exception:  # whatever this filesystem raises once it has tried often enough
        raise BadPairError("file cannot be fetched") from None
    if len(data) > MAX_MEMBER_BYTES:
        raise BadPairError(f"file larger than {MAX_MEMBER_BYTES >> 20} MiB")
    return data
