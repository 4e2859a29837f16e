"""Records: small JSON files and table rows that describe the data on disk, decoded strictly by type.

A record may be damaged or malicious, and the files that it names are opened, written and removed. So every record is
decoded here, field by field, against the types of its dataclass; every kind of file name is a type with one pattern. A
mismatch raises a ``CorruptMemoryError`` that names the file and the field.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from tokenize import TokenError
from typing import Annotated, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config

from memory_builder.errors import REPAIR, CorruptMemoryError, UsageError
from memory_builder.storage.store import Store, sha256

FORMAT_VERSION = 1
SHOWN = 3
"""Wrong fields named in one message."""
strict_record = with_config(ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
"""Class decorator of a record without type conversion, unknown fields or NaN."""
partial_record = with_config(ConfigDict(strict=True, extra="ignore", allow_inf_nan=False))
"""Class decorator of the same for a record whose unknown fields are ignored: they are for people."""


def _name(pattern: str) -> Any:
    return StringConstraints(pattern=f"^(?:{pattern})$")


UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,  # pyarrow, of a file's content
    OverflowError,
    RecursionError,
    NotImplementedError,
    MemoryError,
    EOFError,
    SyntaxError,  # numpy, of a header; as is the next
    TokenError,
)
"""Exceptions that Python, numpy and pyarrow raise for malformed content."""

Count = Annotated[int, Field(ge=0, le=1 << 53)]
RowCount = Annotated[int, Field(ge=0, lt=1 << 32)]
Ordinal = Annotated[int, Field(ge=0, lt=1 << 21)]
Seconds = Annotated[float, Field(ge=-1e12, le=1e12)]
Digest = Annotated[str, _name("[0-9a-f]{64}")]
"""SHA-256, as hex."""
ShortHash = Annotated[str, _name("[0-9a-f]{1,64}")]
Modality = Annotated[str, _name("image|text")]
ColumnType = Annotated[str, _name("string|int|float|bool")]
IndexFolder = Annotated[str, _name("index/[0-9a-f]{1,64}")]
PartName = Annotated[str, _name("[0-9]{5,7}-[0-9]{5,7}(-[0-9a-f]{8})?")]
TombstonesFile = Annotated[str, _name("tombstones/[0-9]{1,18}[.]npy")]
TuningFile = Annotated[str, _name("tuning(-[0-9][0-9.e-]{0,30})?[.]json")]
ShardFile = Annotated[
    str,
    _name(
        "(img_emb/img_emb|text_emb/text_emb)_[0-9]{5,7}[.]npy"
        "|(metadata/metadata|rejects/rejects)_[0-9]{5,7}[.]parquet|rows/rows_[0-9]{5,7}[.]arrow"
    ),
]
"""Path of a shard's file in the memory."""


def is_part_file(name: str) -> bool:
    """Whether a file name is that of a part or of its record."""
    return re.fullmatch(r"[0-9]{5,7}-[0-9]{5,7}(-[0-9a-f]{8})?[.](faiss|json)", name) is not None


def is_index_folder(name: str) -> bool:
    """Whether a folder name under ``index/`` is that of an index."""
    return re.fullmatch("[0-9a-f]{1,64}", name) is not None


Kind = TypeVar("Kind")


_adapter: Callable[[Any], TypeAdapter[Any]] = lru_cache(None)(TypeAdapter)


def decode(kind: type[Kind], data: bytes | str, *, where: str, fix: str = REPAIR) -> Kind:
    """Decode a record from JSON.

    Args:
        kind: a dataclass under ``strict_record``, or any type that pydantic knows.
        data: the JSON text.
        where: the file, for the message.
        fix: the remedy for a damaged file, for the message.

    Raises:
        CorruptMemoryError: ``data`` is not JSON, or a field is missing, unknown or not of its type.
    """
    try:
        decoded: Kind = _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        problem = f"{where} is damaged ({_reasons(error)})"
        if all(one["type"] in ("extra_forbidden", "unexpected_keyword_argument") for one in error.errors()):
            fix = f"if a newer memory-builder wrote it, install that; else {fix}"
        raise CorruptMemoryError(problem, fix) from None
    return decoded


