"""``memory-builder serve`` as a process of its own."""

import contextlib
import http.client
import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from helpers.processes import python


@dataclass
class Service:
    """A running one."""

    process: Popen[str]
    port: int
    said: list[str]
    """Lines on standard error."""

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, sent)
        with contextlib.closing(connection), connection.getresponse() as answer:
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def search(self, body: bytes) -> tuple[int, str]:
        status, _, data = self.ask("POST", "/search", body, content_type="application/json")
        return status, json.loads(data).get("error", "")

    def send(self, data: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        client.sendall(data)
        return client


@contextlib.contextmanager
def serving(memory: Path, *flags: str) -> Iterator[Service]:
    with python("-m", "memory_builder.cli", "serve", memory, "--port", "0", *flags, stderr=PIPE) as process:
        said: list[str] = []
        for line in process.stderr:  # to its end, if it does not start
            said.append(line)
            if found := re.search(r"^serving .*:(\d+)$", line):
                break
        else:
            pytest.fail("".join(said))
        reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
        reader.start()
        try:
            yield Service(process, int(found[1]), said)
        finally:
            process.kill()
            reader.join(10)
    assert not [line for line in said if "Traceback" in line or "ERROR" in line], "".join(said)


@contextlib.contextmanager
def serving_at(memory: Path, *flags: str) -> Iterator[str]:
    """The address of a service."""
    with python("-m", "memory_builder.cli", "serve", memory, "--port", "0", *flags, stderr=PIPE) as process:
        told = []
        for line in process.stderr:  # to its end, if it does not start
            told.append(line)
            if found := re.search(r"^serving .* at (http://\S+)", line):
                break
        else:
            pytest.fail("".join(told))
        yield found[1]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
