"""One tar of a subset → a table of its usable pairs, with the place of every picture, so that any can be read at once.

What cannot be used is counted, by reason, and left out for good: every picture is decoded here, so that no step of
training finds one that cannot be.
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
"""Pictures that are decoded ahead of the one that is noted."""
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
    """The usable pairs of a tar in its order, as ``SCHEMA`` says, and how many are not usable for what reason.

    Args:
        uri: of the tar.
        shard: its number in the subset.

    Raises:
        SourceError: it cannot be read.
    """
    rejects: Counter[str] = Counter()
    rows = list(_rows(uri, shard, rejects))
    return pa.Table.from_pylist(rows, schema=SCHEMA), rejects


def _rows(uri: str, shard: int, rejects: Counter[str]) -> Iterator[dict[str, Any]]:
    places = _places(uri)
    with ThreadPoolExecutor(available_threads()) as threads:
        for found in map_ahead(_checked, read_pairs(uri), threads, AHEAD):
            if not isinstance(found, Pair):
                rejects[found.reason] += 1
                continue
            offset, size = places[found.member or ""]
            yield {
                "key": found.key,
                "shard": shard,
                "offset": offset,
                "bytes": size,
                "caption": found.caption,
                "class": class_of(found.fields),
            }


def _checked(found: Pair | Reject | Break) -> Pair | Reject | Break:
    if isinstance(found, Pair):
        try:
            decode_image(found.image or b"")
        except BadImageError as error:
            return Reject(key=found.key, reason=str(error))
    return found


def class_of(fields: Mapping[str, Any]) -> str | None:
    """The class that a pair was retrieved for, or that its json names; other people's json may hold anything there."""
    claims = fields.get("claims")
    if isinstance(claims, list) and claims and all(isinstance(claim, dict) and "class" in claim for claim in claims):
        fields = claims[0]
    value = fields.get("class")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:  # NaN: a table's null
        return None
    return printable(str(value))


def _places(uri: str) -> dict[str, tuple[int, int]]:
    """Member → (offset, bytes) in a tar, as far as its headers can be read; of two of one name the first."""
    places: dict[str, tuple[int, int]] = {}
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    if not info.offset < tar.offset < MAX_TAR_BYTES:  # as read_members: no file goes on there
                        break
                    places.setdefault(printable(info.name), (info.offset_data, info.size))
        except DAMAGE:
            pass  # read_pairs says what is wrong with it
    return places
