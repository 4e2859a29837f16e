"""What a service takes from clients that stall, send nonsense or ask for too much, and how it stops meanwhile."""

import base64
import contextlib
import json
import re
import signal
import socket
import struct
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.service import Service, serving
from memory_builder.storage.formats import npy_bytes


@pytest.fixture(scope="module")
def service(built_memory: Path) -> Iterator[Service]:
    with serving(built_memory, "--max-pixels", "1000000", "--server-name", "memory.example") as service:
        yield service


HEAD = b"GET /info HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
BODY = b"POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"


def untaken(n: int = 20_000) -> bytes:
    """A question of which the answer does not fit into the buffers on the way."""
    body = npy_bytes(np.zeros(n, np.int64))
    head = f"POST /bulk/vectors HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def is_cut(client: socket.socket, within_s: float, *, drips: bool) -> bool:
    """Whether the other side ends the connection while this one sends, or waits."""
    deadline = time.monotonic() + within_s
    client.settimeout(0.2)
    while time.monotonic() < deadline:
        try:
            if drips:
                client.sendall(b"x")
            if client.recv(1) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_who_stalls_is_cut_off_and_others_are_answered(built_memory: Path) -> None:
    with serving(built_memory, "--head-s", "1", "--body-s", "1", "--answer-s", "1") as service:
        clients = [service.send(data) for _ in range(10) for data in (b"", HEAD, BODY, BODY[:-1])]
        started = time.monotonic()
        assert service.ask("GET", "/info")[0] == 200
        assert all(is_cut(client, 30, drips=i % 2 == 0) for i, client in enumerate(clients))
        assert time.monotonic() - started < 60
        with service.send(untaken()) as reader:
            time.sleep(20)  # a second, and one for each of 15 MiB
            taken = 0
            reader.settimeout(20)
            with contextlib.suppress(OSError):
                while data := reader.recv(1 << 20):
                    taken += len(data)
        assert taken < 20_000 * 192 * 4
        assert service.ask("GET", "/info")[0] == 200
        with service.send(BODY[:-1]) as slow:
            slow.sendall(b'{"text": "cat"}'.ljust(500))
            time.sleep(0.5)
            slow.sendall(b" " * 500)  # in time
            assert slow.recv(15) == b"HTTP/1.1 200 OK"
        for client in clients:
            client.close()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_time_whatever_clients_do(built_memory: Path, sign: signal.Signals) -> None:
    with serving(built_memory) as service:
        clients = [service.send(data) for _ in range(4) for data in (b"", HEAD, BODY, untaken())]
        time.sleep(1)
        service.process.send_signal(sign)
        started = time.monotonic()
        code = service.process.wait(60)
        assert time.monotonic() - started < 15
        assert code == (143 if sign == signal.SIGTERM else 130)
        for client in clients:
            client.close()


def resident_kib(service: Service, what: str = "VmRSS") -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.findall(rf"{what}:\s+(\d+)", status)[0])


def test_memory_does_not_grow_with_clients_that_take_nothing_or_do_not_finish(built_memory: Path) -> None:
    unfinished = npy_bytes(np.zeros((20_000, 192), np.float32))[:-1]
    head = f"POST /bulk/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(unfinished) + 1}\r\n\r\n"
    with serving(built_memory) as service:
        for path in ("/bulk/vectors", "/bulk/rows?columns=key"):
            assert service.ask("POST", path, npy_bytes(np.zeros(20_000, np.int64)))[0] == 200
        assert service.search(b'{"text": "cat"}')[0] == 200
        before, n_open = resident_kib(service), open_files(service)
        clients = [service.send(untaken()) for _ in range(24)]  # each waits for 15,000 KiB
        clients += [service.send(head.encode() + unfinished) for _ in range(24)]  # each sent as much
        for client in clients[:24]:
            client.settimeout(60)
            assert client.recv(15) == b"HTTP/1.1 200 OK"
        assert service.search(b'{"text": "cat"}')[0] == 200
        assert resident_kib(service) - before < 60_000  # of 720,000
        for client in clients:
            client.close()
        time.sleep(1)
        assert open_files(service) <= n_open


