"""Open the file of a shard on any filesystem, compressed or not.

Exceptions of the storage become a ``TransportError``, after which the shard is retried; only exceptions caused by the
bytes themselves count as damage. A file on a web server without byte ranges is read as a stream.
"""

import bz2
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pyarrow as pa
from fsspec.asyn import sync

from memory_builder.storage.filesystem import is_local, open_filesystem

BUFFER_BYTES = 1 << 17
PIECE_BYTES = 1 << 20
SPOOL_BYTES = 64 << 20
"""Size above which a copy for random access is on disk, not in memory."""


class TransportError(OSError):
    """The storage failed during a read."""


class DamagedFileError(ValueError):
    """The compressed bytes cannot be decompressed."""


class Transport(io.RawIOBase):
    """A file of any filesystem whose exceptions become TransportError, except for a missing file."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return getattr(self._file, method)(*args)
        except (FileNotFoundError, MemoryError, TransportError):
            raise
        except Exception as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error

    def readinto(self, buffer: Any) -> int:
        if isinstance(self._file, io.FileIO):
            return int(self._call("readinto", buffer))
        data = self._call("read", len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return cast(bytes, self._call("read"))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._call("seek", offset, whence))

    def tell(self) -> int:
        return int(self._call("tell"))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Forward:
    """A stream that is read once and can only seek forward."""

    def __init__(self, file: Any, damage: tuple[type[Exception], ...] = ()) -> None:
        self._file = file
        self._damage = damage
        self._at = 0
        self._peeked = b""

    def __enter__(self) -> "Forward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def peek(self, size: int) -> bytes:
        """Return the next bytes without consuming them; fewer only at the end."""
        while len(self._peeked) < size and (more := self._next(size - len(self._peeked))):
            self._peeked += more
        return self._peeked[:size]

    def read(self, size: int = -1) -> bytes:
        """Read ``size`` bytes; fewer only at the end."""
        pieces: list[bytes] = []
        left = size
        while left and (piece := self._next(left)):
            pieces.append(piece)
            left -= len(piece) if size >= 0 else 0
        data = b"".join(pieces)
        self._at += len(data)
        return data

    def _next(self, size: int) -> bytes:
        """Read at most ``size`` of the next bytes; none at the end. A web server may return fewer."""
        if self._peeked:
            end = size if size >= 0 else len(self._peeked)
            data, self._peeked = self._peeked[:end], self._peeked[end:]
            return data
        try:
            return cast(bytes, self._file.read(min(size, PIECE_BYTES) if size >= 0 else PIECE_BYTES))
        except (TransportError, MemoryError):
            raise
        except self._damage as error:
            raise DamagedFileError(str(error) or type(error).__name__) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        ahead = offset - self._at if whence == io.SEEK_SET else offset
        if whence == io.SEEK_END or ahead < 0:
            raise DamagedFileError("a header leads back in a stream")
        while ahead and (passed := len(self.read(min(ahead, PIECE_BYTES)))):
            ahead -= passed
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._file.close()


class _Gzip(gzip.GzipFile):
    """A gzip reader that closes the underlying file."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._packed = file

    def close(self) -> None:
        super().close()
        self._packed.close()


def _zstd(file: BinaryIO) -> Forward:
    return Forward(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"), (OSError, ValueError))


COMPRESSIONS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": _Gzip,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"BZh": lambda file: Forward(bz2.BZ2File(file), (OSError, EOFError, ValueError)),
    b"\xfd7zXZ\0": lambda file: Forward(lzma.LZMAFile(file), (lzma.LZMAError, EOFError)),  # noqa: SIM115 - closed by its reader
}
"""First bytes of a file → its decompression; its suffix is ignored."""


def open_plain(uri: str) -> BinaryIO:
    """Open a file as stored, for random access.

    Raises:
        FileNotFoundError: the file is missing.
        TransportError: the storage fails.
    """
    return _at_random(_open(uri))


def open_stream(uri: str) -> BinaryIO:
    """Open a file, decompressed, for reading forward; raises as ``open_plain``."""
    file = _open(uri)
    unpack = _compression(file)
    return cast(BinaryIO, unpack(cast(BinaryIO, file)) if unpack else file)


def open_unpacked(uri: str) -> BinaryIO:
    """Open a file, decompressed, for random access; raises as ``open_plain``, and DamagedFileError."""
    file = _open(uri)
    unpack = _compression(file)
    try:
        if unpack:
            return _copied(unpack(cast(BinaryIO, file)))
        return _at_random(file)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, TransportError):
            raise
        raise DamagedFileError(str(error) or type(error).__name__) from error


def _open(uri: str) -> io.BufferedReader | Forward:
    fs, path = open_filesystem(uri)
    if is_local(fs):
        return io.BufferedReader(Transport(io.FileIO(path)), BUFFER_BYTES)
    if not uri.startswith(("http://", "https://")):
        return io.BufferedReader(Transport(fs.open(path, "rb")), BUFFER_BYTES)
    try:
        file = fs.open(path, "rb")
        if file.size is not None and sync(fs.loop, _gives_ranges, fs, path):
            return io.BufferedReader(Transport(file), BUFFER_BYTES)
        return Forward(Transport(fs.open(path, "rb", block_size=0)))
    except FileNotFoundError:
        raise
    except Exception as error:  # aiohttp's errors are of many kinds
        raise TransportError(f"{type(error).__name__}: {error}") from error


async def _gives_ranges(fs: Any, url: str) -> bool:
    """Whether a web server supports byte ranges; many that do so do not announce it."""
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers={"Range": "bytes=1-1"}) as response:
        return bool(response.status == 206)


def _compression(file: io.BufferedReader | Forward) -> Callable[[BinaryIO], Any] | None:
    head = file.peek(6)
    return next((unpack for magic, unpack in COMPRESSIONS.items() if head.startswith(magic)), None)


def _at_random(file: io.BufferedReader | Forward) -> BinaryIO:
    return _copied(file) if isinstance(file, Forward) else cast(BinaryIO, file)


def _copied(file: Any) -> BinaryIO:
    spool = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115 - the reader closes it
    try:
        with file:
            shutil.copyfileobj(file, spool, PIECE_BYTES)
    except BaseException:
        spool.close()
        raise
    spool.seek(0)
    return cast(BinaryIO, spool)
