"""A folder on any filesystem fsspec knows, with the few operations a memory needs.

Three promises hold everywhere: a file appears whole or not at all (``put``, ``writing``), one writer wins a
name (``create``), and readers are told what they read (``sha256``). Paths are relative to the root.
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
"""Written on an object store to learn what time it is there."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES)
"""What the link of one file to a second name fails with where a filesystem has no hard links (exFAT, SMB, FUSE)."""
PAUSE_S = 0.1
CLAIM_S = 10.0
"""An empty file that is older is the name of a record whose writer was killed before it gave it its content."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(data: bytes) -> str:
    """The checksum kept in commit records, as hex."""
    return hashlib.sha256(data).hexdigest()


class Store:
    """A folder at ``root``: a local path or any fsspec URL (``s3://bucket/prefix``), with options for fsspec.

    Or where another store is, with its options. Listings are never cached: another process may be writing.
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
        """Tasks take a store along: it is opened anew where they are done."""
        return partial(Store, **self.options), (self.root,)

    def full(self, path: str) -> str:
        """The path as the filesystem knows it.

        Raises:
            CorruptMemoryError: it leads out of this folder. Paths are made of what records say, and those are checked;
                this is the last look, whoever forgot.
        """
        if not path:
            return self.path
        if path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise CorruptMemoryError(f"{self.root}: {path!r} is a path that leads out of it")
        return f"{self.path}/{path}"

    def _inside(self, path: str) -> Path:
        """Where a local file is to be written or removed; no link of a folder may lead out of the store.

        Raises:
            CorruptMemoryError: one does.
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
        """The whole file; FileNotFoundError when it is not there."""
        with self._telling(f"{self.root}/{path}"):
            data: bytes = self.fs.cat_file(self.full(path))
        return data

    def read_json(
        self, path: str, *, fix: str = "remove it and run the command that writes it again"
    ) -> dict[str, Any] | None:
        """A JSON object; None when it is not there.

        Raises:
            CorruptMemoryError: it is there and is no JSON object; the message ends with ``fix``.
        """
        try:
            record: dict[str, Any] = dict(json.loads(self.read(path)).items())
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError, RecursionError) as error:  # no JSON, or no object
            raise CorruptMemoryError(f"{self.root}/{path} is damaged ({error})", fix) from None
        return record

    def read_sound_json(self, path: str) -> dict[str, Any] | None:
        """As ``read_json``, for whoever makes a damaged record anew: None for that too."""
        try:
            return self.read_json(path)
        except CorruptMemoryError:
            return None

    def read_ranges(self, path: str, starts: Sequence[int], ends: Sequence[int]) -> Sequence[bytes]:
        """The bytes from each start to its end, fetched together; fewer where the file ends before.

        Raises:
            CorruptMemoryError: it ends before a start, and the store told so.
        """
        with self._telling(f"{self.root}/{path}"):
            try:
                pieces: Sequence[bytes] = self.fs.cat_ranges(
                    [self.full(path)] * len(starts), list(starts), list(ends), on_error="raise"
                )
            except OSError as error:
                if error.errno != errno.EINVAL:  # what s3fs makes of "range not satisfiable"
                    raise
                raise CorruptMemoryError(
                    f"{self.root}/{path} is shorter than its commit says ({error})", REPAIR
                ) from None
        return pieces

    def open(self, path: str) -> BinaryIO:
        """A seekable reader."""
        file: BinaryIO = self.fs.open(self.full(path), "rb")
        return file

    def exists(self, path: str) -> bool:
        return bool(self.fs.exists(self.full(path)))

    def list(self, folder: str, kind: Literal["file", "directory"] = "file") -> list[str]:
        """Sorted names of the files (or of the folders) in a folder; empty when there is no such folder."""
        try:
            with self._telling(f"{self.root}/{folder}"):
                entries = self.fs.ls(self.full(folder), detail=True)
        except FileNotFoundError:
            return []
        names = (entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == kind)
        return sorted(name for name in names if name)

    def size(self, path: str) -> int:
        """Bytes."""
        return int(self.fs.size(self.full(path)))

    def remove(self, path: str) -> None:
        if self.is_local:
            self._inside(path).unlink()
        else:
            self.fs.rm_file(self.full(path))

    def remove_folder(self, path: str) -> None:
        """Remove a folder and all that is in it; where it is a link, nothing."""
        if self.is_local:
            self._inside(f"{path}/file")
        self.fs.rm(self.full(path), recursive=True)

    def put(self, path: str, data: bytes) -> None:
        """Write a file atomically, replacing what was there."""
        if self.is_local:
            with self.writing(path) as temporary:
                temporary.write_bytes(data)
        else:
            with self._telling(f"{self.root}/{path}"):
                self.fs.pipe_file(self.full(path), data)

    def create(self, path: str, data: bytes) -> None:
        """Write a file only if the name is free; FileExistsError when another writer was first.

        On an object store, a writer that put the very same bytes counts as oneself. On a local disk the name of an
        empty file that is older than CLAIM_S is free: see ``_claim``.
        """
        with self._telling(f"{self.root}/{path}"):
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

        A reader sees no file, an empty one or the whole one. No record of ours is empty, so an empty one is none; what
        a writer leaves that is killed between the two steps is taken over once it is older than CLAIM_S.
        """
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            self._take_over_empty(path, temporary, target)
        else:
            os.replace(temporary, target)

    def _take_over_empty(self, path: str, temporary: Path, target: Path) -> None:
        """Give an abandoned empty file its content; FileExistsError if it is none, or if another does.

        Several may find it. They take turns by a name that is made of it, and look again then.
        """
        while (age_s := self._age_of_empty_s(path)) is not None and age_s <= CLAIM_S:
            time.sleep(PAUSE_S)  # its writer is about to rename the content onto it, or was killed
        if age_s is None:
            raise FileExistsError(f"{self.root}/{path}")
        claim = f"{path}.{target.stat().st_mtime_ns}.claim"
        if (self._age_of_empty_s(claim) or 0.0) > CLAIM_S:
            Path(self.full(claim)).unlink(missing_ok=True)  # of one that was killed at this very place
        os.close(os.open(self.full(claim), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            if self._age_of_empty_s(path) is None:
                raise FileExistsError(f"{self.root}/{path}")
            os.replace(temporary, target)
        finally:
            Path(self.full(claim)).unlink(missing_ok=True)

    def _age_of_empty_s(self, path: str) -> float | None:
        """How old an empty file is; None of any other, and where there is none."""
        try:
            return self.age_s(path) if self.size(path) == 0 else None
        except FileNotFoundError:
            return None

    def age_s(self, path: str) -> float | None:
        """Seconds since a file was written, by the store's own clock; None if it is gone, or the store tells no times.

        The clocks of writers differ, by hours where one was never set. A store stamps what is written to it by one
        clock, so a file that is written now says what time it is there.
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
        """Let a file that holds ``data`` be as young as if it were written now. FileNotFoundError if it is gone."""
        if self.is_local:
            os.utime(self.full(path))  # of whoever holds the name by now; its content stays
        else:
            self.put(path, data)

    def _create_remotely(self, path: str, data: bytes) -> None:
        for _ in range(ATTEMPTS):
            try:
                self.fs.pipe_file(self.full(path), data, mode="create")
            except OSError as error:
                # S3 answers 412 to the later writer, and 409 to one of two at the same moment, who is to try again.
                message = str(error).lower().replace("-", "")
                if "conditional" in message:
                    time.sleep(0.1)
                    continue
                if not isinstance(error, FileExistsError) and "precondition" not in message:
                    raise
                if self._read_or_none(path) != data:
                    raise FileExistsError(f"{self.root}/{path}") from error
            # Finding our own bytes there: the answer to our first try was lost, and it was tried again.
            return
        raise FileExistsError(f"{self.root}/{path}: other writers are creating it all the time")

    def _read_or_none(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    @contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """A local temporary file that becomes ``path``, whole, when the block ends without an error."""
        target = self._inside(path) if self.is_local else None
        temporary = self._temporary()
        try:
            with self._telling(f"{self.root}/{path}" if self.is_local else str(temporary.parent)):
                yield temporary
                if target is not None:
                    _fsync(temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, target)
                    _fsync(target.parent)
            if not self.is_local:
                with self._telling(f"{self.root}/{path}"):
                    self.fs.put_file(str(temporary), self.full(path))
        finally:
            temporary.unlink(missing_ok=True)

    def fetch(self, path: str) -> Path:
        """A local file with these contents, to be memory-mapped: the file itself, or a cached copy of a remote one."""
        if self.is_local:
            return Path(self.full(path))
        # What has no version could have changed since: it is fetched again.
        version = etag_of(self.fs.info(self.full(path))) or uuid.uuid4().hex
        name = sha256(f"{self.root}/{path} {version}".encode())[:32]
        return cached_file(name, lambda target: self.fs.get_file(self.full(path), target))

    def checksum(self, path: str) -> str:
        """SHA-256 of a stored file, read in pieces."""
        with self.open(path) as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    def sweep(self) -> None:
        """Remove temporary files of writers of this machine that are no longer alive."""
        if not self.is_local:
            return
        for file in self._inside(f"{TEMPORARY}/file").parent.glob("*"):
            host, _, pid = file.name.rpartition("-")[0].rpartition("-")
            if host == socket.gethostname() and not is_alive(int(pid)):
                file.unlink(missing_ok=True)

    @contextmanager
    def _telling(self, path: str) -> Iterator[None]:
        """What goes wrong with storage as such, rather than with a file's being there, is told in words that help."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            again = "then run the same command again; it goes on where it stopped"
            if error.errno in FULL:
                raise StorageFullError(
                    f"no room to write {path} ({error.strerror}): free some or raise the limit, {again}"
                ) from error
            tries = "" if self.is_local else f" in {ATTEMPTS} tries"
            raise StorageError(
                f"cannot use {path}{tries} ({type(error).__name__}: {error}): see to it, {again}"
            ) from error

    def _temporary(self) -> Path:
        # On the same filesystem as the target, where a rename is atomic; the name says whose it is, for sweep().
        folder = self._inside(f"{TEMPORARY}/file").parent if self.is_local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def version_of(info: dict[str, Any]) -> str:
    """What changes with a file's content, be it local or remote; empty if its filesystem tells nothing of the kind."""
    return etag_of(info) or str(info.get("mtime", ""))


def etag_of(info: dict[str, Any]) -> str | None:
    """What changes with a remote file's content, as its filesystem tells it; None if it tells nothing of the kind."""
    names = ("ETag", "etag", "LastModified", "mtime", "created")
    version = next((info[name] for name in names if info.get(name)), None)
    if isinstance(version, datetime):  # some filesystems list a number and look up a date
        version = version.timestamp()
    return None if version is None else str(version).strip('"')


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is still there."""
    try:
        os.kill(pid, 0)  # signal 0 only asks
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
        # Of a folder, some filesystems cannot.
        if not path.is_dir() or error.errno not in (errno.EINVAL, *NO_LINKS):
            raise
    finally:
        os.close(descriptor)
