"""Middleware of the service: checks the Host header of requests, and adds security headers to responses."""

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
    """Response with ``{"error": …}``; other than ASCII is escaped."""
    return Response(json.dumps({"error": message}), status, media_type="application/json")


class HostNames:
    """Host names that requests to the service may use.

    A foreign page may resolve its own name to this service (DNS rebinding) and read the responses. An IP address cannot
    be rebound, so a service that listens beyond this machine accepts all of them.
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
    """Return the Host header without its port, in lower case; empty if invalid."""
    parts = _HOST.fullmatch(header)
    return (parts["address"] or parts["name"]).rstrip(".").lower() if parts else ""


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """ASGI middleware with the Host check and the security headers."""

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
            f"Host {host!r:.100} is not a name of this service: use its IP address, or start it with --server-name",
        )
        await answer(scope, receive, with_headers)
