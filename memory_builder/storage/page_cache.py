"""Read rows of remote files by merged byte ranges, with an LRU cache of pages."""

from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache
from fsspec.utils import merge_offset_ranges

from memory_builder.errors import REPAIR, CorruptMemoryError
from memory_builder.storage.store import Store

PAGE_BYTES = 1 << 14
REQUEST_BYTES = 1 << 17
"""Bytes an object store sends in the time of one more request: ranges with a shorter gap are merged."""
MAX_BYTES = 256 << 20


class PageCache:
    """Cached pages of the files of one store, which must not change meanwhile. Thread-safe."""

    def __init__(self, store: Store, max_bytes: int = MAX_BYTES) -> None:
        self._store = store
        self._pages: LRUCache[tuple[str, int], bytes] = LRUCache(max(PAGE_BYTES, max_bytes), getsizeof=len)
        self._lock = Lock()

    def read(self, path: str, starts: npt.NDArray[np.int64], width: int, file_bytes: int) -> npt.NDArray[np.uint8]:
        """Read ``width`` bytes from each of ``starts``, i64[n], of a file of ``file_bytes`` bytes: u8[n, width].

        Raises:
            CorruptMemoryError: the file is shorter.
        """
        firsts, lasts = starts // PAGE_BYTES, (starts + width - 1) // PAGE_BYTES
        wanted = np.unique(np.concatenate([firsts + i for i in range(int((lasts - firsts).max(initial=0)) + 1)]))
        pages = self._load(path, [page for page in wanted.tolist() if page * PAGE_BYTES < file_bytes], file_bytes)
        out = np.empty((len(starts), width), np.uint8)
        for row, (start, first, last) in enumerate(zip(starts.tolist(), firsts.tolist(), lasts.tolist(), strict=True)):
            piece = b"".join(pages.get(page, b"") for page in range(first, last + 1))
            if len(piece) < start - first * PAGE_BYTES + width:
                raise CorruptMemoryError(f"{self._store.root}/{path} is shorter than its commit says", REPAIR)
            out[row] = np.frombuffer(piece, np.uint8, width, start - first * PAGE_BYTES)
        return out

    def _load(self, path: str, wanted: Sequence[int], file_bytes: int) -> dict[int, bytes]:
        """Return the wanted (ascending) pages from the cache, and fetch those that it lacks."""
        with self._lock:
            cached = {page: self._pages[path, page] for page in wanted if (path, page) in self._pages}
        missing = [page * PAGE_BYTES for page in wanted if page not in cached]
        if not missing:
            return cached
        page_ends = [min(start + PAGE_BYTES, file_bytes) for start in missing]
        _, starts, ends = merge_offset_ranges([path] * len(missing), missing, page_ends, max_gap=REQUEST_BYTES)
        for start, piece in zip(starts, self._store.read_ranges(path, starts, ends), strict=True):
            for at in range(0, len(piece), PAGE_BYTES):
                cached[(start + at) // PAGE_BYTES] = piece[at : at + PAGE_BYTES]
        with self._lock:
            self._pages.update({(path, page): data for page, data in cached.items()})
        return cached