def decode_value(kind: type[Kind], value: Any, *, where: str, fix: str = REPAIR) -> Kind:
    """Decode a record from a parsed value, such as a table row; arguments as for ``decode``."""
    with reading(where, fix):
        data = json.dumps(value)
    return decode(kind, data, where=where, fix=fix)


def _reasons(error: ValidationError) -> str:
    wrong = error.errors(include_url=False, include_input=False, include_context=False)
    messages = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}".removeprefix(": ")[:200] for one in wrong[:SHOWN]]
    return "; ".join(messages) + (f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")


def read_record(store: Store, path: str, kind: type[Kind], *, fix: str = REPAIR) -> Kind | None:
    """Read the record at a path of a store; None if the file is missing.

    Raises:
        CorruptMemoryError: the record is damaged.
    """
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    return decode(kind, data, where=f"{store.root}/{path}", fix=fix)


def read_sound_record(store: Store, path: str, kind: type[Kind]) -> Kind | None:
    """Read a record; None if it is missing or damaged, for callers that write it anew."""
    try:
        return read_record(store, path, kind)
    except CorruptMemoryError:
        return None


@contextmanager
def reading(where: str, fix: str = REPAIR) -> Iterator[None]:
    """Raise CorruptMemoryError for an exception that malformed content raises in this block.

    Args:
        where: the file.
        fix: the remedy.
    """
    try:
        yield
    except CorruptMemoryError:
        raise
    except UNREADABLE as error:
        raise CorruptMemoryError(f"{where} is damaged ({type(error).__name__}: {str(error)[:300]})", fix) from error


def check_format(store: Store, data: bytes) -> None:
    """Refuse a record that a newer version wrote.

    Raises:
        UsageError: its format is newer than what this version reads.
    """
    try:
        version = json.loads(data)["format_version"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return  # decoding reports the damage
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UsageError(
            f"{store.root} has format {version}, this version reads up to {FORMAT_VERSION}: "
            "install a newer memory-builder"
        )


def decode_table(
    data: bytes, schema: pa.Schema, *, where: str, fix: str = REPAIR, optional: Collection[str] = (), max_rows: int
) -> pa.Table:
    """Decode a parquet table that has the columns of ``schema`` with their types.

    Args:
        data: the file's content.
        schema: the columns.
        where: the file, for the message.
        fix: the remedy for a damaged file, for the message.
        optional: columns that older files lack.
        max_rows: upper limit of a valid file; a small file can claim billions.

    Raises:
        CorruptMemoryError: the file is not such a table.
    """
    if not data.startswith(b"PAR1"):  # pyarrow checks only the end
        raise CorruptMemoryError(f"{where} is damaged (not a parquet file)", fix)
    with reading(where, fix), pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
        stored = file.schema_arrow
        wrong = [
            column.name
            for column in schema
            if (column.name in stored.names or column.name not in optional)
            and (stored.names.count(column.name) != 1 or stored.field(column.name).type != column.type)
        ]
        if wrong or file.metadata.num_rows > max_rows:
            reason = f"column {wrong[0]} is missing or of another type" if wrong else f"{file.metadata.num_rows:,} rows"
            raise CorruptMemoryError(f"{where} is damaged ({reason})", fix)
        # In this thread alone; see ``formats.read_parquet``.
        table = file.read([column.name for column in schema if column.name in stored.names], use_threads=False)
        table.validate(full=True)  # reading checks neither UTF-8 nor offsets
        return table


def record_bytes(record: Any, *, ensure_ascii: bool = True) -> bytes:
    """Serialise a record (a dataclass or a mapping) as JSON. The same record gives the same bytes."""
    fields = asdict(record) if is_dataclass(record) and not isinstance(record, type) else record
    return json.dumps(fields, indent=1, ensure_ascii=ensure_ascii).encode()


def write_record(store: Store, path: str, record: Any, *, ensure_ascii: bool = True) -> None:
    """Write a record, after the data it describes: data without a record does not exist."""
    store.put(path, record_bytes(record, ensure_ascii=ensure_ascii))


def content_hash(content: dict[str, Any]) -> str:
    """Hash a mapping's canonical JSON to sixteen hex digits, to name files that are built from it."""
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())[:16]
