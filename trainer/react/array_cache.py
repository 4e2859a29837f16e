"""Rows computed once and kept: a folder of .npy parts, filled by all workers, memory-mapped by whoever reads."""

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
"""Of a folder, of which a run reads two; each holds a descriptor, of which 1,024 is a common limit."""

Array = npt.NDArray[np.generic]


class KeptRows:
    """n rows in parts of ``rows_per_part``."""

    def __init__(self, store: Store, folder: str, n: int, rows_per_part: int) -> None:
        self._store, self._folder, self.n, self._rows = store, folder, n, rows_per_part
        self._part = lru_cache(OPEN_FILES)(self._map)

    def fill(self, what: str, compute: Callable[[Ids], Array]) -> None:
        """Compute the parts that are not there, each by one of the workers; all return when all are there.

        Args:
            what: for the line that tells of it.
            compute: i64[m] places → [m, …], the same whoever computes it.
        """
        here, n_parts = world(), -(-self.n // self._rows)
        mine = range(here.rank, n_parts, here.size)
        missing = [part for part in mine if not self._store.exists(self._name(part))]
        progress = Progress(what, n_planned=len(mine), n_done=len(mine) - len(missing), unit="parts")
        for part in missing:
            places = np.arange(part * self._rows, min(self.n, (part + 1) * self._rows))
            self._store.put(self._name(part), npy_bytes(compute(places)))
            progress.advance(n_pairs=len(places))
        wait_for_all()

    def read(self, places: Ids) -> Array:
        """[m, …], the rows at i64[m] places."""
        parts, rows = np.divmod(places, self._rows)
        first = self._part(int(parts[0]))
        found = np.empty((len(places), *first.shape[1:]), first.dtype)
        for part in np.unique(parts):
            here = parts == part
            found[here] = self._part(int(part))[rows[here]]
        return found

    def _map(self, part: int) -> Array:
        return read_npy(self._store.fetch(self._name(part)), mapped=True)

    def _name(self, part: int) -> str:
        return f"{self._folder}/{part:05d}.npy"
