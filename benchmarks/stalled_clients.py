"""What clients that stall cost the others, and how long a service takes to stop meanwhile.

    python benchmarks/stalled_clients.py MEMORY

Starts ``memory-builder serve``, makes the same mixed requests alone and beside clients that send their head, their body
or take their answer byte by byte (each that is cut off is replaced), then sends SIGTERM while all of them hang on.
Prints one JSON object. Loopback alone.
"""

import base64
import contextlib
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
import urllib3
from PIL import Image

from memory_builder import Memory
from memory_builder.storage.formats import npy_bytes


@dataclass(frozen=True)
class Config:
    """What is asked."""

    memory: Annotated[str, tyro.conf.Positional]
    requests: int = 1_000
    stalled: int = 50
    workers: int = 4
    """Requests at a time."""
    seed: int = 0


def main(config: Config) -> None:
    with serving(config.memory) as (process, port):
        asks = mixed_requests(config)
        measure(port, asks[:50], config.workers)
        before = resident_mib(process.pid)
        alone = measure(port, asks, config.workers)
        with stalled(port, config.stalled) as cuts:
            time.sleep(1)
            beside = measure(port, asks, config.workers)
            after, n_cut = resident_mib(process.pid), cuts[0]
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
            stop_s = time.monotonic() - started
    figures = {
        "requests": len(asks),
        "stalled": config.stalled,
        "alone_s": alone,
        "beside_s": beside,
        "ratio_of_means": round(beside["mean"] / alone["mean"], 3),
        "ratio_of_p95": round(beside["p95"] / alone["p95"], 3),
        "cut_off": n_cut,
        "resident_mib": {"before": before, "beside": after},
        "sigterm_s": round(stop_s, 2),
        "exit_code": code,
    }
    print(json.dumps(figures, indent=1))


@contextlib.contextmanager
def serving(memory: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A service and its port."""
    command = [sys.executable, "-m", "memory_builder.cli", "serve", memory, "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ports = (re.search(r"^serving .*:(\d+)$", line) for line in process.stderr)
        port = next(filter(None, ports), None)
        assert port, "it did not start"
        try:
            yield process, int(port[1])
        finally:
            process.kill()


def mixed_requests(config: Config) -> list[tuple[str, str, bytes | None]]:
    """(method, path, body): texts, pictures, vectors, filters, rows and pictures of rows."""
    draw, memory = random.Random(config.seed), Memory.open(config.memory)
    ids = memory.row_ids(min(memory.commits))
    Image.effect_noise((640, 480), 80).convert("RGB").save(stream := io.BytesIO(), "JPEG")
    picture = base64.b64encode(stream.getvalue()).decode()
    vectors = npy_bytes(memory.vectors(ids[:8]))

    def one(i: int) -> tuple[str, str, bytes | None]:
        kinds: list[Callable[[], tuple[str, str, bytes | None]]] = [
            lambda: ("POST", "/search", json.dumps({"text": f"thing {i}", "k": 10}).encode()),
            lambda: ("POST", "/search", json.dumps({"image": picture, "k": 5}).encode()),
            lambda: ("POST", "/search", json.dumps({"text": "cat", "where": "caption LIKE '%a%'"}).encode()),
            lambda: ("POST", "/bulk/search?k=50", vectors),
            lambda: ("POST", "/bulk/rows?columns=caption", npy_bytes(ids[: draw.randrange(1, 100)])),
            lambda: ("GET", f"/pictures/{draw.choice(ids)}", None),
            lambda: ("GET", "/info", None),
        ]
        return draw.choice(kinds)()

    return [one(i) for i in range(config.requests)]


def measure(port: int, asks: list[tuple[str, str, bytes | None]], workers: int) -> dict[str, float]:
    """Seconds a request; each must be answered 200."""
    pool = urllib3.PoolManager(maxsize=workers, retries=False, timeout=60)

    def ask(one: tuple[str, str, bytes | None]) -> float:
        method, path, body = one
        started = time.monotonic()
        headers = {"content-type": "application/json"}
        response = pool.request(method, f"http://127.0.0.1:{port}{path}", body=body, headers=headers)
        assert response.status == 200, (path, response.status, response.data[:200])
        return time.monotonic() - started

    with ThreadPoolExecutor(workers) as threads:
        seconds = np.array(list(threads.map(ask, asks)))
    share = np.percentile(seconds, [50, 95, 100]).round(4).tolist()
    return {"mean": round(float(seconds.mean()), 4), "p50": share[0], "p95": share[1], "max": share[2]}


@contextlib.contextmanager
def stalled(port: int, count: int) -> Iterator[list[int]]:
    """So many clients that stall, in three ways; how many were cut off so far."""
    cuts, end = [0], threading.Event()

    def stall(kind: int) -> None:
        while not end.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(_BEGINNINGS[kind])
                while not end.wait(0.5):
                    if kind < 2:
                        client.sendall(b"X")
                    elif not client.recv(1):
                        break
            cuts[0] += not end.is_set()
            end.wait(0.2)

    threads = [threading.Thread(target=stall, args=(i % 3,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    yield cuts
    end.set()
    for thread in threads:
        thread.join()


def _bulk(n: int) -> bytes:
    """A question of which the answer does not fit into the buffers on the way."""
    body = npy_bytes(np.zeros(n, np.int64))
    head = f"POST /bulk/vectors HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


_BEGINNINGS = (
    b"GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
    b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
    _bulk(20_000),
)
"""Heads, bodies and answers that do not end."""


def resident_mib(pid: int) -> int:
    """Of a process, now."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) >> 10


if __name__ == "__main__":
    main(tyro.cli(Config))
