"""What strangers may send to a service that is neither slow nor large, only odd: each is answered as it should be."""

import contextlib
import gzip
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from helpers.processes import python
from helpers.service import Service, serving
from memory_builder.storage.formats import npy_bytes


@pytest.fixture(scope="module")
def service(built_memory: Path) -> Iterator[Service]:
    with serving(built_memory, "--head-s", "2", "--body-s", "2", "--answer-s", "2") as service:
        yield service


def request(line: str, body: bytes = b"", *headers: str) -> bytes:
    """A request whose connection ends with its answer."""
    head = [line, "Host: localhost", "Connection: close", *headers]
    head += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*head, "", ""]).encode("latin1") + body


def answer(service: Service, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; status 0 if the connection was ended without."""
    with service.send(data) as client, contextlib.suppress(ConnectionError):
        client.settimeout(30)
        told = b""
        while piece := client.recv(1 << 16):
            told += piece
    head, _, body = told.partition(b"\r\n\r\n")
    lines = head.decode("latin1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]) if head else 0, headers, body


def vectors(number: str) -> str:
    return f'{{"vectors":[[{",".join([number] * 192)}]]}}'


JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (b"GET /info HTTP/1.0\r\n\r\n", {400}),
        (b"GET /info\r\n\r\n", {400}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
        (request("GET http://evil.example/info HTTP/1.1"), {404}),
        (b"GET /info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", {400}),
        (b"GET /info HTTP/1.1\r\nHost : localhost\r\n\r\n", {400}),
        (request("GET /info HTTP/1.1", b"", "A: \0"), {400}),
        (request("CONNECT localhost:80 HTTP/1.1"), {400, 404}),
        (request("HEAD /info HTTP/1.1"), {405}),
        (request("OPTIONS * HTTP/1.1"), {404}),
        (request("OPTIONS /search HTTP/1.1", b"", "Origin: http://evil.example"), {405}),
        (request("TRACE /info HTTP/1.1"), {405}),
        (request("DELETE /pictures/0 HTTP/1.1"), {405}),
        (request(f"{'G' * 5_000} /info HTTP/1.1"), {405}),
        (request("GET /info/ HTTP/1.1"), {404}),
        (request("POST /search/ HTTP/1.1", b"{}", JSON), {404}),
        (request("GET //evil.example/%2e%2e HTTP/1.1"), {404}),
        (request("GET /pictures/%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), {404}),
        (request("GET /static/../../etc/passwd HTTP/1.1"), {404}),
        (request("GET /info\xff HTTP/1.1"), {400}),
        (request("GET /%00 HTTP/1.1"), {404}),
        *(
            (request(f"GET /pictures/{one} HTTP/1.1"), {400})
            for one in ("1.0", "1_0", "+1", "-1", "1e3", "%D9%A3", "0%00")
        ),
        *(
            (request(f"GET /pictures/{one} HTTP/1.1"), {400})
            for one in ("true", "9" * 5_000, str(1 << 63), "%ff", "%zz")
        ),
        (request("GET /pictures/9223372036854775807 HTTP/1.1"), {404}),
        (request("POST /search HTTP/1.1", b"", JSON, "Content-Length: -1"), {400}),
        (request("POST /search HTTP/1.1", b"", JSON, "Content-Length: +5"), {400}),
        (request("POST /search HTTP/1.1", b"", JSON, f"Content-Length: {'9' * 20}"), {413}),
        (request("POST /search HTTP/1.1", b"", JSON, "Transfer-Encoding: gzip, chunked"), {400}),
        (request("POST /search HTTP/1.1", b"", JSON, CHUNKED) + b"ZZ\r\n", {400}),
        (request("POST /search HTTP/1.1", b"", JSON, CHUNKED) + b"F" * 16 + b"\r\n", {0, 400}),
        (request("POST /search HTTP/1.1", b"", JSON, CHUNKED) + b"1;" + b"a" * 200_000, {0, 400}),
        (request("POST /search HTTP/1.1", gzip.compress(b'{"text": "a"}'), JSON, "Content-Encoding: gzip"), {400}),
        (request("POST /search HTTP/1.1", '{"text": "a"}'.encode("utf-16"), f"{JSON}; charset=utf-16"), {400}),
        (request("POST /search HTTP/1.1", b'{"text":"a"}', JSON, CHUNKED), {0, 400}),
    ],
)
def test_odd_requests_are_refused_in_json(service: Service, data: bytes, statuses: set[int]) -> None:
    status, headers, body = answer(service, data)
    assert status in statuses, body
    assert "location" not in headers
    if status and not data.startswith(b"HEAD"):
        assert headers["content-type"] == "application/json"
        assert b'{"error":' in body
        assert headers["x-content-type-options"] == "nosniff"
        assert b"passwd" not in body


@pytest.mark.parametrize(
    "headers",
    [
        ("Range: bytes=0-0",),
        ("Range: bytes=" + ",".join(f"{i}-" for i in range(2_000)),),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
        ("X-Forwarded-Host: evil.example", "X-Forwarded-Proto: gopher", "Forwarded: host=evil.example"),
        tuple("a: b" for _ in range(10_000)),
    ],
)
@pytest.mark.parametrize("path", ["/info", "/%69nfo", f"/info?{'a' * 100_000}", "/pictures/0"])
def test_what_means_nothing_here_changes_nothing(service: Service, path: str, headers: tuple[str, ...]) -> None:
    plain, odd = (answer(service, request(f"GET {path} HTTP/1.1", b"", *some)) for some in ((), headers))
    assert plain[0] == odd[0] == 200
    assert plain[2] == odd[2]


def test_many_requests_sent_at_once_are_answered_in_turn(service: Service) -> None:
    one = b"GET /pictures/%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    data = b"".join(one % (10**6 + i) for i in range(200)) + request("GET /info HTTP/1.1")
    with service.send(data) as client:
        client.settimeout(60)
        told = b""
        while piece := client.recv(1 << 16):
            told += piece
    assert re.findall(rb"row (\d+):", told) == [b"%d" % (10**6 + i) for i in range(200)]
    assert told.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"text":"a","k":true}', "k:"),
        ('{"text":"a","k":"3"}', "k:"),
        ('{"text":"a","k":3.5}', "k:"),
        ('{"text":"a","k":NaN}', "k:"),
        ('{"text":"a","k":1e999}', "k:"),
        ('{"text":"a","k":%s}' % ("9" * 5_000), "number out of range"),
        ('{"text":"a","nprobe":"1"}', "nprobe:"),
        ('{"text":"a","modality":null}', "modality:"),
        ('{"text":["a",1]}', "text"),
        (vectors('"1"'), "vectors.0.0:"),
        (vectors("true"), "vectors.0.0:"),
        (vectors("null"), "vectors.0.0:"),
        (vectors("1e999"), "infinity"),
        (vectors("1e308"), "infinity"),
        (vectors("1e-320"), "only zeros"),
        (vectors("1" + "0" * 400), "infinity"),
        ('{"text":"a","__proto__":{"k":5}}', "__proto__:"),
        ('{"image":"http://127.0.0.1/"}', "not base64"),
        ('{"image":"/etc/passwd"}', "not base64"),
        ('{"image":""}', "cannot use the query image"),
        ('{"text":"a","where":"read_csv(\'/etc/passwd\')"}', "not allowed"),
        ('{"text":"a","where":"key IN (SELECT 1)"}', "not allowed"),
        ('{"text":"a","where":"1=1; DROP TABLE x"}', "expected one condition"),
    ],
)
def test_json_holds_what_it_says(service: Service, body: str, says: str) -> None:
    status, error = service.search(body.encode())
    assert (status, says in error) == (400, True), error


@pytest.mark.parametrize(
    ("path", "array", "says"),
    [
        ("search?k=1&k=10000", np.ones((1, 192), np.float32), "k is given more than once"),
        ("search?modality=image&modality=text", np.ones((1, 192), np.float32), "modality is given more than once"),
        ("vectors?modality=image&modality=text", np.zeros(1, np.int64), "more than once"),
        ("search", np.ones((5, 0), np.float32), "shape"),
        ("search", np.full((1, 192), np.nan), "NaN"),
        ("vectors", np.zeros(1), "float64"),
        ("vectors", np.zeros(1, bool), "bool"),
        ("vectors", np.array([2**64 - 1], np.uint64), "uint64"),
        ("rows?columns=key", np.array([2**64 - 1], np.uint64), "uint64"),
        ("rows?columns=key", np.array([-(2**63)]), "is not in"),
        ("rows?columns=../../etc/passwd", np.zeros(1, np.int64), "passwd"),
        ("rows?columns=%00", np.zeros(1, np.int64), "no column"),
        ("rows?columns=", np.zeros(1, np.int64), "no column"),
    ],
)
def test_arrays_hold_what_they_say(service: Service, path: str, array: np.ndarray, says: str) -> None:
    status, _, data = service.ask("POST", f"/bulk/{path}", npy_bytes(array))
    assert (status, says in json.loads(data)["error"]) == (400, True), data


def limited(memory: Path, setting: str) -> contextlib.AbstractContextManager:
    code = f"import sys; {setting}; from memory_builder.cli import main; sys.exit(main(sys.argv[1:]))"
    return python("-c", code, "serve", memory, "--port", "0", stderr=PIPE)


def port_of(process) -> int:
    for line in process.stderr:
        if found := re.search(r"^serving .*:(\d+)$", line):
            return int(found[1])
    pytest.fail("it did not start")


def test_clients_that_only_connect_leave_files_for_those_that_ask(built_memory: Path) -> None:
    setting = "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (128, r.getrlimit(r.RLIMIT_NOFILE)[1]))"
    with limited(built_memory, setting) as process, contextlib.ExitStack() as clients:
        service = Service(process, port_of(process), [])
        for _ in range(200):
            clients.enter_context(service.send(b"GET /info HTTP/1.1\r\n"))
        assert service.ask("GET", "/pictures/0")[0] == 200
        process.kill()


def test_one_connection_too_many_is_told_so(built_memory: Path) -> None:
    setting = "import cluster.protocol; cluster.protocol.MAX_CONNECTIONS = 20"
    with limited(built_memory, setting) as process, contextlib.ExitStack() as clients:
        service = Service(process, port_of(process), [])
        for _ in range(20):
            clients.enter_context(service.send(b"GET /info HTTP/1.1\r\n"))
        status, headers, data = service.ask("GET", "/info")
        assert (status, headers["retry-after"], headers["content-type"]) == (503, "5", "application/json")
        assert "ask again later" in json.loads(data)["error"]
        clients.close()
        for _ in range(100):
            with contextlib.suppress(ConnectionError, socket.timeout):
                if service.ask("GET", "/info")[0] == 200:
                    break
        else:
            pytest.fail("nobody is let in")
        process.kill()
