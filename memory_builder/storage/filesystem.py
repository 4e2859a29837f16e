"""Storage far away that fails now and then is asked again; how often is counted.

Each library tries again what it knows how to: botocore the requests to S3 and s3fs the bodies that break off, gcsfs its
own. They are told how long to go on here. What http(s) needs is here, because nobody else does it.
"""

import asyncio
import os
import random
import threading
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

ATTEMPTS = 8
"""Of one request. Of requests that fail one time in five, one in 400,000 then fails for good."""
LONGEST_PAUSE_S = 10.0
PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class Tally:
    """Requests of this process that were made again, and not reported yet."""

    def __init__(self) -> None:
        self._n = 0
        self._lock = threading.Lock()  # requests end in threads of several libraries

    def add(self) -> None:
        """One more."""
        with self._lock:
            self._n += 1

    def take(self) -> int:
        """How many since the last time; from now on they count as reported."""
        with self._lock:
            n, self._n = self._n, 0
            return n


RETRIES = Tally()


def is_local(fs: Any) -> bool:
    """Whether a filesystem is this machine's."""
    return isinstance(fs, LocalFileSystem)


def uri_of(fs: Any, path: str) -> str:
    """The name by which anyone may find what lies at a path of a filesystem: a local path, or a URL."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def open_filesystem(url: str, **options: Any) -> tuple[Any, str]:
    """As ``fsspec.core.url_to_fs``: a filesystem that never caches listings and is patient, and the path there.

    Args:
        url: a local path or any fsspec URL.
        options: of the filesystem; those given here win over ours.
    """
    if "://" not in url:  # fsspec takes :: for a chain and x: for a protocol, and both may be in a file's name
        url = f"file://{os.path.abspath(url)}"
    protocol = fsspec.utils.get_protocol(url)
    if protocol in ("http", "https"):
        options.setdefault("client_kwargs", {}).setdefault("middlewares", (_try_again,))
    elif protocol in ("s3", "s3a"):
        retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        options["config_kwargs"] = {"retries": retries} | options.get("config_kwargs", {})
    if protocol in ("file", "local"):
        fs, path = LocalFileSystem(**options), url.removeprefix(f"{protocol}://")
    else:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    if is_local(fs):
        path = os.path.normpath(path)  # one file, one name: what is done already is known by it
    if protocol in ("s3", "s3a"):
        fs.connect()  # asks nobody anything yet
        fs.s3.meta.events.register("needs-retry.s3", _count, unique_id="memory-builder-retries")
    return fs, path


def _count(attempts: int, **_: Any) -> None:
    """Called by botocore with every answer to a request, or the lack of one."""
    if attempts > 1:
        RETRIES.add()


async def _try_again(request: "ClientRequest", handler: "ClientHandlerType") -> "ClientResponse":
    """What aiohttp calls in place of a request: make it until it is answered with something that lasts."""
    import aiohttp

    for attempt in range(1, ATTEMPTS):
        try:
            response = await handler(request)
            if response.status == 206:
                await response.read()  # a range is small: should it break off, that shows now
            if response.status not in PASSING_STATUSES:
                return response
            response.release()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
            pass
        await asyncio.sleep(min(LONGEST_PAUSE_S, random.random() * 2 ** (attempt - 1)))
        RETRIES.add()
    return await handler(request)
