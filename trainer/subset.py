"""A subset's tars → a table of usable pairs, with the place of every picture, so that any pair can be read at once.

``retrieve`` writes such folders; any folder of plain webdataset tars will do. What cannot be used is counted, by
reason, and left out for good: every picture is decoded here, so that no step of training finds one that cannot be.
"""

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.ahead import map_ahead
from memory_builder.encoder import EncoderConfig
from memory_builder.errors import EncoderError, SourceError
from memory_builder.images import BadImageError, decode_image
from memory_builder.progress import say
from memory_builder.retry import open_filesystem
from memory_builder.runner import available_threads
from memory_builder.shards import Break, Pair, Reject, read_pairs
from memory_builder.shards.pairs import printable
from memory_builder.storage import Store, sha256, version_of
from memory_builder.tables import parquet_bytes, read_parquet

DESCRIPTION = "retrieve.json"
SUMMARY = "subset.json"
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
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """A folder of tars."""

    root: str
    shards: tuple[str, ...]
    """URLs of the tars."""
    digest: str
    """Changes with any of them."""
    described: dict[str, Any]
    """What ``retrieve`` says of it: memory, model and fingerprint among others; empty for other folders."""


def open_subset(root: str) -> Subset:
    """Look at a folder of tars.

    Raises:
        SourceError: there is none, it has no tars, they are zipped, or ``retrieve`` has not finished it.
    """
    store = Store(root)
    names = store.list("")
    tars = [name for name in names if name.endswith(".tar")]
    if not tars:
        zipped = any(name.endswith((".tar.gz", ".tgz")) for name in names)
        raise SourceError(
            f"{store.root} holds no .tar"
            + (" that is not zipped: unpack them" if zipped else "")
            + ": name a folder that memory-builder retrieve wrote, or any folder of webdataset tars"
        )
    described = store.read_json(DESCRIPTION) or {}
    if described and SUMMARY not in names:
        raise SourceError(f"{store.root} is not finished: run the same memory-builder retrieve again")
    versions = [(name, store.size(name), version_of(store.fs.info(store.full(name)))) for name in tars]
    return Subset(
        root=store.root,
        shards=tuple(f"{store.root}/{name}" for name in tars),
        digest=sha256(json.dumps(versions).encode()),
        described=described,
    )


def described_encoder(root: str) -> EncoderConfig | None:
    """The model that chose a subset, if that says which."""
    described = Store(root).read_json(DESCRIPTION) or {}
    model = described.get("model")
    return EncoderConfig(model=model, pretrained=described.get("pretrained")) if model else None


def check_encoder(subset: Subset, fingerprint: str, name: str) -> None:
    """Refuse a model that is not the one whose embeddings chose the subset.

    Raises:
        EncoderError: it is another.
    """
    theirs = subset.described.get("fingerprint", fingerprint)
    if theirs != fingerprint:
        raise EncoderError(
            f"{subset.root} was retrieved with {subset.described.get('model')} ({theirs[:12]}), and {name} is another "
            f"({fingerprint[:12]}): train that one, retrieve with this one, or say --any-encoder if it is meant"
        )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pair's picture lies."""

    pair: int
    """Its number."""
    uri: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The usable pairs of a subset, numbered from 0. Use ``prepare_pairs``."""

    subset: Subset
    table: pa.Table
    rejects: dict[str, int]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def places(self, numbers: Numbers) -> list[Place]:
        """Where some pairs' pictures lie."""
        rows = self.table.select(["shard", "offset", "bytes"]).take(pa.array(numbers)).to_pylist()
        return [
            Place(int(number), self.subset.shards[row["shard"]], row["offset"], row["bytes"])
            for number, row in zip(numbers, rows, strict=True)
        ]

    def distinct(self, column: str) -> tuple[Numbers, list[str]]:
        """(i64[n] number of each pair's value, the values); nulls are −1."""
        encoded = self.table[column].combine_chunks().dictionary_encode()
        numbers: Numbers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers, encoded.dictionary.to_pylist()


def prepare_pairs(subset: Subset, cache: Store) -> Pairs:
    """The pairs of a subset; from ``cache`` if they were found before.

    Raises:
        SourceError: a tar cannot be read.
    """
    folder = f"pairs/{subset.digest[:16]}"
    record = cache.read_json(f"{folder}/record.json")
    if record is None:
        rejects: Counter[str] = Counter()
        shards = range(len(subset.shards))
        tables = [pa.Table.from_pylist(list(_scan(subset, shard, rejects)), schema=SCHEMA) for shard in shards]
        found = pa.concat_tables(tables)
        cache.put(f"{folder}/pairs.parquet", parquet_bytes(found))
        record = {"subset": subset.root, "pairs": found.num_rows, "rejects": dict(sorted(rejects.items()))}
        cache.put(f"{folder}/record.json", json.dumps(record, indent=1).encode())
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in record["rejects"].items())
        say(f"{subset.root}: {found.num_rows:,} pairs" + (f"; left out: {left_out}" if left_out else ""))
    table = read_parquet(cache.read(f"{folder}/pairs.parquet"))
    return Pairs(subset=subset, table=table, rejects=record["rejects"])


def read_picture(place: Place) -> bytes:
    """A pair's encoded picture: one read of its bytes alone."""
    fs, path = open_filesystem(place.uri)
    data: bytes = fs.cat_file(path, start=place.offset, end=place.offset + place.n_bytes)
    return data


def _scan(subset: Subset, shard: int, rejects: Counter[str]) -> Iterator[dict[str, Any]]:
    places = _places(subset.shards[shard])
    with ThreadPoolExecutor(available_threads()) as threads:
        for found in map_ahead(_checked, read_pairs(subset.shards[shard]), threads, AHEAD):
            if not isinstance(found, Pair):
                rejects[found.reason] += 1
                continue
            offset, size = places[found.member or ""]
            claims = found.fields.get("claims") or [{"class": found.fields.get("class")}]
            yield {
                "key": found.key,
                "shard": shard,
                "offset": offset,
                "bytes": size,
                "caption": found.caption,
                "class": claims[0].get("class"),
            }


def _checked(found: Pair | Reject | Break) -> Pair | Reject | Break:
    if isinstance(found, Pair):
        try:
            decode_image(found.image or b"")
        except BadImageError as error:
            return Reject(key=found.key, reason=str(error))
    return found


def _places(uri: str) -> dict[str, tuple[int, int]]:
    """Member → (offset, bytes) in a tar, as far as its headers can be read; of two of one name the first."""
    places: dict[str, tuple[int, int]] = {}
    fs, path = open_filesystem(uri)
    with fs.open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    places.setdefault(printable(info.name), (info.offset_data, info.size))
        except tarfile.TarError:
            pass  # read_pairs says what is wrong with it
    return places
