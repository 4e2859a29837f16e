"""Links to http(s): only to public addresses, and a reason for each way in which they fail."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from memory_builder.readers import web
from memory_builder.readers.link_policy import LinkPolicy, Target
from memory_builder.readers.pairs import BadPairError


class Handler(BaseHTTPRequestHandler):
    """What the path says."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        kind, _, rest = self.path[1:].partition("/")
        if kind == "status":
            self.send_response(int(rest))
            self.end_headers()
        elif kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
        elif kind == "hang":
            self.server.leave.wait(20)
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            while not self.server.leave.wait(0.05):
                self.wfile.write(b"x")
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            while not self.server.leave.is_set():
                self.wfile.write(bytes(1 << 20))
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"picture")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[str] = []
        self.leave = threading.Event()

    def handle_error(self, *_: Any) -> None:
        """A client that left."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.leave.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> web.SilentHosts:
    silent = web.SilentHosts()
    monkeypatch.setattr(web, "SILENT", silent)
    return silent


def reason_of(link: str, hosts: tuple[str, ...] = (), limit_s: float = 5.0) -> str:
    with pytest.raises(BadPairError) as bad:
        web.fetch_url(LinkPolicy(hosts=hosts).link(link, "/data/list.csv"), limit_s=limit_s)
    return str(bad.value)


SPELLINGS = [
    "127.0.0.1",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "0.0.0.0",
    "0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "user:password@127.0.0.1",
    "127.0.0.1#@example.org",
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_loopback_is_not_asked_however_it_is_written(server: Server, host: str) -> None:
    name, port = host.split("#")[0], server.server_port
    link = f"http://{name}:{port}/x" + host.removeprefix(name)
    assert reason_of(link) in (web.NOT_PUBLIC, web.NO_URL, web.NO_ADDRESS)
    assert server.seen == []


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1"])
@pytest.mark.parametrize("form", ["{}", "::ffff:{}", "64:ff9b::{}"])
def test_private_addresses_are_not_public_nor_are_those_inside_others(address: str, form: str) -> None:
    assert not web.is_public(form.format(address))
    assert web.is_public("93.184.215.14")
    assert web.is_public("2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert not any(map(web.is_public, ["fe80::1%eth0", "fc00::1", "ff02::1", "fec0::1", "2002:7f00:1::", "240.0.0.1"]))


def test_a_host_that_is_named_is_asked_and_redirects_are_checked_anew(server: Server) -> None:
    at = f"127.0.0.1:{server.server_port}"
    for named in ("127.0.0.1", at):
        target = LinkPolicy(hosts=(named,)).link(f"http://{at}/x", "/data/list.csv")
        assert web.fetch_url(target) == b"picture"
    target = LinkPolicy(hosts=(at,)).link(f"http://{at}/to/http://{at}/x", "/data/list.csv")
    assert web.fetch_url(target) == b"picture"
    before = len(server.seen)
    elsewhere = f"localhost:{server.server_port}"
    assert reason_of(f"http://{at}/to/http://{elsewhere}/x", (at,)) == web.NOT_PUBLIC
    assert reason_of(f"http://{at}/to/file:///etc/passwd", (at,)).startswith(
        "link of a kind that is not followed (file"
    )
    assert reason_of(f"http://{at}/to/http://{at}/to/http://{elsewhere}/x", (at,)) == web.NOT_PUBLIC
    assert len([path for path in server.seen[before:] if path == "/x"]) == 0
    loop = f"http://{at}/to/" + f"http://{at}/to/" * 8
    assert reason_of(loop + "x", (at,)) == "link is redirected too often"
    assert reason_of(f"http://{at}/x", ("127.0.0.1:1",)) == web.NOT_PUBLIC


@pytest.mark.parametrize(
    "address",
    [
        *(
            "192.0.0.192",
            "168.63.129.16",
            "100.100.100.200",
            "::ffff:192.0.0.192",
            "64:ff9b::a83f:8110",
            "fd00:ec2::254",
        ),
        *("64:ff9b:1::7f00:1", "::127.0.0.1", "::ffff:0:127.0.0.1", "3fff::1", "5f00::1", "192.88.99.1", "2001:db8::1"),
    ],
)
def test_where_clouds_tell_machines_their_secrets_and_what_is_of_no_one_is_not_public(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize("second", ["127.0.0.1", "169.254.169.254"])
def test_a_name_that_resolves_anew_to_a_private_address_gets_nowhere(
    server: Server, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[Any] = []
    resolved = [[second], ["93.184.215.14", second]]

    def getaddrinfo(*_: Any, **__: Any) -> Any:
        addresses = resolved.pop() if len(resolved) > 1 else resolved[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.server_port)) for address in addresses]

    def public_socket(info: Any) -> Any:
        connected.append(info[4][0])
        raise ConnectionResetError("nobody there")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(web, "_public_socket", public_socket)
    assert reason_of(f"http://rebinding.example:{server.server_port}/x", limit_s=10) == web.NOT_PUBLIC
    assert set(connected) == {"93.184.215.14"}  # the one beside it, and what it became, were never connected to
    assert server.seen == []


@pytest.mark.slow
def test_each_way_to_fail_has_its_reason_and_takes_seconds(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    at = f"127.0.0.1:{server.server_port}"
    hosts = (at, "127.0.0.1", "name.invalid")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        started = time.monotonic()
        reasons = {
            reason_of("http://name.invalid/x", hosts): web.NO_ADDRESS,
            reason_of("http://another.invalid/x"): web.NO_ADDRESS,
            reason_of(refused, hosts): web.REFUSED,
            reason_of(f"http://{at}/status/403", hosts): "may not be read (HTTP 403)",
            reason_of(f"http://{at}/status/404", hosts): "not found (HTTP 404)",
            reason_of(f"http://{at}/status/429", hosts): "server takes no more requests (HTTP 429)",
            reason_of(f"http://{at}/status/500", hosts): "server answers HTTP 500",
            reason_of(f"http://{at}/status/204", hosts): "server answers HTTP 204",
            reason_of(f"http://{at}/hang", hosts, limit_s=1): web.TIMED_OUT,
            reason_of(f"http://{at}/drip", hosts, limit_s=1): web.TIMED_OUT,
            reason_of("http://[", hosts): "link is no URL",
            reason_of("http://", hosts): "link is no URL",
            reason_of("https://127.0.0.1:1/x", hosts): web.REFUSED,
            reason_of(f"https://{at}/x", hosts): web.NOT_SECURE,
        }
    assert {got: got for got in reasons} == reasons
    assert time.monotonic() - started < 15
    monkeypatch.setattr(web, "MAX_BYTES", 3 << 20)
    assert reason_of(f"http://{at}/endless", hosts) == "file larger than 3 MiB"


def test_hosts_that_never_answer_are_left_alone_for_a_while(server: Server, silent: web.SilentHosts) -> None:
    at = f"127.0.0.1:{server.server_port}"
    started = time.monotonic()
    reasons = [reason_of("http://name.invalid/x") for _ in range(20)]
    assert reasons == [web.NO_ADDRESS] * 3 + [web.LEFT_ALONE] * 17
    assert time.monotonic() - started < 5
    for _ in range(5):  # one that answers, with whatever, is not
        assert reason_of(f"http://{at}/status/404", (at,)) == "not found (HTTP 404)"
    shortly = web.SilentHosts(after=1, for_s=0.05, most=100)
    for i in range(1_000):
        shortly.failed(f"host-{i}")
    assert len(shortly) == 100
    assert shortly.is_silent("host-999")
    time.sleep(0.06)
    assert not shortly.is_silent("host-999")
    assert silent.is_silent("name.invalid:80")


def test_a_host_of_the_named_source_is_waited_for_longer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "ATTEMPTS", 3)
    monkeypatch.setattr(web, "LONGEST_PAUSE_S", 0.01)
    table = f"http://127.0.0.1:{server.server_port}/list.csv"
    target = LinkPolicy(follows_named=True).link("status/503", table)
    assert target == Target(table.replace("list.csv", "status/503"), False, (table.split("/")[2],), True)
    with pytest.raises(BadPairError, match="HTTP 503"):
        web.fetch_url(target)
    assert len(server.seen) == 3
    with pytest.raises(BadPairError, match="HTTP 503"):
        web.fetch_url(LinkPolicy(hosts=("127.0.0.1",)).link(target.uri, "/data/list.csv"))
    assert len(server.seen) == 3 + web.THIRD_PARTY_ATTEMPTS
