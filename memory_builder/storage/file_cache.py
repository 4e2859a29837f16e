"""Cache local copies of remote files, to be memory-mapped, in a folder of bounded size with LRU eviction.

``MEMORY_BUILDER_CACHE`` sets the folder (default: in the user's cache), ``MEMORY_BUILDER_CACHE_BYTES`` the size limit
(default: 64 GiB). A file that is removed while it is mapped stays readable until it is unmapped.
"""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

MAX_BYTES = 64 << 30


def folder() -> Path:
    """Return the cache folder."""
    named = os.environ.get("MEMORY_BUILDER_CACHE")
    return Path(named) if named else user_cache_path("memory-builder")


def max_bytes() -> int:
    """Return the size limit of the cache.

    Raises:
        UsageError: ``MEMORY_BUILDER_CACHE_BYTES`` is no number of bytes.
    """
    given = os.environ.get("MEMORY_BUILDER_CACHE_BYTES", "")
    if given and not given.isdecimal():
        from memory_builder.errors import UsageError

        raise UsageError(f"MEMORY_BUILDER_CACHE_BYTES={given}: expected a number of bytes")
    return int(given) if given else MAX_BYTES


def cached_file(name: str, fetch: Callable[[str], None]) -> Path:
    """Return the cached file ``name``; if it is missing, ``fetch`` writes it to the path it receives."""
    path = folder() / name
    if path.exists():
        with suppress(OSError):  # another process may remove it now
            os.utime(path)
            return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        fetch(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _evict(keep=path)
    return path


def _evict(keep: Path) -> None:
    """Remove the least recently used files until the cache fits its limit; never remove ``keep``."""
    copies = []
    for entry in os.scandir(keep.parent):
        with suppress(FileNotFoundError):
            copies.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    excess = sum(size for _, size, _ in copies) - max_bytes()
    for _, size, path in sorted(copies):
        if excess <= 0:
            return
        if path != str(keep):
            Path(path).unlink(missing_ok=True)
            excess -= size
