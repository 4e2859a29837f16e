"""Open fsspec filesystems that retry failed requests, and count the retries.

botocore retries requests to S3, s3fs truncated bodies, gcsfs its own requests; the number of attempts is set here.
Retries over http(s) are implemented here, because no library does them.
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
"""Attempts per request: if one attempt in five fails, one request in 400,000 fails for good."""
LONGEST_PAUSE_S = 10.0
TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


class Tally:
    """Count of the retries in this process since the last report."""

    def __init__(self) -> None:
        self._n = 0
        self._lock = threading.Lock()  # requests end in threads of several libraries

    def add(self) -> None:
        """Count one retry."""
        with self._lock:
            self._n += 1

    def take(self) -> int:
        """Return the count and reset it to 0."""
        with self._lock:
            n, self._n = self._n, 0
            return n


RETRIES = Tally()


def is_local(fs: Any) -> bool:
    """Whether a filesystem is the local one."""
    return isinstance(fs, LocalFileSystem)


def uri_of(fs: Any, path: str) -> str:
    """Return a local path as it is, and any other path as a URL."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))


def open_filesystem(url: str, **options: Any) -> tuple[Any, str]:
    """Open a filesystem with retries and without a listings cache; return it and the path of ``url`` on it.

    Args:
        url: a local path or any fsspec URL.
        options: of the filesystem; they override the defaults set here.
    """
    if "://" not in url:  # fsspec takes :: for a chain and x: for a protocol, and both may be in a file's name
        url = f"file://{os.path.abspath(url)}"
    protocol = fsspec.utils.get_protocol(url)
    if protocol in ("http", "https"):
        options.setdefault("client_kwargs", {}).setdefault("middlewares", (_retry,))
    elif protocol in ("s3", "s3a"):
        retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
        options["config_kwargs"] = {"retries": retries} | options.get("config_kwargs", {})
    if protocol in ("file", "local"):
        fs, path = LocalFileSystem(**options), url.removeprefix(f"{protocol}://")
    else:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    if is_local(fs):
        path = os.path.normpath(path)  # one file, one name: records refer to sources by name
    if protocol in ("s3", "s3a"):
        fs.connect()  # sends no request yet
        fs.s3.meta.events.register("needs-retry.s3", _count, unique_id="memory-builder-retries")
    return fs, path


def _count(attempts: int, **_: Any) -> None:
    """Count retries: botocore calls this after every attempt."""
    if attempts > 1:
        RETRIES.add()


async def _retry(request: "ClientRequest", handler: "ClientHandlerType") -> "ClientResponse":
    """Retry a request while it fails or returns a transient HTTP status; an aiohttp middleware."""
    import aiohttp

    for attempt in range(1, ATTEMPTS):
        try:
            response = await handler(request)
            if response.status == 206:
                await response.read()  # a byte range is small: read it now, so that a truncated body is retried
            if response.status not in TRANSIENT_STATUSES:
                return response
            response.release()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
            pass
        await asyncio.sleep(min(LONGEST_PAUSE_S, random.random() * 2 ** (attempt - 1)))
        RETRIES.add()
    return await handler(request)