def open_files(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


def test_when_too_much_waits_for_clients_more_is_refused_until_they_have_gone(built_memory: Path) -> None:
    def ask(path: str, body: bytes) -> tuple[int, dict[str, str]]:
        return service.ask("POST", path, body)[:2]

    ids = npy_bytes(np.zeros(20_000, np.int64))
    with serving(built_memory, "--max-spool-bytes", "20000000") as service:
        with service.send(untaken()) as first:
            assert first.recv(15) == b"HTTP/1.1 200 OK"
            status, headers = ask("/bulk/vectors", ids)
            assert (status, headers["retry-after"]) == (503, "5")
            assert (
                ask("/bulk/search", npy_bytes(np.zeros((20_000, 192), np.float32)))[0] == 503
            )  # its body finds no room
            assert ask("/bulk/vectors", ids[:128] + bytes(0))[0] == 400
            assert service.search(b'{"text": "cat"}')[0] == 200
        time.sleep(1)
        assert ask("/bulk/vectors", ids)[0] == 200


@pytest.mark.parametrize("rate_kib_s", [3_000, 100])
def test_who_is_slow_but_moves_gets_all_and_who_hardly_moves_is_cut_off(built_memory: Path, rate_kib_s: int) -> None:
    """One second, and one for each MiB: 15 MB at 3 MB/s take five."""
    with serving(built_memory, "--answer-s", "1", "--body-s", "1") as service:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(60)
        client.connect(("127.0.0.1", service.port))
        whole = 20_000 * 192 * 4
        taken, started = 0, time.monotonic()
        with client, contextlib.suppress(ConnectionError):
            client.sendall(untaken())
            while taken < whole and (data := client.recv(1 << 16)):
                taken += len(data)
                time.sleep(len(data) / (rate_kib_s << 10))
                if time.monotonic() - started > 60:
                    break
        assert (taken >= whole) == (rate_kib_s == 3_000)
        head = b"POST /bulk/rows?columns=key HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        with service.send(head) as sender:
            pieces = 0
            with contextlib.suppress(ConnectionError):
                for _ in range(30):  # four seconds
                    sender.sendall(b"%x\r\n%b\r\n" % (rate_kib_s << 7, bytes(rate_kib_s << 7)))
                    time.sleep(0.125)
                    pieces += 1
                sender.sendall(b"0\r\n\r\n")
                assert sender.recv(12) == b"HTTP/1.1 400"  # it is no array
            assert (pieces == 30) == (rate_kib_s == 3_000)


LATER = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
ENDLESS = b"GET /info HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "more"),
    [
        (b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n" + LATER, b""),
        (b"GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n" + LATER[:-4], b""),
        (b"GET /info HTTP/1.0\r\nHost: localhost\r\n\r\n", b""),
        (ENDLESS, b"1000\r\n%b\r\n" % bytes(4096)),
        (ENDLESS.replace(b"GET /info", b"POST /search"), b"1000\r\n%b\r\n" % bytes(4096)),
        (LATER, b""),
        (LATER.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"), b""),
    ],
)
def test_no_connection_lives_on_whatever_comes_after_the_first_request(
    impatient: Service, data: bytes, more: bytes
) -> None:
    with impatient.send(data) as client:
        client.settimeout(0.1)
        deadline = time.monotonic() + 20
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                if more:
                    client.sendall(more)
                with contextlib.suppress(TimeoutError):
                    if not client.recv(1 << 16):
                        break
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 40_000 + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
    ],
)
def test_what_is_no_http_is_told_so_as_everything_else_is(impatient: Service, data: bytes) -> None:
    with impatient.send(data) as client:
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(1 << 16):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"application/json" in head
    assert "error" in json.loads(body)


def test_the_longest_filter_fits_into_an_address(service: Service) -> None:
    query = urllib.parse.urlencode({"where": "caption = '" + "\U0001f43c" * 9_980 + "'"})
    assert service.ask("POST", f"/bulk/search?{query}", npy_bytes(np.ones((1, 192), np.float32)))[0] == 200


