"""Bodies and answers while clients send and take them: short ones in memory, longer ones in files without a name.

A client may take its time for hundreds of megabytes, and a thousand may do so at once: memory must not grow with them.
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
"""Kept in memory of each; what is longer is written and read in pieces of this size."""


KEPT_FREE_BYTES = 1 << 20
"""Of each thread's memory; larger pieces go back."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as <malloc.h> numbers them


class NoRoomError(MemoryBuilderError):
    """Too much waits for other clients: the same request may succeed later."""


class Spools:
    """Opens spools, and limits what all of them hold on disk together. Safe to use from several threads.

    Files are made in ``TMPDIR`` and have no name: however the process ends, none is left.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.held_bytes = 0

    def open(self) -> "Spool":
        """An empty one."""
        return Spool(self)

    def answer(self, write: Callable[[IO[bytes]], Any], media_type: str) -> "SpooledResponse":
        """An answer of what ``write`` writes.

        Raises:
            NoRoomError: too much is held already.
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
        """Count bytes as held; a negative number of them is let go.

        Raises:
            NoRoomError: too much is held already.
        """
        with self._lock:
            if n_bytes > 0 and self.held_bytes + n_bytes > self._max_bytes:
                raise NoRoomError(
                    f"{self.held_bytes:,} bytes wait for other clients, of {self._max_bytes:,}: ask again later"
                )
            self.held_bytes += n_bytes


class Spool(tempfile.SpooledTemporaryFile[bytes]):
    """A file, in memory up to ``CHUNK_BYTES``. Closing gives its room back."""

    def __init__(self, spools: Spools) -> None:
        super().__init__(max_size=CHUNK_BYTES)
        self.n_bytes = 0
        self._spools = spools
        self._held_bytes = 0

    def write(self, data: Any) -> int:
        """Write bytes, or any buffer of them.

        Raises:
            NoRoomError: too much is held already, or the disk is full.
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
        """Have all that was written in the file, or say why not."""
        with _disk_faults():
            super().flush()

    def content(self) -> bytes | mmap.mmap:
        """All that was written; of a long one, a mapping of its file."""
        if self._held_bytes:
            self.flush()
            return mmap.mmap(self.fileno(), 0, access=mmap.ACCESS_READ)
        self.seek(0)
        return self.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """All that was written, in pieces."""
        self.seek(0)
        while data := await run_in_threadpool(self.read, CHUNK_BYTES) if self._held_bytes else self.read():
            yield data

    def close(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):  # what could not be written is not wanted any more
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
            f"cannot write to {folder}: {error.strerror}. Give it room, or name another folder by TMPDIR"
        ) from None


class SpooledResponse(StreamingResponse):
    """The content of a spool, which is closed as soon as it is sent, or nobody takes it any more.

    The next piece is read when the server has no byte left of the one before.
    """

    def __init__(self, spool: Spool, media_type: str) -> None:
        super().__init__(spool.chunks(), media_type=media_type, headers={"content-length": str(spool.n_bytes)})
        self._spool = spool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        with self._spool:
            await super().__call__(scope, receive, send)


def return_freed_memory() -> None:
    """Have this process give large pieces of memory back as soon as they are free.

    The allocator (glibc's; others are left alone) keeps the more for each thread the larger the pieces are that it has
    seen: some 30 MB, times forty threads.
    """
    with contextlib.suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
        allocator.mallopt(_M_MMAP_THRESHOLD, KEPT_FREE_BYTES)
