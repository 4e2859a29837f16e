"""A disk cache of array rows: .npy parts that the workers fill together and memory-map."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from memory_builder.base.progress import Progress
from memory_builder.base.types import Ids
from memory_builder.storage.formats import npy_bytes, read_npy
from memory_builder.storage.store import Store
from trainer.loop.distributed import wait_for_all, world

OPEN_FILES = 256
"""Parts mapped at a time; each holds a file descriptor, and 1,024 is a common limit. A run reads two caches."""

Array = npt.NDArray[np.generic]


class ArrayCache:
    """n rows of an array on disk, in parts of ``rows_per_part``."""

    def __init__(self, store: Store, folder: str, n: int, rows_per_part: int) -> None:
        self._store, self._folder, self.n, self._rows = store, folder, n, rows_per_part
        self._part = lru_cache(OPEN_FILES)(self._map)

    def fill(self, title: str, compute: Callable[[Ids], Array]) -> None:
        """Compute the missing parts, shared among the workers; returns on all of them when every part is written.

        Args:
            title: title of the progress lines.
            compute: i64[m] row numbers → [m, …], the same on every worker.
        """
        here, n_parts = world(), -(-self.n // self._rows)
        mine = range(here.rank, n_parts, here.size)
        missing = [part for part in mine if not self._store.exists(self._name(part))]
        progress = Progress(title, n_planned=len(mine), n_done=len(mine) - len(missing), unit="parts")
        for part in missing:
            numbers = np.arange(part * self._rows, min(self.n, (part + 1) * self._rows))
            self._store.put(self._name(part), npy_bytes(compute(numbers)))
            progress.advance(n_pairs=len(numbers))
        wait_for_all()

    def read(self, numbers: Ids) -> Array:
        """i64[m] row numbers → [m, …]."""
        parts, rows = np.divmod(numbers, self._rows)
        first = self._part(int(parts[0]))
        result = np.empty((len(numbers), *first.shape[1:]), first.dtype)
        for part in np.unique(parts):
            in_part = parts == part
            result[in_part] = self._part(int(part))[rows[in_part]]
        return result

    def _map(self, part: int) -> Array:
        return read_npy(self._store.fetch(self._name(part)), mapped=True)

    def _name(self, part: int) -> str:
        return f"{self._folder}/{part:05d}.npy"
