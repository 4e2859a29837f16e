"""A bucket of a local S3 server, and conditional puts that its threads take in turn."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memory_builder.storage.store import Store


@dataclass(frozen=True)
class S3:
    """A bucket of a real S3 server on this machine."""

    url: str
    """``s3://bucket/prefix``, new for every test."""
    options: dict[str, Any]
    """What Store and fsspec need to reach it."""

    def store(self, path: str = "") -> Store:
        return Store(f"{self.url}/{path}".rstrip("/"), **self.options)


def one_at_a_time(put: Callable[..., Any]) -> Callable[..., Any]:
    """S3 decides a conditional put at once; the server looks, then puts, and two of its threads may both win."""
    lock = threading.Lock()

    def put_in_turn(*args: Any, **named: Any) -> Any:
        with lock:
            return put(*args, **named)

    return put_in_turn
