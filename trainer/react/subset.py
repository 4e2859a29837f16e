"""A subset's tars → one table of usable pairs, written tar by tar, so that a killed run resumes at the next tar.

``memory-builder retrieve`` writes subsets; any folder of plain webdataset tars is one.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.log import logger
from memory_builder.base.progress import Progress
from memory_builder.catalog.trusted_sources import trusted_encoder
from memory_builder.errors import CorruptMemoryError, EncoderError, SourceError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.filesystem import open_filesystem
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.records import Count, decode_table, decode_value, partial_record, read_sound_record
from memory_builder.storage.store import Store, sha256, version_of
from trainer.react.scan_tar import SCHEMA, scan_tar

DESCRIPTION = "retrieve.json"
SUMMARY = "subset.json"
RECORD = "record.json"
"""Record of the table of all pairs, written last."""
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subset:
    """A folder of webdataset tars."""

    root: str
    shards: tuple[str, ...]
    """URLs of the tars."""
    digest: str
    """Hash of the names, sizes and versions of the tars."""
    description: dict[str, Any]
    """``retrieve.json``: memory, model, fingerprint and more; empty for folders that ``retrieve`` did not write."""


def open_subset(root: str) -> Subset:
    """List the tars of a subset.

    Raises:
        SourceError: no such folder, no tars in it, or zipped ones; or ``retrieve`` has not finished it.
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
    description = _read_description(store)
    if description and SUMMARY not in names:
        raise SourceError(f"{store.root} is not finished: run the same memory-builder retrieve again")
    versions = [(name, store.size(name), version_of(store.fs.info(store.full(name)))) for name in tars]
    return Subset(
        root=store.root,
        shards=tuple(f"{store.root}/{name}" for name in tars),
        digest=sha256(json.dumps(versions).encode()),
        description=description,
    )


def described_encoder(root: str) -> EncoderConfig | None:
    """The model that a subset was retrieved with, if its description names one."""
    description = _read_description(Store(root))
    model, pretrained = description.get("model"), description.get("pretrained")
    return trusted_encoder(EncoderConfig(model=model, pretrained=pretrained), root) if model else None


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalModel:
    """``retrieve.json``: the fields that training needs, which name the model of the retrieval."""

    model: str | None = None
    pretrained: str | None = None
    fingerprint: str = ""


def _read_description(store: Store) -> dict[str, Any]:
    """``retrieve.json``, or nothing if ``retrieve`` did not write the folder.

    Raises:
        CorruptMemoryError: the file is damaged.
    """
    fix = "remove it to train on the tars alone, or retrieve the subset again into another --out"
    description = store.read_json(DESCRIPTION, fix=fix) or {}
    decode_value(RetrievalModel, description, where=f"{store.root}/{DESCRIPTION}", fix=fix)
    return description


def check_encoder(subset: Subset, fingerprint: str, name: str) -> None:
    """Refuse a model other than the one that the subset was retrieved with.

    Raises:
        EncoderError: the fingerprints differ.
    """
    theirs = subset.description.get("fingerprint", fingerprint)
    if theirs != fingerprint:
        raise EncoderError(
            f"{subset.root} was retrieved with {subset.description.get('model')} ({theirs[:12]}), and {name} is "
            f"another model ({fingerprint[:12]}): train that one, retrieve with this one, or add --any-encoder"
        )


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """The bytes of a pair's picture in a tar."""

    pair: int
    """Number of the pair."""
    uri: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetPairs:
    """The usable pairs of a subset, numbered from 0. Use ``prepare_pairs``."""

    subset: Subset
    table: pa.Table
    rejects: dict[str, int]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def locations(self, numbers: Numbers) -> list[ImageLocation]:
        """Locations of the pictures of these pairs."""
        rows = self.table.select(["shard", "offset", "bytes"]).take(pa.array(numbers)).to_pylist()
        return [
            ImageLocation(int(number), self.subset.shards[row["shard"]], row["offset"], row["bytes"])
            for number, row in zip(numbers, rows, strict=True)
        ]

    def distinct(self, column: str) -> tuple[Numbers, list[str]]:
        """(i64[n] index of each pair's value, the distinct values); the index of a null is −1."""
        encoded = self.table[column].combine_chunks().dictionary_encode()
        numbers: Numbers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return numbers, encoded.dictionary.to_pylist()


