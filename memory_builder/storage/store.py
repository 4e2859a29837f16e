"""A folder on any filesystem fsspec knows, with the few operations a memory needs.

Three guarantees hold on all of them: a file appears whole or not at all (``put``, ``writing``), one writer wins a
name (``create``), and contents can be checked (``sha256``). Paths are relative to the root.
"""

import errno
import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from memory_builder.errors import REPAIR, CorruptMemoryError, StorageError, StorageFullError
from memory_builder.storage.file_cache import cached_file
from memory_builder.storage.filesystem import ATTEMPTS, is_local, open_filesystem, uri_of

TEMPORARY = ".tmp"
CLOCK = ".tmp/clock"
"""File that is written to an object store to read the store's clock."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES)
"""Error numbers of ``os.link`` on filesystems without hard links (exFAT, SMB, FUSE)."""
PAUSE_S = 0.1
CLAIM_S = 10.0
"""Seconds after which an empty file counts as left by a writer killed between its name and its content."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(data: bytes) -> str:
    """SHA-256 as hex: the checksum in commit records."""
    return hashlib.sha256(data).hexdigest()


class Store:
    """A folder at ``root``: a local path or any fsspec URL (``s3://bucket/prefix``), with options for fsspec.

    ``root`` may be another store, whose options are kept. Listings are never cached: another process may be writing.
    """

    def __init__(self, root: "str | Path | Store", **options: Any) -> None:
        self.options: dict[str, Any] = root.options | options if isinstance(root, Store) else options
        path = root.root if isinstance(root, Store) else str(root)
        self.fs, self.path = open_filesystem(path, **self.options)
        self.path = self.path.rstrip("/")
        self.is_local = is_local(self.fs)
        self.root: str = uri_of(self.fs, self.path)

    def __repr__(self) -> str:
        return f"Store({self.root!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the root and options alone: a worker that unpickles a task reopens its store."""
        return partial(Store, **self.options), (self.root,)

    def full(self, path: str) -> str:
        """Return a relative path as a path of the filesystem.

        Raises:
            CorruptMemoryError: the path leads outside this folder. Paths come from records, which are checked when
                they are decoded; this is a second check.
        """
        if not path:
            return self.path
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise CorruptMemoryError(f"{self.root}: path {path!r} leads outside this folder")
        return f"{self.path}/{path}"

    def _inside(self, path: str) -> Path:
        """Return the path of a local file to be written or removed.

        Raises:
            CorruptMemoryError: its folder is a link that leads outside the store.
        """
        target = Path(self.full(path))
        folder, root = os.path.realpath(target.parent), os.path.realpath(self.path)
        if os.path.commonpath([folder, root]) != root:
            raise CorruptMemoryError(
                f"{target.parent} is a link to {folder}, outside {self.root}: nothing is written or removed there",
                "remove the link, or name the folder that it leads to",
            )
        return target

    def read(self, path: str) -> bytes:
        """Read a whole file; FileNotFoundError if it is missing."""
        with self._storage_errors(f"{self.root}/{path}"):
            data: bytes = self.fs.cat_file(self.full(path))
        return data

    def read_json(
        self, path: str, *, fix: str = "remove it and run the command that writes it again"
    ) -> dict[str, Any] | None:
        """Read a JSON object; None if the file is missing.

        Raises:
            CorruptMemoryError: the file is not a JSON object; the message ends with ``fix``.
        """
        try:
            record: dict[str, Any] = dict(json.loads(self.read(path)).items())
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError, RecursionError) as error:  # no JSON, or no object
            raise CorruptMemoryError(f"{self.root}/{path} is damaged ({error})", fix) from None
        return record

    def read_sound_json(self, path: str) -> dict[str, Any] | None:
        """Read a JSON object; None if it is missing or damaged, for callers that write it anew."""
        try:
            return self.read_json(path)
        except CorruptMemoryError:
            return None

    def read_ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> Sequence[bytes]:
        """Fetch byte ranges of one file together; a range past the file's end comes back shorter.

        Raises:
            CorruptMemoryError: the file ends before a start, on stores that report it.
        """
        with self._storage_errors(f"{self.root}/{path}"):
            try:
                pieces: Sequence[bytes] = self.fs.cat_ranges(
                    [self.full(path)] * len(starts), list(starts), list(ends), on_error="raise"
                )
            except OSError as error:
                if error.errno != errno.EINVAL:  # s3fs raises it for "range not satisfiable"
                    raise
                raise CorruptMemoryError(
                    f"{self.root}/{path} is shorter than its commit says ({error})", REPAIR
                ) from None
        return pieces

    def open(self, path: str) -> BinaryIO:
        """Open a file for reading, seekable."""
        file: BinaryIO = self.fs.open(self.full(path), "rb")
        return file

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(self.full(path)))

    def list(self, folder: str, kind: Literal["file", "directory"] = "file") -> list[str]:
        """Return the sorted names of the files (or folders) in a folder; empty if the folder is missing."""
        try:
            with self._storage_errors(f"{self.root}/{folder}"):
                entries = self.fs.ls(self.full(folder), detail=True)
        except FileNotFoundError:
            return []
        names = (entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == kind)
        return sorted(name for name in names if name)

    def size(self, path: str) -> int:
        """Size of a file in bytes."""
        return int(self.fs.size(self.full(path)))

    def remove(self, path: str) -> None:
        if self.is_local:
            self._inside(path).unlink()
        else:
            self.fs.rm_file(self.full(path))

    def remove_folder(self, path: str) -> None:
        """Remove a folder with its contents; raise if it is a link that leads outside the store."""
        if self.is_local:
            self._inside(f"{path}/file")
        self.fs.rm(self.full(path), recursive=True)

    def put(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing an older one."""
        if self.is_local:
            with self.writing(path) as temporary:
                temporary.write_bytes(data)
        else:
            with self._storage_errors(f"{self.root}/{path}"):
                self.fs.pipe_file(self.full(path), data)

    def create(self, path: str, data: bytes) -> None:
        """Write a file only if the name is free; FileExistsError if another writer was first.

        On an object store, a file with the very same bytes counts as our own. On a local disk the name of an empty
        file that is older than CLAIM_S is free: see ``_claim``.
        """
        with self._storage_errors(f"{self.root}/{path}"):
            if self.is_local:
                self._create_locally(path, data)
            else:
                self._create_remotely(path, data)

    def _create_locally(self, path: str, data: bytes) -> None:
        temporary, target = self._temporary(), self._inside(path)
        try:
            temporary.write_bytes(data)
            _fsync(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(temporary, target)  # unlike rename, link never replaces
            except FileExistsError:
                self._take_over_empty(path, temporary, target)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                self._claim(path, temporary, target)
            _fsync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _claim(self, path: str, temporary: Path, target: Path) -> None:
        """Create a file without hard links: first its name, exclusively and empty, then its content, by renaming.

        A reader sees no file, an empty one or the whole one. Records are never empty, so an empty file is no record. If
        a writer is killed between the two steps, its empty file is taken over once it is older than CLAIM_S.
        """
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            self._take_over_empty(path, temporary, target)
        else:
            os.replace(temporary, target)

    def _take_over_empty(self, path: str, temporary: Path, target: Path) -> None:
        """Write the content of an abandoned empty file; FileExistsError if another writer did.

        Several writers may try. Each creates a claim file, exclusively, and checks the empty file again then.
        """
        while (age_s := self._age_of_empty_s(path)) is not None and age_s <= CLAIM_S:
            time.sleep(PAUSE_S)  # its writer is about to replace it by the content, or was killed
        if age_s is None:
            raise FileExistsError(f"{self.root}/{path}")
        claim = f"{path}.{target.stat().st_mtime_ns}.claim"
        if (self._age_of_empty_s(claim) or 0.0) > CLAIM_S:
            Path(self.full(claim)).unlink(missing_ok=True)  # its writer was killed within this function
        os.close(os.open(self.full(claim), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            if self._age_of_empty_s(path) is None:
                raise FileExistsError(f"{self.root}/{path}")
            os.replace(temporary, target)
        finally:
            Path(self.full(claim)).unlink(missing_ok=True)

    def _age_of_empty_s(self, path: str) -> float | None:
        """Age of an empty file; None if it is missing or has content."""
        try:
            return self.age_s(path) if self.size(path) == 0 else None
        except FileNotFoundError:
            return None

    def age_s(self, path: str) -> float | None:
        """Seconds since a file was written, by the store's clock; None if it is missing or the store keeps no times.

        The clocks of writers may differ by hours. A store stamps all files by one clock, so the time of a file that is
        written now is the store's time.
        """
        try:
            if self.is_local:
                probe = self._temporary()
                probe.write_bytes(b"now")
                now = probe.stat().st_mtime
                probe.unlink()
                return now - Path(self.full(path)).stat().st_mtime
            self.fs.pipe_file(self.full(CLOCK), b"now")
            now, then = (self.fs.modified(self.full(one)).timestamp() for one in (CLOCK, path))
            return float(now - then)
        except (FileNotFoundError, NotImplementedError, AttributeError):
            return None

    def touch(self, path: str, data: bytes) -> None:
        """Set the time of a file that holds ``data`` to now. FileNotFoundError if it is missing."""
        if self.is_local:
            os.utime(self.full(path))  # if another writer's file has the name by now, its content stays
        else:
            self.put(path, data)

    def _create_remotely(self, path: str, data: bytes) -> None:
        for _ in range(ATTEMPTS):
            try:
                self.fs.pipe_file(self.full(path), data, mode="create")
            except OSError as error:
                # S3 returns 412 to the later writer, and 409 to one of two concurrent writers, which must retry.
                message = str(error).lower().replace("-", "")
                if "conditional" in message:
                    time.sleep(0.1)
                    continue
                if not isinstance(error, FileExistsError) and "precondition" not in message:
                    raise
                if self._read_or_none(path) != data:
                    raise FileExistsError(f"{self.root}/{path}") from error
            # The file may hold our own bytes already: the response to our first attempt was lost and it was retried.
            return
        raise FileExistsError(f"{self.root}/{path}: other writers keep creating this file")

    def _read_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Yield a local temporary file that becomes ``path`` atomically when the block ends without an error."""
        target = self._inside(path) if self.is_local else None
        temporary = self._temporary()
        try:
            with self._storage_errors(f"{self.root}/{path}" if self.is_local else str(temporary.parent)):
                yield temporary
                if target is not None:
                    _fsync(temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, target)
                    _fsync(target.parent)
            if not self.is_local:
                with self._storage_errors(f"{self.root}/{path}"):
                    self.fs.put_file(str(temporary), self.full(path))
        finally:
            temporary.unlink(missing_ok=True)

    def fetch(self, path: str) -> Path:
        """Return a local file to memory-map: the file itself, or a cached copy of a remote one."""
        if self.is_local:
            return Path(self.full(path))
        # A file without a version may have changed: it is fetched again.
        version = etag_of(self.fs.info(self.full(path))) or uuid.uuid4().hex
        name = sha256(f"{self.root}/{path} {version}".encode())[:32]
        return cached_file(name, lambda target: self.fs.get_file(self.full(path), target))

    def checksum(self, path: str) -> str:
        """SHA-256 of a file, read in chunks."""
        with self.open(path) as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def sweep(self) -> None:
        """Remove temporary files that ended processes of this machine left."""
        if not self.is_local:
            return
        for file in self._inside(f"{TEMPORARY}/file").parent.glob("*"):
            host, _, pid = file.name.rpartition("-")[0].rpartition("-")
            if host == socket.gethostname() and not is_alive(int(pid)):
                file.unlink(missing_ok=True)

    @contextmanager
    def _storage_errors(self, path: str) -> Iterator[None]:
        """Raise StorageError with advice for an OSError other than a missing or existing file."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            again = "then run the same command again; it resumes where it stopped"
            if error.errno in FULL:
                raise StorageFullError(
                    f"no space to write {path} ({error.strerror}): free some or raise the limit, {again}"
                ) from error
            attempts = "" if self.is_local else f" in {ATTEMPTS} attempts"
            raise StorageError(
                f"cannot use {path}{attempts} ({type(error).__name__}: {error}): fix the cause, {again}"
            ) from error

    def _temporary(self) -> Path:
        # On the same filesystem as the target, where a rename is atomic; the name holds the process, for sweep().
        folder = self._inside(f"{TEMPORARY}/file").parent if self.is_local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def version_of(info: dict[str, Any]) -> str:
    """Version of a local or remote file, which changes with its content; empty if the filesystem has none."""
    return etag_of(info) or str(info.get("mtime", ""))


def etag_of(info: dict[str, Any]) -> str | None:
    """Version of a remote file, which changes with its content; None if the filesystem has none."""
    names = ("ETag", "etag", "LastModified", "mtime", "created")
    version = next((info[name] for name in names if info.get(name)), None)
    if isinstance(version, datetime):  # some filesystems list a number and look up a date
        version = version.timestamp()
    return None if version is None else str(version).strip('"')


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)  # signal 0 only checks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some filesystems cannot sync a folder.
        if not path.is_dir() or error.errno not in (errno.EINVAL, *NO_LINKS):
            raise
    finally:
        os.close(descriptor)
