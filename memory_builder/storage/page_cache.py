"""Rows of remote files, read by ranges: in as few requests as pay, and what was read lately is kept."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

from memory_builder.errors import REPAIR, CorruptMemoryError
from memory_builder.storage.store import Store

PAGE_BYTES = 1 << 14
REQUEST_BYTES = 1 << 17
"""Bytes an object store sends in the time that one more request takes: a shorter gap is read along."""
KEPT_BYTES = 256 << 20


class PageCache:
    """Pages of the files of one store, which do not change while it is in use. Safe to read from several threads."""

    def __init__(self, store: Store, kept_bytes: int = KEPT_BYTES) -> None:
        self._store = store
        self._n_kept = max(1, kept_bytes // PAGE_BYTES)
        self._pages: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = Lock()

    def read(self, path: str, starts: npt.NDArray[np.int64], width: int, file_bytes: int) -> npt.NDArray[np.uint8]:
        """``width`` bytes from each of ``starts``, i64[n], of a file that has ``file_bytes``: u8[n, width].

        Raises:
            CorruptMemoryError: it has fewer.
        """
        firsts, lasts = starts // PAGE_BYTES, (starts + width - 1) // PAGE_BYTES
        wanted = np.unique(np.concatenate([firsts + i for i in range(int((lasts - firsts).max(initial=0)) + 1)]))
        pages = self._find(path, [page for page in wanted.tolist() if page * PAGE_BYTES < file_bytes], file_bytes)
        out = np.empty((len(starts), width), np.uint8)
        for row, (start, first, last) in enumerate(zip(starts.tolist(), firsts.tolist(), lasts.tolist(), strict=True)):
            piece = b"".join(pages.get(page, b"") for page in range(first, last + 1))
            if len(piece) < start - first * PAGE_BYTES + width:
                raise CorruptMemoryError(f"{self._store.root}/{path} is shorter than its commit says", REPAIR)
            out[row] = np.frombuffer(piece, np.uint8, width, start - first * PAGE_BYTES)
        return out

    def _find(self, path: str, wanted: Sequence[int], file_bytes: int) -> dict[int, bytes]:
        """The wanted pages, ascending: those that are kept, and the others fetched."""
        with self._lock:
            cached = {page: self._pages[path, page] for page in wanted if (path, page) in self._pages}
            for page in cached:
                self._pages.move_to_end((path, page))
        ranges = list(join_ranges((page for page in wanted if page not in cached), REQUEST_BYTES // PAGE_BYTES))
        if not ranges:
            return cached
        starts, ends = (
            [first * PAGE_BYTES for first, _ in ranges],
            [min((last + 1) * PAGE_BYTES, file_bytes) for _, last in ranges],
        )
        pieces = self._store.read_ranges(path, starts, ends)
        for (first, last), piece in zip(ranges, pieces, strict=True):
            for page in range(first, last + 1):
                cached[page] = piece[(page - first) * PAGE_BYTES : (page - first + 1) * PAGE_BYTES]
        with self._lock:
            self._pages |= {(path, page): data for page, data in cached.items()}
            while len(self._pages) > self._n_kept:
                self._pages.popitem(last=False)
        return cached


def join_ranges(pages: Iterable[int], gap: int) -> Iterator[tuple[int, int]]:
    """Ascending page numbers → (first, last) of ranges; pages less than ``gap`` apart share one."""
    first = last = None
    for page in pages:
        if first is None or last is None:
            first = last = page
        elif page - last <= gap:
            last = page
        else:
            yield first, last
            first = last = page
    if first is not None and last is not None:
        yield first, last
