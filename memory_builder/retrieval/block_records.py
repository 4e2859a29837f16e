"""Records of finished blocks, ``FOLDER/00000.json``: each is written after its data."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import pyarrow as pa

from memory_builder.base.log import warn_once
from memory_builder.catalog.commits import record_names
from memory_builder.errors import CorruptMemoryError
from memory_builder.storage.records import decode_table, read_sound_record
from memory_builder.storage.store import Store


class Numbered(Protocol):
    """Record of one block, shard or tar."""

    @property
    def number(self) -> int: ...


Record = TypeVar("Record", bound=Numbered)


def done_records(
    store: Store, folder: str, kind: type[Record], is_whole: Callable[[Record], bool] = lambda _: True
) -> dict[int, Record]:
    """Records in a folder by number, if their data is complete.

    Damaged records are left out, so that their work is repeated.
    """
    records = {}
    for name in record_names(store, folder):
        record = read_sound_record(store, f"{folder}/{name}", kind)
        is_own = record is not None and record.number == int(name.removesuffix(".json"))
        if record is not None and is_own and is_whole(record):
            records[record.number] = record
        else:
            warn_once(f"{store.root}/{folder}/{name} or its data is damaged: it is written again")
    return records


def is_table(store: Store, path: str, schema: pa.Schema, max_rows: int) -> bool:
    """Whether a parquet file exists and has these columns."""
    try:
        decode_table(store.read(path), schema, where=path, max_rows=max_rows)
    except (FileNotFoundError, CorruptMemoryError):
        return False
    return True
