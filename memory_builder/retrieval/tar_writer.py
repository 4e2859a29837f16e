"""``TarWriter``: a tar whose bytes depend only on its pairs."""

import hashlib
import tarfile
from types import TracebackType
from typing import BinaryIO


class TarWriter:
    """Writes files in order, without owner and time.

    Args:
        file: file open for writing, empty.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.n_bytes = 0

    def add(self, name: str, data: bytes) -> None:
        """Write one file."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes written."""
        return self._digest.hexdigest()

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            end = 2 * tarfile.BLOCKSIZE
            self._write(bytes(end + -(self.n_bytes + end) % tarfile.RECORDSIZE))
            self._file.flush()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.n_bytes += len(data)
