"""Fetch linked pictures by http(s), with limits of time and size.

The user's own storage is retried for long (``storage/filesystem.py``), one of a million links is not. The address of
each connection is checked, after every redirect again, so that a host name that resolves to a private address is
refused, even if its DNS record changes meanwhile.
"""

import asyncio
import ipaddress
import random
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memory_builder.readers.link_policy import NO_URL, WEB, Target
from memory_builder.readers.pairs import BadPairError
from memory_builder.storage.filesystem import ATTEMPTS, LONGEST_PAUSE_S, RETRIES, TRANSIENT_STATUSES

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

CONNECT_S = 5.0
"""Seconds to connect."""
URL_S = 20.0
"""Seconds for a picture, with redirects and retries."""
MAX_BYTES = 64 << 20
"""Bytes of a picture."""
THIRD_PARTY_ATTEMPTS = 2
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 16
_NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16", "3fff::/20", "5f00::/16"))
)
"""Networks that older Pythons take as public: for protocols and examples (192.0.0.192 is Oracle's metadata service);
and the address of Azure's, which is formally public."""
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses that a NAT64 gateway maps to the IPv4 address in their last four bytes."""
_REASONS = {
    401: "may not be read (HTTP 401)",
    403: "may not be read (HTTP 403)",
    404: "not found (HTTP 404)",
    410: "not found (HTTP 410)",
    429: "server takes no more requests (HTTP 429)",
}
NOT_PUBLIC = "address is not public (--allow-host names hosts that may be asked)"
NO_ADDRESS = "host name does not resolve"
REFUSED = "connection refused"
TIMED_OUT = "server does not answer in time"
NOT_SECURE = "no secure connection can be made (TLS)"
LASTING = (NOT_PUBLIC, NO_URL, NO_ADDRESS, NOT_SECURE)
"""Reasons that a retry does not change."""
LEFT_ALONE = "server left alone: it never answered before"
BROKEN_OFF = "connection broken off"


class SilentHosts:
    """Hosts that never responded in this process; after a few failures they get no requests for a while.

    A host that sent any response is removed. At most ``most`` hosts are remembered, those that failed last.
    """

    def __init__(self, *, after: int = 3, for_s: float = 300.0, most: int = 10_000) -> None:
        self._after, self._for_s, self._most = after, for_s, most
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def is_silent(self, host: str) -> bool:
        with self._lock:
            n, last_s = self._failures.get(host, (0, 0.0))
            return n >= self._after and time.monotonic() - last_s < self._for_s

    def failed(self, host: str) -> None:
        with self._lock:
            n, last_s = self._failures.pop(host, (0, 0.0))
            n = 0 if time.monotonic() - last_s >= self._for_s else n
            self._failures[host] = (n + 1, time.monotonic())
            if len(self._failures) > self._most:
                self._failures.popitem(last=False)

    def answered(self, host: str) -> None:
        with self._lock:
            self._failures.pop(host, None)

    def __len__(self) -> int:
        return len(self._failures)


SILENT = SilentHosts()


class _RefusedError(OSError):
    """The address of a link is not public."""


def fetch_url(target: Target, *, limit_s: float = URL_S) -> bytes:
    """Fetch the body of an http(s) link.

    Args:
        target: a link that ``LinkPolicy`` resolved.
        limit_s: total seconds.

    Raises:
        BadPairError: the link cannot or may not be fetched; reasons are from a short list, so that they can be counted.
    """
    from fsspec.asyn import get_loop, sync

    data: bytes = sync(get_loop(), _fetch, target, limit_s)
    return data


async def _fetch(target: Target, limit_s: float) -> bytes:
    import aiohttp
    from yarl import URL

    attempts = ATTEMPTS if target.is_own_host else THIRD_PARTY_ATTEMPTS
    try:
        url = URL(target.uri)
        host = _host_key(url)
    except ValueError:
        raise BadPairError(NO_URL) from None
    if SILENT.is_silent(host):
        raise BadPairError(LEFT_ALONE)
    reason = TIMED_OUT
    answered = False
    try:
        async with asyncio.timeout(None if target.is_own_host else limit_s):
            for attempt in range(attempts):
                if attempt:
                    RETRIES.add()
                    await asyncio.sleep(min(LONGEST_PAUSE_S, (0.5 + random.random()) * 2 ** (attempt - 1)))
                try:
                    status, data = await _follow(url, target, limit_s)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    reason = _reason_of(error)
                    answered = reason in (NOT_PUBLIC, NO_URL)
                    if reason in LASTING or (reason == REFUSED and not target.is_own_host):
                        break
                    continue
                answered = True
                if data is not None:
                    return data
                reason = _REASONS.get(status, f"server answers HTTP {status}")
                if status not in TRANSIENT_STATUSES:
                    break
    except TimeoutError:
        pass
    except BadPairError as bad:
        reason, answered = str(bad), True
    except ValueError:  # not a URL, or a redirect to none
        answered, reason = True, NO_URL
    finally:
        (SILENT.answered if answered else SILENT.failed)(host)
    raise BadPairError(reason)


async def _follow(url: "URL", target: Target, limit_s: float) -> tuple[int, bytes | None]:
    """Request a URL, following redirects: (HTTP status, the body if it is 200)."""
    import aiohttp
    from yarl import URL

    for _ in range(MAX_REDIRECTS + 1):
        if url.scheme not in WEB or not url.host:
            raise BadPairError(f"link of a kind that is not followed ({url.scheme[:20]})")
        timeout = aiohttp.ClientTimeout(total=limit_s, sock_connect=CONNECT_S)
        async with (
            aiohttp.ClientSession(connector=_connector(_may_be_private(url, target.hosts)), timeout=timeout) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            SILENT.answered(_host_key(url))
            location = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                url = url.join(URL(location))
                continue
            return response.status, await _body(response) if response.status == 200 else None
    raise BadPairError("link is redirected too often")


async def _body(response: "aiohttp.ClientResponse") -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK_BYTES):
        data += chunk
        if len(data) > MAX_BYTES:
            raise BadPairError(f"file larger than {MAX_BYTES >> 20} MiB")
    return bytes(data)


def _host_key(url: "URL") -> str:
    return f"{url.host}:{url.port}"


def _may_be_private(url: "URL", hosts: Sequence[str]) -> bool:
    host = str(url.host).rstrip(".").lower()
    shown = f"[{host}]" if ":" in host else host
    return any(named.lower() in (host, shown, f"{shown}:{url.port}") for named in hosts)


def _connector(may_be_private: bool) -> "aiohttp.TCPConnector":
    import aiohttp

    class PublicResolver(aiohttp.ThreadedResolver):
        """Resolves host names to their public addresses alone."""

        async def resolve(self, *args: Any, **kwargs: Any) -> Any:
            addresses = await super().resolve(*args, **kwargs)
            public = [address for address in addresses if is_public(address["host"])]
            if not public:
                raise _RefusedError(f"{addresses[0]['host']} is not public")
            return public

    if may_be_private:
        return aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver(), force_close=True)
    return aiohttp.TCPConnector(resolver=PublicResolver(), socket_factory=_public_socket, force_close=True)


def _public_socket(info: tuple[Any, ...]) -> socket.socket:
    """Open a socket for an address if it is public; addresses given as numbers skip the resolver."""
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise _RefusedError(f"{address[0]} is not public")
    return socket.socket(family, kind, protocol)


def is_public(address: str) -> bool:
    """Whether an IP address, and any IPv4 address embedded in it, is public."""
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        inside += [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)] if ip in _TRANSLATED else []
        if any(v4 is not None and not is_public(str(v4)) for v4 in inside):
            return False
        if ip.is_site_local:
            return False
        if ip.ipv4_mapped is not None:
            return True
    if any(ip in network for network in _NOT_PUBLIC):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _reason_of(error: Exception) -> str:
    import aiohttp

    causes = _causes(error)
    if any(isinstance(cause, _RefusedError) for cause in causes):
        return NOT_PUBLIC
    if any(isinstance(cause, aiohttp.ClientConnectorDNSError | socket.gaierror) for cause in causes):
        return NO_ADDRESS
    if any(isinstance(cause, ssl.SSLError | ssl.CertificateError | aiohttp.ClientSSLError) for cause in causes):
        return NOT_SECURE
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return TIMED_OUT
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return REFUSED
    if isinstance(error, aiohttp.ClientConnectorError):
        return "server cannot be reached"
    if isinstance(error, aiohttp.InvalidURL):
        return NO_URL
    return BROKEN_OFF


def _causes(error: BaseException) -> list[BaseException]:
    """Collect an error and all its causes, those in exception groups too."""
    causes: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or one in causes:
            continue
        causes.append(one)
        waiting += [one.__cause__, one.__context__, getattr(one, "os_error", None)]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
    return causes