def test_a_short_answer_that_is_not_taken_is_given_up_too(impatient: Service) -> None:
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.connect(("127.0.0.1", impatient.port))
        client.settimeout(0.5)
        deadline, sent = time.monotonic() + 40, 0
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:  # questions as long as it listens, no answer is taken
                with contextlib.suppress(TimeoutError):
                    client.sendall(ask)
                    sent += 1
        assert time.monotonic() < deadline
    assert impatient.ask("GET", "/info")[0] == 200


@pytest.fixture(scope="module")
def impatient(built_memory: Path) -> Iterator[Service]:
    with serving(built_memory, "--head-s", "1", "--body-s", "1", "--answer-s", "1") as service:
        yield service


def test_a_client_that_leaves_is_no_error(service: Service) -> None:
    for data in (HEAD, BODY, untaken()[:1000]):
        service.send(data).close()
    time.sleep(0.5)
    assert service.ask("GET", "/info")[0] == 200  # and the fixture looks for tracebacks


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("MEMORY.example:80", 200),
        ("evil.example", 400),
        ("evil.example:8000", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost@evil.example", 400),
        ("192.168.0.1", 400),
        ("[::1", 400),
        ("", 400),
    ],
)
def test_a_page_of_a_stranger_cannot_call_it_by_its_own_name(service: Service, host: str, status: int) -> None:
    got, headers, data = service.ask("GET", "/info", Host=host)
    assert got == status, data
    assert headers["x-content-type-options"] == "nosniff"
    assert status == 200 or "--server-name" in json.loads(data)["error"]


def test_beyond_this_machine_any_address_and_named_hosts() -> None:
    from cluster.gate import HostNames

    names = HostNames("0.0.0.0", ["memory.example"])
    allowed = ["10.0.0.1:8000", "memory.example", "localhost", socket.gethostname(), "[2001:db8::1]:80"]
    assert all(map(names.allows, allowed))
    assert not any(map(names.allows, ["evil.example", "", None, "memory.example.evil.example"]))
    assert HostNames("box.example", []).allows("box.example:8000")


@pytest.mark.parametrize("path", ["/", "/docs", "/info", "/pictures/0", "/nowhere", "/openapi.json"])
def test_no_page_runs_what_is_not_ours_or_is_framed(service: Service, path: str) -> None:
    _, headers, data = service.ask("GET", path)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    if headers["content-type"].startswith("text/html"):
        assert not re.findall(rb"""(?:src|href)=["']?(?:https?:)?//""", data)
        assert not re.findall(rb"\son\w+=", data)


HEADS = [
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70},), }}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4,<f4', 'fortran_order': False, 'shape': (1,), }",
    "[" * 9_000,
    "'''",
    "{'a':\n  1\n b",
    "{[]:1}",
    "{1: 1, 'a': 2}",
    "-" * 9_000 + "1",
    "\0",
    "",
]


@pytest.mark.parametrize("path", ["/bulk/search", "/bulk/vectors", "/bulk/rows?columns=key"])
@pytest.mark.parametrize("version", [1, 2, 3, 9])
def test_arrays_that_are_none(service: Service, path: str, version: int) -> None:
    for head in HEADS:
        text = f"{head}\n".encode("latin1")
        length = struct.pack("<H" if version == 1 else "<I", len(text))
        body = b"\x93NUMPY" + bytes([version, 0]) + length + text
        status, _, data = service.ask("POST", path, body)
        assert (status, list(json.loads(data))) == (400, ["error"]), (head[:60], data[:200])
    for body in (b"", b"\x93NUMPY", b"PK\x03\x04", npy_bytes(np.zeros(3))[:-1], npy_bytes(np.zeros(3)) + b"x"):
        assert service.ask("POST", path, body)[0] == 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (rb"""{"text":"a","where":"caption = '\ud800'"}""", "Invalid JSON"),
        (rb'{"text":"\ud800"}', "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b'{"vectors":[[' + b"NaN," * 191 + b"NaN]]}", "query vectors hold NaN"),
        (b'{"text":"a","k":1e30}', "k:"),
        (b'{"text":"a","where":"' + b"(" * 9_000 + b'"}', "nested too deep"),
        (b'{"text":"a","where":"' + b"(" * 41 + b'"}', "nested too deep"),
        (b'{"text":"a","where":"' + b"NOT " * 2_000 + b'width"}', "nested too deep"),
        (b'{"text":"a","where":"' + b"width>1 OR " * 900 + b'width>1"}', "nested too deep"),
        (b'{"text":"a","where":"' + b"- " * 4_000 + b'1 > width"}', "nested too deep"),
        (b'{"text":"a","where":"' + b"CASE WHEN " * 900 + b'"}', "nested too deep"),
        (b'{"text":"a","where":"width IN (' + b"1," * 5_000 + b'1)"}', "at most 10000 characters"),
        (b'{"text":[' + b'"a",' * 1_000 + b'"a"]}', "at most 1000 items"),
        (b'{"text":[]}', "at least 1 item"),
        (b'{"text":"a","image":null}', "image"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b"null", "body: Input should be an object"),
    ],
)
def test_json_that_is_no_question(service: Service, body: bytes, says: str) -> None:
    started = time.monotonic()
    status, error = service.search(body)
    assert status == 400
    assert says in error
    assert len(error) < 2_000
    assert time.monotonic() - started < 20


