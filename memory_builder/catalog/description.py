"""``memory.json``: the settings that all rows of a memory share."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from memory_builder.base.log import warn_once
from memory_builder.catalog.commits import MANIFEST, read_manifest_table
from memory_builder.errors import CorruptMemoryError, UsageError
from memory_builder.storage.records import (
    FORMAT_VERSION,
    ColumnType,
    ShortHash,
    check_format,
    decode,
    record_bytes,
    strict_record,
)
from memory_builder.storage.store import Store

DESCRIPTION = "memory.json"


EMBED_AGAIN = (
    "run the embed or import command that made this memory once more, with the same settings: it writes the file anew"
)


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """``memory.json``: the settings that all rows of a memory share."""

    model: str
    pretrained: str | None
    fingerprint: str
    d: Annotated[int, Field(ge=1, le=1 << 16)]
    columns: dict[str, ColumnType]
    """Metadata columns taken from the pairs' json, beside the fixed ones: name → Arrow type."""
    config: dict[str, Any]
    """Every setting, for people to read."""
    config_hash: ShortHash
    """Hash of the settings that are not at their default: a new setting of a later version does not change it."""
    dtype: Literal["float16"] = "float16"
    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION

    def to_json(self) -> bytes:
        return record_bytes(self)


def read_description(store: Store) -> Description:
    """Read ``memory.json``; if it is missing or damaged, its copy in ``manifest.parquet``.

    Raises:
        UsageError: the folder is not a memory.
        CorruptMemoryError: the file is damaged, and there is no copy.
    """
    missing = UsageError(f"no memory at {store.root}: {DESCRIPTION} is missing (memory-builder embed makes one)")
    error: UsageError | CorruptMemoryError
    try:
        data = store.read(DESCRIPTION)
        return read_description_strictly(store, data)
    except FileNotFoundError:
        error = missing
    except CorruptMemoryError as damaged:
        error = damaged
    copy = described_by_manifest(store)
    if copy is None:
        raise error from None
    warn_once(
        f"{store.root}/{DESCRIPTION} is missing or damaged; the copy in {MANIFEST} is used. "
        f"memory-builder verify {store.root} --repair writes it anew"
    )
    return copy


def read_description_strictly(store: Store, data: bytes) -> Description:
    """Decode ``memory.json``.

    Raises:
        UsageError: a newer version wrote the file.
        CorruptMemoryError: the file is damaged.
    """
    check_format(store, data)
    return decode(Description, data, where=f"{store.root}/{DESCRIPTION}", fix=EMBED_AGAIN)


def described_by_manifest(store: Store) -> Description | None:
    """Read the copy of ``memory.json`` in ``manifest.parquet``; None if it has none, as in older memories."""
    try:
        _, metadata = read_manifest_table(store)
        return read_description_strictly(store, metadata[b"description"])
    except (FileNotFoundError, LookupError, CorruptMemoryError):
        return None


def description_if_any(store: Store) -> Description | None:
    try:
        return read_description(store)
    except (UsageError, CorruptMemoryError):
        return None
