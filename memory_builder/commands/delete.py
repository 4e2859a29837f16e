"""``memory-builder delete``: delete rows by id, by pair key or by a filter."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from memory_builder.commands.console import print_state
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Delete rows from search. compact removes them from the index, compact --purge also from the files."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    ids: tuple[int, ...] = ()
    """Ids of rows to delete, as search prints them."""
    keys: Annotated[tuple[str, ...], arg(name="pair-keys", aliases=["--keys"])] = ()
    """Keys of pairs to delete, or a file with one key a line."""
    where: str | None = None
    """Delete the rows that match this filter, as for search."""

    def run(self) -> int:
        from memory_builder.maintenance.delete import delete

        keys = _read_keys(self.keys)
        delete(Store(self.memory), ids=self.ids or None, keys=keys if self.keys else None, where=self.where)
        print_state(self.memory)
        return 0


def _read_keys(keys: tuple[str, ...]) -> list[str]:
    """Return the keys given, or the lines of the one file given."""
    if len(keys) == 1 and os.path.isfile(keys[0]):  # unlike Path, it takes a key that is too long for a name
        return [line for line in Path(keys[0]).read_text(encoding="utf-8-sig").split("\n") if line]
    return list(keys)
