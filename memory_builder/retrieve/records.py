"""The records of work that is done, ``FOLDER/00000.json``: each is written when all it speaks of is there."""

import json
from collections.abc import Callable
from typing import Protocol, TypeVar

from memory_builder.manifest import record_names
from memory_builder.storage import Store


class Numbered(Protocol):
    """A record of one block, shard or tar."""

    @property
    def number(self) -> int: ...


Record = TypeVar("Record", bound=Numbered)


def done_records(store: Store, folder: str, kind: Callable[..., Record]) -> dict[int, Record]:
    """The records in a folder, by number."""
    records = [kind(**json.loads(store.read(f"{folder}/{name}"))) for name in record_names(store, folder)]
    return {record.number: record for record in records}
