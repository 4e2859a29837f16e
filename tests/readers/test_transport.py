"""What storage does is told apart from what bytes are: servers without ranges, broken reads, any compression."""

import bz2
import gzip
import io
import lzma
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from PIL import Image

from helpers.tars import good_pairs, tar_bytes
from memory_builder.errors import SourceError, TransportFailedError
from memory_builder.readers.discover import find_sources
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.read import Pair, Reject, Truncated, read_member, read_pairs

OWN = LinkPolicy(follows_named=True)


def noise(seed: int, side: int = 700) -> bytes:
    """A PNG of 1.5 MB: a few of them are larger than a block that fsspec fetches."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Starts servers on loopback; returns their addresses."""
    servers = []

    def start(handler: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("name", ["a.tar", "b.tar.gz", "c.parquet", "d.csv"])
def test_a_server_without_ranges_is_read_whole(tmp_path: Path, serve: Callable[[Any], str], name: str) -> None:
    pictures = [noise(i) for i in range(4)]
    texts = [f"noise {i}" for i in range(4)]
    tar = tar_bytes([m for i in range(4) for m in ((f"{i}.png", pictures[i]), (f"{i}.txt", texts[i].encode()))])
    (tmp_path / "a.tar").write_bytes(tar)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar, 1))
    pq.write_table(pa.table({"image": pictures, "caption": texts}), tmp_path / "c.parquet", row_group_size=2)
    filler = "x" * (2 << 20)
    (tmp_path / "d.csv").write_text("name,caption\n" + "".join(f"{filler},{text}\n" for text in texts))
    base = serve(partial(Quiet, directory=str(tmp_path)))
    (source,) = find_sources([f"{base}/{name}"])
    items = list(read_pairs(source.uri, require="text"))
    assert [item.caption for item in items if isinstance(item, Pair)] == texts
    if name != "d.csv":
        assert [item.image for item in items if isinstance(item, Pair)] == pictures
    assert len(items) == 4
    if name.startswith(("a", "b")):
        assert read_member(source.uri, "2.png", OWN) == pictures[2]


class Breaking(BaseHTTPRequestHandler):
    """Sends half of what it promises."""

    data = b""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.data[: len(self.data) // 2])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.parquet"])
def test_a_connection_that_breaks_off_fails_the_shard_and_is_no_damage_of_it(
    serve: Callable[[Any], str], name: str
) -> None:
    pictures = [noise(i) for i in range(4)]
    tar = tar_bytes([m for i in range(4) for m in ((f"{i}.png", pictures[i]), (f"{i}.txt", b"noise"))])
    table = io.BytesIO()
    pq.write_table(pa.table({"image": pictures, "caption": ["noise"] * 4}), table, row_group_size=1)
    data = {"a.tar": tar, "a.tar.gz": gzip.compress(tar, 1), "a.parquet": table.getvalue()}[name]
    base = serve(type("Handler", (Breaking,), {"data": data}))
    with pytest.raises(TransportFailedError, match="failed"):
        list(read_pairs(f"{base}/{name}"))


class FailingFile(MemoryFile):
    """Fails at its third read, in one way or another."""

    error: Exception = OSError("reset")
    n_read = 0

    def read(self, size: int = -1) -> bytes:
        FailingFile.n_read += 1
        if FailingFile.n_read > 2:
            raise self.error
        return super().read(size)


class FailingFileSystem(MemoryFileSystem):
    protocol = "failing"
    cachable = False

    def _open(self, path: str, *_: Any, **__: Any) -> FailingFile:
        kept = MemoryFileSystem.store[self._strip_protocol(path).removeprefix("failing:")]
        return FailingFile(self, path, kept.getvalue())

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("failing://"))


@pytest.mark.parametrize(
    "error", [ValueError("no ranges"), RuntimeError("x"), EOFError("y"), OSError("z"), KeyError("e")]
)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.parquet"])
def test_whatever_a_files_read_raises_is_an_error_of_its_storage(
    monkeypatch: pytest.MonkeyPatch, error: Exception, name: str
) -> None:
    fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
    monkeypatch.setattr(FailingFile, "error", error)
    monkeypatch.setattr(FailingFile, "n_read", 0)
    pictures = [noise(i, 300) for i in range(6)]
    tar = tar_bytes([m for i in range(6) for m in ((f"{i}.png", pictures[i]), (f"{i}.txt", b"noise"))])
    table = io.BytesIO()
    pq.write_table(pa.table({"image": pictures, "caption": ["noise"] * 6}), table, row_group_size=1)
    data = {"a.tar": tar, "a.tar.gz": gzip.compress(tar, 1), "a.parquet": table.getvalue()}[name]
    fsspec.filesystem("memory").pipe_file(f"/{name}", data)
    items: list[Any] = []
    with pytest.raises(TransportFailedError):
        items.extend(read_pairs(f"failing://{name}"))
    assert not [item for item in items if isinstance(item, Truncated)]


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
    "zstd": lambda data: b"".join(pa.Codec("zstd").compress(part).to_pybytes() for part in (data[:5000], data[5000:])),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst", ".TAR"])
@pytest.mark.parametrize("pack", PACKS)
def test_a_tar_is_read_by_its_bytes_whatever_its_name(tmp_path: Path, pack: str, suffix: str) -> None:
    keys = [f"{n:02d}" for n in range(20)]
    path = tmp_path / f"shard{suffix}"
    path.write_bytes(PACKS[pack](tar_bytes(good_pairs(keys))))
    assert [source.uri for source in find_sources([str(tmp_path)])] == [str(path)]
    assert [item.key for item in read_pairs(str(path))] == keys
    assert read_member(str(path), "07.png", OWN) == dict(good_pairs(keys))["07.png"]
    assert [item.key for item in read_pairs(str(path), only=frozenset({"03", "17"}))] == ["03", "17"]


@pytest.mark.parametrize("pack", [pack for pack in PACKS if pack != "plain"])
def test_a_compressed_tar_that_is_damaged_breaks_off_and_keeps_what_came_before(tmp_path: Path, pack: str) -> None:
    whole = bytearray(
        PACKS[pack](
            tar_bytes([(f"{n:02d}.txt", np.random.default_rng(n).bytes(9000).hex().encode()) for n in range(300)])
        )
    )
    path = tmp_path / "shard.tar"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    items = list(read_pairs(str(path), require="text"))
    assert isinstance(items[-1], Truncated)
    assert 0 < sum(isinstance(item, Pair) for item in items) < 300
    path.write_bytes(whole[:20] + b"\xff" * 40 + whole[60:])
    broken = list(read_pairs(str(path), require="text"))
    assert isinstance(broken[-1], Truncated)
    assert not [item for item in broken if isinstance(item, Reject)]


def test_a_file_that_is_no_tar_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"hello" * 1000))
    (item,) = read_pairs(str(tmp_path / "a.tar"))
    assert isinstance(item, Truncated)
    assert item.reason.startswith("not a tar")


def test_a_shard_that_is_gone_is_called_so(tmp_path: Path) -> None:
    for name in ("a.tar", "a.csv", "a.parquet"):
        with pytest.raises(SourceError, match="missing since it was planned"):
            list(read_pairs(str(tmp_path / name)))
