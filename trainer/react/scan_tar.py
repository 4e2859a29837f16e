"""One tar of a subset → a table of its usable pairs, with offset and size of every picture for random access.

Pairs that cannot be used are counted by reason and left out. Every picture is decoded here, so that no training step
meets a damaged one.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from memory_builder.base.prefetch import map_ahead
from memory_builder.base.runner import available_threads
from memory_builder.model.images import BadImageError, decode_image
from memory_builder.readers.pairs import printable
from memory_builder.readers.read import Break, Pair, Reject, read_pairs
from memory_builder.readers.tar_stream import DAMAGE, MAX_TAR_BYTES
from memory_builder.storage.filesystem import open_filesystem

AHEAD = 256
"""Pictures decoded ahead."""
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("caption", pa.string()),
        ("class", pa.string()),
    ]
)


def scan_tar(uri: str, shard: int) -> tuple[pa.Table, Counter[str]]:
    """The usable pairs of a tar in its order (``SCHEMA``), and the number of rejects by reason.

    Args:
        uri: URL of the tar.
        shard: number of the tar in the subset.

    Raises:
        SourceError: the tar cannot be read.
    """
    rejects: Counter[str] = Counter()
    rows = list(_rows(uri, shard, rejects))
    return pa.Table.from_pylist(rows, schema=SCHEMA), rejects


def _rows(uri: str, shard: int, rejects: Counter[str]) -> Iterator[dict[str, Any]]:
    locations = _locations(uri)
    with ThreadPoolExecutor(available_threads()) as threads:
        for pair in map_ahead(_checked, read_pairs(uri), threads, AHEAD):
            if not isinstance(pair, Pair):
                rejects[pair.reason] += 1
                continue
            offset, size = locations[pair.member or ""]
            yield {
                "key": pair.key,
                "shard": shard,
                "offset": offset,
                "bytes": size,
                "caption": pair.caption,
                "class": class_of(pair.fields),
            }


def _checked(item: Pair | Reject | Break) -> Pair | Reject | Break:
    """The item itself, or a reject if its picture cannot be decoded."""
    if isinstance(item, Pair):
        try:
            decode_image(item.image or b"")
        except BadImageError as error:
            return Reject(key=item.key, reason=str(error))
    return item


def class_of(fields: Mapping[str, Any]) -> str | None:
    """The class that a pair was retrieved for, or the ``class`` of its .json, which may hold any value."""
    claims = fields.get("claims")
    if isinstance(claims, list) and claims and all(isinstance(claim, dict) and "class" in claim for claim in claims):
        fields = claims[0]
    value = fields.get("class")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:  # NaN: a table's null
        return None
    return printable(str(value))


def _locations(uri: str) -> dict[str, tuple[int, int]]:
    """Member → (offset, bytes) in a tar, up to the first damaged header; the first of two members of one name."""
    locations: dict[str, tuple[int, int]] = {}
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    if not info.offset < tar.offset < MAX_TAR_BYTES:  # as read_members: no tar goes on there
                        break
                    locations.setdefault(printable(info.name), (info.offset_data, info.size))
        except DAMAGE:
            pass  # read_pairs raises for it
    return locations
