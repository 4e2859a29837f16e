"""Lock files: writers of a memory, in whatever process on whatever machine, take turns.

A holder renews its lock while it lives. So a lock that nobody renewed for a minute is abandoned, as is one whose holder
was a process of this machine that is gone, and one that cannot be read: what was left of a writer that was killed. Its
age is what the store says of it, since the clocks of two machines may be hours apart.

A holder that was stopped for longer than a minute may have lost its lock. It looks (``Held.check``) before it makes
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
"""A lock that is not renewed for so long is abandoned."""
RENEW_S = 15.0
GRACE_S = 10.0
"""One that cannot be read may be in the making for so long."""
PAUSE_S = 0.1
LOOK_S = 2.0
"""Between two looks at the age of a lock, each of which writes a file."""
TELL_S = 30.0
"""Between two lines that say for whom one waits; the first comes after ``LOOK_S``."""


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds a lock, as the file says."""

    host: str
    pid: Annotated[int, Field(ge=1, lt=1 << 31)]
    since_s: Seconds
    """Unix time by the holder's own clock; for people."""
    namespace: str = ""
    """Of process ids: containers of one host name each have their own."""

    def is_dead(self) -> bool:
        """Whether it was a process of this machine, and is gone."""
        is_here = self.host == socket.gethostname() and self.namespace in ("", _namespace())
        return is_here and not is_alive(self.pid)


class Held:
    """A lock that is held."""

    def __init__(self, store: Store, name: str, content: bytes) -> None:
        self._store, self._name, self._content = store, name, content

    def is_ours(self) -> bool:
        """Whether the lock file is still the one that was made here."""
        try:
            return self._store.read(self._name) == self._content
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Look whether the lock is still held; to be called before anything becomes visible.

        Raises:
            ConcurrentWriterError: it was taken over.
        """
        if not self.is_ours():
            raise ConcurrentWriterError(
                f"{self._store.root}/{self._name} was taken over by another writer, because this process stood still "
                f"for more than {LOCK_S:.0f} s: run the command again"
            )

    def renew_until(self, done: Event) -> None:
        """Keep the lock young, until it is given up or lost."""
        while not done.wait(RENEW_S):
            with suppress(StorageError, OSError):  # the next try may do better
                if not self.is_ours():
                    return
                self._store.touch(self._name, self._content)


@contextmanager
def turn(store: Store, name: str) -> Iterator[Held]:
    """Hold the lock file ``name``; one that was abandoned is taken over."""
    waiting = _Waiting(store, name)
    while (content := _take(store, name)) is None:
        waiting.look()
    held, done = Held(store, name, content), Event()
    renewing = Thread(target=held.renew_until, args=(done,), daemon=True)
    renewing.start()
    try:
        yield held
    finally:
        done.set()
        renewing.join()
        _remove(store, name, content)


def _take(store: Store, name: str) -> bytes | None:
    """What is in the lock, now that it is ours; None when another holds it."""
    me = Holder(host=socket.gethostname(), pid=os.getpid(), since_s=time.time(), namespace=_namespace())
    # The id tells threads apart, which on an object store would take each other's lock for the one they just made.
    content = json.dumps(asdict(me) | {"id": uuid.uuid4().hex}).encode()
    try:
        store.create(name, content)
    except FileExistsError:
        return None
    return content


class _Waiting:
    """One that waits for a lock, and watches it."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._seen: tuple[bytes, float | None] | None = None
        """Content and time of writing, as it was at the last look."""
        self._unchanged_since = self._looked = self._began = time.monotonic()
        self._told: float | None = None

    def look(self) -> None:
        """Free the lock if it is abandoned, else wait for a moment."""
        try:
            content = self._store.read(self._name)
        except FileNotFoundError:
            return
        holder = _holder(content)
        now = time.monotonic()
        is_first = self._seen is None or self._seen[0] != content
        if (holder is not None and holder.is_dead()) or (
            (is_first or now - self._looked >= LOOK_S) and self._is_old(content, holder)
        ):
            _free(self._store, self._name, content)
            return
        if now - self._began >= LOOK_S and (self._told is None or now - self._told >= TELL_S):
            self._told = now
            waited = duration(now - self._began)
            logger.info(f"waiting for {self._store.root}/{self._name}, {_describe(holder)}; waited {waited}")
        time.sleep(PAUSE_S)

    def _is_old(self, content: bytes, holder: Holder | None) -> bool:
        """Whether nobody renewed it for too long: by the store's clock or, should that run backwards, by our wait."""
        now = self._looked = time.monotonic()
        age_s = self._store.age_s(self._name)
        written_s = None if age_s is None else now - age_s
        if self._seen is None or self._seen[0] != content or _differ(self._seen[1], written_s):
            self._seen, self._unchanged_since = (content, written_s), now
        limit_s = GRACE_S if holder is None else LOCK_S
        return max(age_s or 0.0, now - self._unchanged_since) > limit_s


def _differ(one_s: float | None, other_s: float | None) -> bool:
    return one_s is not None and other_s is not None and abs(one_s - other_s) > RENEW_S / 2


def _holder(content: bytes) -> Holder | None:
    """Who holds a lock with this content; None if that cannot be read."""
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


def _free(store: Store, name: str, abandoned: bytes) -> None:
    """Remove a lock that was abandoned.

    Of several waiters that find it, one removes it and the others must not remove what is made next: no filesystem
    removes on a condition, so they take turns here too.
    """
    with turn(store, f"{name.removesuffix('.lock')}-{sha256(abandoned)[:8]}.lock"):
        _remove(store, name, abandoned)


def _remove(store: Store, name: str, content: bytes) -> None:
    """Remove a lock that still has this content; ours may have been taken over."""
    with suppress(FileNotFoundError):
        if store.read(name) == content:
            store.remove(name)
