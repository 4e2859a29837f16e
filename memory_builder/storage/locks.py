"""Lock files: one writer of a memory at a time, across processes and machines.

A holder renews its lock while it runs. A lock counts as abandoned if it was not renewed for a minute, if its holder was
a process of this machine that has ended, or if it stays unreadable because its writer was killed. Ages are by the
store's clock, since the clocks of two machines may be hours apart.

A holder that was suspended for longer than a minute may have lost its lock, so it calls ``Held.check`` before it makes
anything visible.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Event, Thread
from typing import Annotated

from pydantic import Field

from memory_builder.base.log import logger
from memory_builder.base.progress import duration
from memory_builder.errors import ConcurrentWriterError, CorruptMemoryError, StorageError
from memory_builder.storage.records import Seconds, decode, partial_record
from memory_builder.storage.store import Store, is_alive, sha256

LOCK_S = 60.0
"""Seconds without renewal after which a lock counts as abandoned."""
RENEW_S = 15.0
GRACE_S = 10.0
"""The same for an unreadable lock; a younger one may still be being written."""
PAUSE_S = 0.1
CHECK_S = 2.0
"""Seconds between checks of a lock's age, each of which writes a file."""
REPORT_S = 30.0
"""Seconds between log lines about the holder; the first comes after ``CHECK_S``."""


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that holds a lock, as recorded in the lock file."""

    host: str
    pid: Annotated[int, Field(ge=1, lt=1 << 31)]
    since_s: Seconds
    """Unix time by the holder's own clock; for people."""
    namespace: str = ""
    """PID namespace: containers that share a host name have one each."""

    def is_dead(self) -> bool:
        """Whether the holder was a process of this machine and has ended."""
        is_here = self.host == socket.gethostname() and self.namespace in ("", _namespace())
        return is_here and not is_alive(self.pid)


class Held:
    """A lock that this process holds."""

    def __init__(self, store: Store, name: str, content: bytes) -> None:
        self._store, self._name, self._content = store, name, content

    def is_ours(self) -> bool:
        """Whether the lock file is still the one that this process wrote."""
        try:
            return self._store.read(self._name) == self._content
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Check that the lock is still held, before anything becomes visible.

        Raises:
            ConcurrentWriterError: another writer took it over.
        """
        if not self.is_ours():
            raise ConcurrentWriterError(
                f"{self._store.root}/{self._name} was taken over by another writer, because this process was suspended "
                f"for more than {LOCK_S:.0f} s: run the command again"
            )

    def renew_until(self, done: Event) -> None:
        """Renew the lock until it is released or lost."""
        while not done.wait(RENEW_S):
            with suppress(StorageError, OSError):  # the next attempt may succeed
                if not self.is_ours():
                    return
                self._store.touch(self._name, self._content)


@contextmanager
def hold_lock(store: Store, name: str) -> Iterator[Held]:
    """Hold the lock file ``name`` for this block; take an abandoned one over."""
    waiting = _Waiting(store, name)
    while (content := _acquire(store, name)) is None:
        waiting.wait()
    held, done = Held(store, name, content), Event()
    renewing = Thread(target=held.renew_until, args=(done,), daemon=True)
    renewing.start()
    try:
        yield held
    finally:
        done.set()
        renewing.join()
        _remove(store, name, content)


def _acquire(store: Store, name: str) -> bytes | None:
    """Create the lock file and return its content; None while another writer holds it."""
    me = Holder(host=socket.gethostname(), pid=os.getpid(), since_s=time.time(), namespace=_namespace())
    # The id distinguishes threads, which on an object store would mistake each other's lock for their own.
    content = json.dumps(asdict(me) | {"id": uuid.uuid4().hex}).encode()
    try:
        store.create(name, content)
    except FileExistsError:
        return None
    return content


class _Waiting:
    """A wait for a lock, with the lock's age as observed so far."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._seen: tuple[bytes, float | None] | None = None
        """Content and time of writing at the last check."""
        self._unchanged_since = self._checked = self._began = time.monotonic()
        self._reported: float | None = None

    def wait(self) -> None:
        """Remove the lock if it is abandoned, else sleep for a moment."""
        try:
            content = self._store.read(self._name)
        except FileNotFoundError:
            return
        holder = _holder(content)
        now = time.monotonic()
        is_first = self._seen is None or self._seen[0] != content
        if (holder is not None and holder.is_dead()) or (
            (is_first or now - self._checked >= CHECK_S) and self._is_old(content, holder)
        ):
            _remove_abandoned(self._store, self._name, content)
            return
        if now - self._began >= CHECK_S and (self._reported is None or now - self._reported >= REPORT_S):
            self._reported = now
            waited = duration(now - self._began)
            logger.info(f"waiting for {self._store.root}/{self._name}, {_describe(holder)}; waited {waited}")
        time.sleep(PAUSE_S)

    def _is_old(self, content: bytes, holder: Holder | None) -> bool:
        """Whether the lock was not renewed for too long, by the store's clock or (if that is set back) by our wait."""
        now = self._checked = time.monotonic()
        age_s = self._store.age_s(self._name)
        written_s = None if age_s is None else now - age_s
        if self._seen is None or self._seen[0] != content or _differ(self._seen[1], written_s):
            self._seen, self._unchanged_since = (content, written_s), now
        limit_s = GRACE_S if holder is None else LOCK_S
        return max(age_s or 0.0, now - self._unchanged_since) > limit_s


def _differ(one_s: float | None, other_s: float | None) -> bool:
    return one_s is not None and other_s is not None and abs(one_s - other_s) > RENEW_S / 2


def _holder(content: bytes) -> Holder | None:
    """Decode the holder from a lock's content; None if it is unreadable."""
    try:
        return decode(Holder, content, where="the lock")
    except CorruptMemoryError:
        return None


def _describe(holder: Holder | None) -> str:
    if holder is None:
        return "which cannot be read and is taken over soon"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(min(max(holder.since_s, 0.0), 1e11)))
    return f"held by process {holder.pid} on {holder.host[:100]!r} since {since} UTC by its clock"


def _namespace() -> str:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _remove_abandoned(store: Store, name: str, abandoned: bytes) -> None:
    """Remove an abandoned lock, holding a second lock meanwhile.

    Of several waiters that see it, one removes it and the others must not remove the next writer's lock; no filesystem
    has a conditional remove.
    """
    with hold_lock(store, f"{name.removesuffix('.lock')}-{sha256(abandoned)[:8]}.lock"):
        _remove(store, name, abandoned)


def _remove(store: Store, name: str, content: bytes) -> None:
    """Remove a lock if it still has this content: another writer may have taken it over."""
    with suppress(FileNotFoundError):
        if store.read(name) == content:
            store.remove(name)
