"""Spools: request bodies and responses in transfer, small ones in memory, larger ones in unnamed files.

A thousand slow clients may each transfer hundreds of megabytes at once: memory must not grow with them.
"""

import contextlib
import ctypes
import mmap
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import IO, Any, cast

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from memory_builder.errors import MemoryBuilderError

CHUNK_BYTES = 1 << 17
"""Largest spool in memory; larger ones are written and read in chunks of this size."""


KEPT_FREE_BYTES = 1 << 20
"""Free memory that each thread keeps; larger blocks are returned to the system."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as <malloc.h> numbers them


class NoRoomError(MemoryBuilderError):
    """The spool is full of other clients' data: the same request may succeed later."""


class Spools:
    """Opens spools, and limits their total size on disk. Safe to use from several threads.

    Files are in ``TMPDIR`` without names, so none remains however the process ends.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.held_bytes = 0

    def open(self) -> "Spool":
        """Open an empty spool."""
        return Spool(self)

    def answer(self, write: Callable[[IO[bytes]], Any], media_type: str) -> "SpooledResponse":
        """Make a response of the bytes that ``write`` writes.

        Raises:
            NoRoomError: the limit is reached.
        """
        spool = self.open()
        try:
            write(cast(IO[bytes], spool))
            spool.flush()
            return SpooledResponse(spool, media_type)
        except BaseException:
            spool.close()
            raise

    def hold(self, n_bytes: int) -> None:
        """Count bytes as held; a negative number releases them.

        Raises:
            NoRoomError: the limit is reached.
        """
        with self._lock:
            if n_bytes > 0 and self.held_bytes + n_bytes > self._max_bytes:
                raise NoRoomError(
                    f"{self.held_bytes:,} bytes wait for other clients, of {self._max_bytes:,}: ask again later"
                )
            self.held_bytes += n_bytes


class Spool(tempfile.SpooledTemporaryFile[bytes]):
    """A file, in memory up to ``CHUNK_BYTES``. Closing releases its bytes."""

    def __init__(self, spools: Spools) -> None:
        super().__init__(max_size=CHUNK_BYTES)
        self.n_bytes = 0
        self._spools = spools
        self._held_bytes = 0

    def write(self, data: Any) -> int:
        """Write bytes, or any buffer of them.

        Raises:
            NoRoomError: the limit is reached, or the disk is full.
        """
        end = self.tell() + memoryview(data).nbytes
        if end > max(CHUNK_BYTES, self._held_bytes):
            self._spools.hold(end - self._held_bytes)
            self._held_bytes = end
        with _disk_faults():
            if self._held_bytes:
                self.rollover()
            written = super().write(data)
        self.n_bytes = max(self.n_bytes, end)
        return written

    def flush(self) -> None:
        """Flush to the file, with disk errors as NoRoomError."""
        with _disk_faults():
            super().flush()

    def content(self) -> bytes | mmap.mmap:
        """All bytes written; for a file, a mapping of it."""
        if self._held_bytes:
            self.flush()
            return mmap.mmap(self.fileno(), 0, access=mmap.ACCESS_READ)
        self.seek(0)
        return self.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over all bytes written, in chunks."""
        self.seek(0)
        while data := await run_in_threadpool(self.read, CHUNK_BYTES) if self._held_bytes else self.read():
            yield data

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # unwritten bytes are not needed
            super().close()
        held, self._held_bytes = self._held_bytes, 0
        self._spools.hold(-held)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def _disk_faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise NoRoomError(
            f"cannot write to {folder}: {error.strerror}. Free space there, or set TMPDIR to another folder"
        ) from None


class SpooledResponse(StreamingResponse):
    """The content of a spool, which is closed once it is sent or the client is gone.

    The next chunk is read once the server has sent the previous one.
    """

    def __init__(self, spool: Spool, media_type: str) -> None:
        super().__init__(spool.chunks(), media_type=media_type, headers={"content-length": str(spool.n_bytes)})
        self._spool = spool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._spool:
            await super().__call__(scope, receive, send)


def return_freed_memory() -> None:
    """Make the allocator return large blocks to the system as soon as they are free.

    glibc's keeps more for each thread the larger the blocks it has seen: some 30 MB for each of forty threads. Other
    allocators are left unchanged.
    """
    with contextlib.suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
        allocator.mallopt(_M_MMAP_THRESHOLD, KEPT_FREE_BYTES)
