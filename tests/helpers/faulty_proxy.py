"""An HTTP proxy before an S3 server that answers some requests badly, or not at all. Real sockets, on loopback."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

STALL_S = 3.0
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Faults:
    """Which requests go wrong, and how; what happened is counted."""

    share: float
    seed: int
    kinds: tuple[str, ...] = ("500", "503", "dropped", "answer lost", "cut short", "stalled")
    weights: tuple[int, ...] = (6, 6, 3, 3, 3, 1)
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()

    def next(self) -> str:
        """What becomes of the next request; ``fine`` for most."""
        with self._lock:
            bad = self._random.random() < self.share
            kind = self._random.choices(self.kinds, self.weights)[0] if bad else "fine"
            self.seen[kind] += 1
            return kind


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind: ClassVar[str]
    faults: ClassVar[Faults]

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.faults.next()
        if kind == "stalled":
            time.sleep(STALL_S)
        if kind in ("stalled", "dropped"):
            self.close_connection = True
        elif kind in ("500", "503"):
            self.answer(int(kind), [], b"<Error><Code>InternalError</Code><Message>proxy</Message></Error>")
        else:
            self.forward(body, kind)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_any  # noqa: N815

    def forward(self, body: bytes, kind: str) -> None:
        connection = http.client.HTTPConnection(self.behind, timeout=30)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if kind == "answer lost":
            self.close_connection = True
        else:
            self.answer(response.status, response.getheaders(), data, cut=kind == "cut short")

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: object) -> None:
        """Faults are counted, not logged."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that gave up waiting is nothing to report."""


@contextmanager
def faulty_proxy(endpoint: str, faults: Faults) -> Iterator[str]:
    """A proxy before ``endpoint``; yields its own URL."""
    handler = type("Proxy", (_Proxy,), {"behind": urlsplit(endpoint).netloc, "faults": faults})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
