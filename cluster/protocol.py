"""HTTP as uvicorn speaks it, with an end to every wait for a client, and no answer kept for one that does not take it.

uvicorn ends idle connections alone: a request that comes in byte by byte, or an answer that nobody takes, would be
waited for without end, and so would whoever wants the server to stop.
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
"""For requests and answers under way, once the server is told to stop; then their connections are cut."""
GRACE_S = 8
"""Then what is still being computed is given up."""
STOP_S = 12
"""After which it ends whatever still runs: nothing here is written, so nothing is lost."""
MAX_CONNECTIONS = 1_000
"""At once; the next are answered 503."""
OPEN_FILES = 8 * MAX_CONNECTIONS
"""Many systems start with 1,024: clients that only connect would keep the memory from being read."""
MAX_HEAD_BYTES = 160 << 10
"""Of a request: the longest filter may take 120,000 in an address."""
BYTES_A_SECOND = 1 << 20
"""Of large bodies and answers, that clients must keep up in the long run."""


_TOO_MANY = error_answer(503, f"{MAX_CONNECTIONS:,} clients are connected: ask again later")
_TOO_MANY.headers.update({"Retry-After": "5", "Connection": "close"})


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitLimits:
    """Seconds a client may take."""

    head_s: float = 10.0
    """To send the head of a request."""
    body_s: float = 30.0
    """To send its body, and one more for each MiB that came."""
    answer_s: float = 30.0
    """To take the answer, and one more for each MiB that was taken."""

    def __post_init__(self) -> None:
        for name in ("head_s", "body_s", "answer_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} {getattr(self, name)}: expected more than 0 seconds")


class Clock:
    """Ends a connection on which too little moves: it has some seconds, and one more for each MiB that moved."""

    def __init__(self, what: str, seconds: float, moved_bytes: Callable[[], int], expired: Callable[[], None]) -> None:
        self.what = what
        self._loop = asyncio.get_running_loop()
        self._moved_bytes, self._expired = moved_bytes, expired
        self._ends_s, self._from_bytes = self._loop.time() + seconds, moved_bytes()
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        ends_s = self._ends_s + (self._moved_bytes() - self._from_bytes) / BYTES_A_SECOND
        if ends_s <= self._loop.time():
            self._expired()
        else:
            self._timer = self._loop.call_at(ends_s, self._look)

    def stop(self) -> None:
        """Let the connection be."""
        self._timer.cancel()


class CountedTransport:
    """A transport that knows how many bytes went into it; all else is its own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._written_bytes = 0

    def write(self, data: bytes) -> None:
        """As the transport's."""
        self._written_bytes += len(data)
        self._transport.write(data)

    def taken_bytes(self) -> int:
        """Bytes that left this process."""
        return self._written_bytes - self._transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class TimedProtocol(H11Protocol):
    """One connection: at most one clock runs for what is read, one for what is written.

    The next piece of an answer is written when no byte of the one before waits here.
    """

    limits: WaitLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: Clock | None = None
        self._writing: Clock | None = None
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
        if self.conn.their_state is h11.IDLE:  # uvicorn's clock of idle connections goes on
            self._stop_reading()
        else:
            self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = Clock("answer", self.limits.answer_s, self._counted.taken_bytes, self.cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._stop_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_reading()
        self._stop_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        body = json.dumps({"error": f"no HTTP, or its head has more than {MAX_HEAD_BYTES:,} bytes"}).encode()
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
        elif self.cycle.response_complete:  # nobody wants the rest, however fast it comes
            self._read_within("rest", self.limits.body_s)
        else:
            self._read_within("body", self.limits.body_s)

    def _read_within(self, what: str, seconds: float) -> None:
        if self._reading is None or self._reading.what != what:
            self._stop_reading()
            counts = what == "body"
            self._reading = Clock(what, seconds, lambda: self._read_bytes if counts else 0, self.cut)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.stop()
            self._reading = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.stop()
            self._writing = None

    def cut(self) -> None:
        """End the connection, whatever was to be sent."""
        self.transport.abort()


class Server(uvicorn.Server):
    """Ends within ``STOP_S`` of the first signal, whatever clients do and whatever is being computed."""

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
    """A server of an application, to be run with sockets that listen."""
    _allow_open_files()
    protocol = type("Protocol", (TimedProtocol,), {"limits": limits})
    return Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_level="error",  # what strangers send is no news, and must not fill a disk
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=GRACE_S,
        )
    )


def _allow_open_files() -> None:
    """Let this process open as many files as all connections need: each may have one on disk besides."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
