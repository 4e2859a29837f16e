"""Turn rows with links to pictures into pairs: files are fetched ahead in threads, and pairs keep their order.

``link_policy.py`` decides which links are followed.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from memory_builder.base.prefetch import map_ahead
from memory_builder.readers.columns import Row
from memory_builder.readers.link_policy import LinkPolicy, Target, is_kernel_path
from memory_builder.readers.pairs import (
    BadPairError,
    Pair,
    PairRules,
    Reject,
    Truncated,
    caption_of,
    check_sides,
    printable,
)
from memory_builder.readers.tar_stream import MAX_MEMBER_BYTES
from memory_builder.readers.transport import TransportError
from memory_builder.readers.web import fetch_url
from memory_builder.storage.filesystem import open_filesystem

FETCH_THREADS = 16
FETCH_AHEAD = 64

Item = TypeVar("Item")
Result = TypeVar("Result")


def pairs_of_rows(rows: Iterable[Row | Truncated], table: str, rules: PairRules) -> Iterator[Pair | Reject | Truncated]:
    """Yield the pairs of the table at path or URI ``table``."""
    wanted = (row for row in rows if isinstance(row, Truncated) or rules.wants(printable(row.key)))
    policy = LinkPolicy(follows_named=True, hosts=rules.allow_hosts)
    return read_ahead(partial(_pair, table=table, rules=rules, policy=policy), wanted)


def read_ahead(load: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Load items ahead in many threads: loading waits for storage and needs little CPU."""
    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        yield from map_ahead(load, items, threads, FETCH_AHEAD)


def _pair(row: Row | Truncated, *, table: str, rules: PairRules, policy: LinkPolicy) -> Pair | Reject | Truncated:
    if isinstance(row, Truncated):
        return row
    key = printable(row.key)
    try:
        if row.fault and not rules.pictures_only:
            raise BadPairError(row.fault)
        caption = caption_of({}, row.fields, rules)
        image = row.image if row.link is None else fetch_target(policy.link(row.link, table))
        if image is not None and not image:
            raise BadPairError("empty image file")
        check_sides(image is not None, caption is not None, rules)
    except BadPairError as bad:
        return Reject(key=key, reason=str(bad))
    fields = row.fields
    if row.link is not None and "://" in row.link:
        fields = {"url": row.link} | fields
    member = row.member if row.link is None else printable(row.link)
    return Pair(key=key, image=image, caption=caption, member=member, fields=fields, is_numbered=row.is_numbered)


def fetch_target(target: Target) -> bytes:
    """Read the target of a link.

    Raises:
        BadPairError: as ``fetch`` and ``fetch_url``, or the filesystem's package is not installed.
    """
    if target.is_local:
        return _read_regular(target.uri)
    if target.uri.startswith(("http://", "https://")):
        return fetch_url(target)
    try:
        fs, path = open_filesystem(target.uri)
    except ImportError as error:  # fsspec names the package
        raise BadPairError(f"file cannot be fetched ({error})") from None
    try:
        return fetch(fs, path)
    except TransportError:
        raise BadPairError("file cannot be fetched") from None


def _read_regular(path: str) -> bytes:
    """Read a regular local file; a device or pipe might never end."""
    if is_kernel_path(os.path.realpath(path)):
        raise BadPairError("not a regular file")
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISDIR(status.st_mode):
                raise BadPairError("no such file")
            if not stat.S_ISREG(status.st_mode):
                raise BadPairError("not a regular file")
            if status.st_size > MAX_MEMBER_BYTES:
                raise BadPairError(f"file larger than {MAX_MEMBER_BYTES >> 20} MiB")
            return file.read(MAX_MEMBER_BYTES)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise BadPairError("no such file") from None
    except PermissionError:
        raise BadPairError("file may not be read") from None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise BadPairError("file cannot be fetched") from None


def fetch(fs: Any, path: str) -> bytes:
    """Read a file.

    Raises:
        BadPairError: the file is missing, too large, or may not be read.
        TransportError: its storage fails after all retries.
    """
    try:
        with fs.open(path, "rb") as file:
            data: bytes = file.read(MAX_MEMBER_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise BadPairError("no such file") from None
    except PermissionError:
        raise BadPairError("file may not be read") from None
    except Exception as error:  # any exception of the filesystem after its retries
        raise TransportError(f"{type(error).__name__}: {error}") from error
    if len(data) > MAX_MEMBER_BYTES:
        raise BadPairError(f"file larger than {MAX_MEMBER_BYTES >> 20} MiB")
    return data
