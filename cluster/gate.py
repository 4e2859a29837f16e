"""What every request passes on its way in, and every answer on its way out: the Host check and the security headers."""

import ipaddress
import json
import re
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOST = re.compile(r"(?:\[(?P<address>[0-9a-fA-F:.]+)\]|(?P<name>[^\s:@/\[\]]+))(?::\d{1,5})?")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def error_answer(status: int, message: str) -> Response:
    """``{"error": …}``; what is no text is escaped."""
    return Response(json.dumps({"error": message}), status, media_type="application/json")


class HostNames:
    """By which names a service may be called.

    A page of a stranger may have its own name resolve to this service (DNS rebinding), and read what it answers. An IP
    address cannot be made to mean another machine, so beyond this machine all of them are fine.
    """

    def __init__(self, listens_at: str, names: Iterable[str]) -> None:
        self._is_loopback = _is_loopback(listens_at)
        self._names = LOOPBACK.union(name.lower() for name in names)
        if not self._is_loopback:
            self._names |= {listens_at.lower(), socket.gethostname().lower()}

    def allows(self, header: str | None) -> bool:
        host = host_of(header or "")
        if host in self._names:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return not self._is_loopback or _is_loopback(host)


def host_of(header: str) -> str:
    """The Host header without its port, in lower case; nothing if it is none."""
    parts = _HOST.fullmatch(header)
    return (parts["address"] or parts["name"]).rstrip(".").lower() if parts else ""


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, hosts: HostNames, page_policy: str) -> None:
        self.app, self.hosts = app, hosts
        self._headers = {
            "Content-Security-Policy": page_policy,
            "X-Frame-Options": "DENY",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host")
        if self.hosts.allows(host):
            await self.app(scope, receive, with_headers)
            return
        answer = error_answer(
            400,
            f"Host {host!r:.100} is no name of this service: ask by its IP address, or start it with --server-name",
        )
        await answer(scope, receive, with_headers)