def scan_tars(subset: Subset, cache: Store) -> None:
    """Scan the tars, shared among the workers; returns on all of them when every tar is scanned.

    Raises:
        SourceError: a tar cannot be read.
    """
    from trainer.loop.distributed import wait_for_all, world  # imports torch; descriptions are read before that

    here = world()
    if not cache.exists(f"{_folder(subset)}/{RECORD}"):
        _scan_missing(subset, cache, range(here.rank, len(subset.shards), here.size))
    wait_for_all()


def prepare_pairs(subset: Subset, cache: Store) -> SubsetPairs:
    """The pairs of a subset, from ``cache`` where they were scanned before.

    Raises:
        SourceError: a tar cannot be read.
    """
    folder = _folder(subset)
    cached = _cached_pairs(cache, folder)
    if cached is None:
        shards = range(len(subset.shards))
        rejects = _scan_missing(subset, cache, shards)
        tables = (cache.read(f"{_tar(subset, shard)}.parquet") for shard in shards)
        table = pa.concat_tables(decode_table(data, SCHEMA, where=folder, max_rows=1 << 40) for data in tables)
        cache.put(f"{folder}/pairs.parquet", parquet_bytes(table))
        record = {"subset": subset.root, "pairs": table.num_rows, "rejects": dict(sorted(rejects.items()))}
        cache.put(f"{folder}/{RECORD}", json.dumps(record, indent=1).encode())
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in record["rejects"].items())
        logger.info(f"{subset.root}: {table.num_rows:,} pairs" + (f"; left out: {left_out}" if left_out else ""))
        cached = table, record["rejects"]
    return SubsetPairs(subset=subset, table=cached[0], rejects=cached[1])


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class ScanRecord:
    """Record of a table of pairs in the cache, written after it."""

    pairs: Count
    rejects: dict[str, Count]


def _cached_pairs(cache: Store, folder: str) -> tuple[pa.Table, dict[str, int]] | None:
    """(the pairs of all tars, the rejects), or None if the cache holds no sound table."""
    record = read_sound_record(cache, f"{folder}/{RECORD}", ScanRecord)
    table = _sound_table(cache, f"{folder}/pairs.parquet", record)
    return None if record is None or table is None else (table, record.rejects)


def _sound_table(cache: Store, path: str, record: ScanRecord | None) -> pa.Table | None:
    """A table of pairs with as many rows as its record says, or None."""
    if record is None:
        return None
    try:
        table = decode_table(cache.read(path), SCHEMA, where=f"{cache.root}/{path}", max_rows=record.pairs)
    except (FileNotFoundError, CorruptMemoryError):
        return None
    return table if table.num_rows == record.pairs else None


def _scan_missing(subset: Subset, cache: Store, shards: Sequence[int]) -> Counter[str]:
    """Scan the tars that have no record: write a table, then its record. Returns the rejects of all these tars."""
    records = {shard: _scan_record(subset, cache, shard) for shard in shards}
    rejects = sum((Counter(record.rejects) for record in records.values() if record), start=Counter[str]())
    missing = [shard for shard, record in records.items() if record is None]
    if not missing:
        return rejects
    progress = Progress("pairs", n_planned=len(shards), n_done=len(shards) - len(missing), unit="tars")
    for shard in missing:
        table, left_out = scan_tar(subset.shards[shard], shard)
        cache.put(f"{_tar(subset, shard)}.parquet", parquet_bytes(table))
        written = {"pairs": table.num_rows, "rejects": dict(sorted(left_out.items()))}
        cache.put(f"{_tar(subset, shard)}.json", json.dumps(written, indent=1).encode())
        rejects += left_out
        progress.advance(n_pairs=table.num_rows)
    return rejects


def _scan_record(subset: Subset, cache: Store, shard: int) -> ScanRecord | None:
    record = read_sound_record(cache, f"{_tar(subset, shard)}.json", ScanRecord)
    return record if _sound_table(cache, f"{_tar(subset, shard)}.parquet", record) is not None else None


def _folder(subset: Subset) -> str:
    return f"pairs/{subset.digest[:16]}"


def _tar(subset: Subset, shard: int) -> str:
    """Path of a tar's table and record, without suffix."""
    return f"{_folder(subset)}/tars/{shard:05d}"


def read_picture(location: ImageLocation) -> bytes:
    """A pair's encoded picture, read with one range request."""
    fs, path = open_filesystem(location.uri)
    data: bytes = fs.cat_file(path, start=location.offset, end=location.offset + location.n_bytes)
    return data
