"""HTTP server with timeouts for slow clients, and without buffering of responses that are not read.

uvicorn only closes idle connections: it waits forever for a request that comes in byte by byte, or a response that is
    not read, and shutdown waits with it.
"""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.gate import error_answer
from memory_builder.errors import UsageError

CUT_S = 5
"""Seconds for running requests after a stop signal; then their connections are closed."""
GRACE_S = 8
"""Seconds after which running computations are abandoned."""
STOP_S = 12
"""Seconds after which the process exits: the service writes nothing, so nothing is lost."""
MAX_CONNECTIONS = 1_000
"""Limit of concurrent connections; further ones get 503."""
OPEN_FILES = 8 * MAX_CONNECTIONS
"""Wanted limit of open files. Many systems default to 1,024: idle connections would use them up."""
MAX_HEAD_BYTES = 160 << 10
"""Limit of request headers: the longest filter takes up to 120,000 bytes in a URL."""
BYTES_A_SECOND = 1 << 20
"""Minimum throughput of large bodies and responses."""


_TOO_MANY = error_answer(503, f"{MAX_CONNECTIONS:,} clients are connected: ask again later")
_TOO_MANY.headers.update({"Retry-After": "5", "Connection": "close"})


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitLimits:
    """Timeouts of clients, in seconds."""

    head_s: float = 10.0
    """Timeout for the headers of a request."""
    body_s: float = 30.0
    """Timeout for a body, plus one second for each MiB received."""
    answer_s: float = 30.0
    """Timeout for reading a response, plus one second for each MiB sent."""

    def __post_init__(self) -> None:
        for name in ("head_s", "body_s", "answer_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} {getattr(self, name)}: expected more than 0 seconds")


class ClientTimeout:
    """Timeout of a connection: some seconds, plus one for each MiB transferred."""

    def __init__(self, phase: str, seconds: float, moved_bytes: Callable[[], int], expired: Callable[[], None]) -> None:
        self.phase = phase
        self._loop = asyncio.get_running_loop()
        self._moved_bytes, self._expired = moved_bytes, expired
        self._ends_s, self._from_bytes = self._loop.time() + seconds, moved_bytes()
        self._timer = self._loop.call_later(seconds, self._check)

    def _check(self) -> None:
        ends_s = self._ends_s + (self._moved_bytes() - self._from_bytes) / BYTES_A_SECOND
        if ends_s <= self._loop.time():
            self._expired()
        else:
            self._timer = self._loop.call_at(ends_s, self._check)

    def stop(self) -> None:
        """Cancel the timeout."""
        self._timer.cancel()


class CountedTransport:
    """A transport that counts its bytes, otherwise like the one it wraps."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written_bytes = 0

    def write(self, data: bytes) -> None:
        """Write and count."""
        self._written_bytes += len(data)
        self._transport.write(data)

    def taken_bytes(self) -> int:
        """Number of bytes that left this process."""
        return self._written_bytes - self._transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TimedProtocol(H11Protocol):
    """One connection, with at most one timeout for reading and one for writing.

    The next chunk of a response is written once the previous one has left the buffer.
    """

    limits: WaitLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: ClientTimeout | None = None
        self._writing: ClientTimeout | None = None
        self._read_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=0)
        self._counted = CountedTransport(transport)
        super().connection_made(cast(asyncio.Transport, self._counted))
        if len(self.connections) > MAX_CONNECTIONS:
            self.app = _TOO_MANY
        self._read_within("head", self.limits.head_s)

    def data_received(self, data: bytes) -> None:
        self._read_bytes += len(data)
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._counted.get_write_buffer_size():
            self._stop_writing()
        if self.conn.their_state is h11.IDLE:  # uvicorn's own timeout of idle connections applies
            self._stop_reading()
        else:
            self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = ClientTimeout("answer", self.limits.answer_s, self._counted.taken_bytes, self.cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._stop_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_reading()
        self._stop_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        body = json.dumps({"error": f"not HTTP, or headers of more than {MAX_HEAD_BYTES:,} bytes"}).encode()
        headers = [("content-type", "application/json"), ("x-content-type-options", "nosniff"), ("connection", "close")]
        self._stop_reading()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _watch_reading(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._read_within("head", self.limits.head_s)
        elif self.conn.their_state is not h11.SEND_BODY:
            self._stop_reading()
        elif self.cycle.response_complete:  # the rest is not needed, however fast it comes
            self._read_within("rest", self.limits.body_s)
        else:
            self._read_within("body", self.limits.body_s)

    def _read_within(self, phase: str, seconds: float) -> None:
        if self._reading is None or self._reading.phase != phase:
            self._stop_reading()
            counts = phase == "body"
            self._reading = ClientTimeout(phase, seconds, lambda: self._read_bytes if counts else 0, self.cut)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.stop()
            self._reading = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.stop()
            self._writing = None

    def cut(self) -> None:
        """Close the connection at once."""
        self.transport.abort()


class Server(uvicorn.Server):
    """Server that exits within ``STOP_S`` of the first signal, whatever clients and computations do."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            watchdog = threading.Timer(STOP_S, os._exit, [128 + sig])
            watchdog.daemon = True
            watchdog.start()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(CUT_S, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, TimedProtocol):
                connection.cut()


def server(app: Any, limits: WaitLimits) -> Server:
    """Build a server of an ASGI application, to run with listening sockets."""
    _allow_open_files()
    protocol = type("Protocol", (TimedProtocol,), {"limits": limits})
    return Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_level="error",  # client errors must not fill a disk
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def _allow_open_files() -> None:
    """Raise the limit of open files for all connections, each of which may also have a spool file."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
