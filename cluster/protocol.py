"""HTTP as uvicorn speaks it, with an end to every wait for a client.

uvicorn ends idle connections alone: a request that comes in byte by byte, or an answer that nobody takes, would be
waited for without end, and so would whoever wants the server to stop.
"""

import asyncio
import os
import socket
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from memory_builder.errors import UsageError

CUT_S = 5
"""For requests and answers under way, once the server is told to stop; then their connections are cut."""
GRACE_S = 8
"""Then what is still being computed is given up."""
STOP_S = 12
"""After which it ends whatever still runs: nothing here is written, so nothing is lost."""
MAX_CONNECTIONS = 1_000
"""At once; the next are answered 503."""
BYTES_A_SECOND = 1 << 20
"""Slower clients may run out of time with large bodies and answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WaitLimits:
    """Seconds a client may take."""

    head_s: float = 10.0
    """To send the head of a request."""
    body_s: float = 30.0
    """To send its body, and one more for each MiB."""
    answer_s: float = 30.0
    """To take the answer, and one more for each MiB."""

    def __post_init__(self) -> None:
        for name in ("head_s", "body_s", "answer_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} {getattr(self, name)}: expected more than 0 seconds")


class TimedProtocol(H11Protocol):
    """One connection: at most one clock runs for what is read, one for what is written."""

    limits: WaitLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: tuple[str, asyncio.TimerHandle] | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._read_within("head", self.limits.head_s)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is not h11.SEND_BODY:  # uvicorn's clock of idle connections goes on
            self._stop_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_within()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_within()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_reading()
        if self._writing is not None:
            self._writing.cancel()

    def _watch_reading(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._read_within("head", self.limits.head_s)
        elif self.conn.their_state is h11.SEND_BODY:
            self._read_within("body", self.limits.body_s + self._announced() / BYTES_A_SECOND)
        else:
            self._stop_reading()

    def _read_within(self, what: str, seconds: float) -> None:
        if self._reading is not None and self._reading[0] == what:
            return
        self._stop_reading()
        self._reading = (what, self.loop.call_later(seconds, self.cut))

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading[1].cancel()
            self._reading = None

    def _announced(self) -> int:
        """Bytes of the body, as its head says; of one sent in chunks nobody knows."""
        length = dict(self.headers or ()).get(b"content-length", b"0")
        return min(int(length), 1 << 32) if length.isdigit() else 0

    def _write_within(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        seconds = self.limits.answer_s + self.transport.get_write_buffer_size() / BYTES_A_SECOND
        self._writing = self.loop.call_later(seconds, self._cut_if_untaken)

    def _cut_if_untaken(self) -> None:
        if self.transport.get_write_buffer_size():
            self.cut()

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
    protocol = type("Protocol", (TimedProtocol,), {"limits": limits})
    return Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_level="warning",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