def test_too_many_values_and_too_long_bodies(built_memory: Path, service: Service) -> None:
    many = b'{"vectors":[' + b"[1]," * 1_000_001 + b"[1]]}"
    assert service.search(many) == (413, "JSON of more than 2,000,000 values: send vectors as .npy to /bulk/search")
    with serving(built_memory, "--max-json-bytes", "100", "--max-body-bytes", "300") as small:
        assert small.search(b'{"text": "cat"}')[0] == 200
        assert small.search(b'{"text": "' + b"a" * 100 + b'"}')[0] == 413
        assert small.ask("POST", "/bulk/rows?columns=key", npy_bytes(np.zeros(5, np.int64)))[0] == 200
        assert small.ask("POST", "/bulk/rows?columns=key", npy_bytes(np.zeros(50, np.int64)))[0] == 413
        chunked = b"Transfer-Encoding: chunked\r\n\r\n" + b"64\r\n%b\r\n" % (b" " * 100) * 3
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with small.send(head + chunked) as client:
            assert client.recv(12) == b"HTTP/1.1 413"


def test_only_json_is_taken_for_a_question(service: Service) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # what a page may send to anyone
        status, _, data = service.ask("POST", "/search", b'{"text": "cat"}', content_type=kind)
        assert status == 400
        assert b"content type" in data


def png(width: int, height: int) -> bytes:
    """A PNG of zeros that says it is so large: small however large it is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((width * 4 + 1) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_that_takes_gigabytes_is_not_decoded(service: Service) -> None:
    def ask(data: bytes) -> tuple[int, str]:
        return service.search(json.dumps({"image": base64.b64encode(data).decode()}).encode())

    assert ask(png(900, 900))[0] == 200
    before = resident_kib(service, "VmHWM")
    threads = [threading.Thread(target=ask, args=(png(4_000, 4_000),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status, error = ask(png(4_000, 4_000))
    assert status == 400
    assert "16,000,000 pixels, this service takes 1,000,000" in error
    assert resident_kib(service, "VmHWM") - before < 60 << 10  # one would take 240 MiB


def test_openapi_says_what_is_answered(service: Service) -> None:
    described: dict[str, Any] = json.loads(service.ask("GET", "/openapi.json")[2])
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert sorted(names) == ["bulk_rows", "bulk_search", "bulk_vectors", "info", "page", "picture", "search"]
    assert all(operation["summary"] for operation in operations)
    assert not any("422" in operation["responses"] for operation in operations)
    by_name = dict(zip(names, operations, strict=True))
    assert {"200", "400", "413", "503"} == by_name["search"]["responses"].keys()
    assert {"200", "400", "404", "503"} == by_name["picture"]["responses"].keys()
    assert set(by_name["picture"]["responses"]["200"]["content"]) >= {"image/png", "image/jpeg"}
    assert list(by_name["bulk_vectors"]["requestBody"]["content"]) == ["application/x-npy"]
    assert list(by_name["bulk_search"]["responses"]["200"]["content"]) == ["application/x-npz"]
    page = service.ask("GET", "/docs")[2].decode()
    assert all(path in page for path in described["paths"])
