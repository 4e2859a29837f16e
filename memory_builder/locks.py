"""Lock files: writers of a memory, in whatever process on whatever machine, take turns for a moment."""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from memory_builder.storage import Store, is_alive, sha256

LOCK_S = 60
PAUSE_S = 0.1


@contextmanager
def turn(store: Store, name: str) -> Iterator[None]:
    """Hold the lock file ``name``. One whose holder died, or that is a minute old, is taken over."""
    while (mine := _take(store, name)) is None:
        there = None
        with suppress(FileNotFoundError):
            there = store.read(name)
        if there is not None and _is_abandoned(json.loads(there)):
            _free(store, name, there)
        else:
            time.sleep(PAUSE_S)
    try:
        yield
    finally:
        _remove(store, name, mine)


def _take(store: Store, name: str) -> bytes | None:
    """What is in the lock, now that it is ours; None when another holds it."""
    # The id tells threads apart, which on an object store would take each other's lock for the one they just made.
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since_s": time.time(), "id": uuid.uuid4().hex}
    mine = json.dumps(me).encode()
    try:
        store.create(name, mine)
    except FileExistsError:
        return None
    return mine


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


def _is_abandoned(holder: dict[str, Any]) -> bool:
    if time.time() - holder["since_s"] > LOCK_S:
        return True
    return bool(holder["host"] == socket.gethostname() and not is_alive(holder["pid"]))
