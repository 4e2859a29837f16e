"""A subset's tars → one table of usable pairs, found tar by tar, so that a killed run goes on with the next tar.

``retrieve`` writes such folders; any folder of plain webdataset tars will do.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.progress import Progress, say
from memory_builder.catalog.trusted import trusted_encoder
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
"""Of all pairs, written last."""
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
    described = _described(store)
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
    described = _described(Store(root))
    model = described.get("model")
    return trusted_encoder(EncoderConfig(model=model, pretrained=described.get("pretrained")), root) if model else None


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Chooser:
    """``retrieve.json``, as far as training needs it: the model that chose the subset."""

    model: str | None = None
    pretrained: str | None = None
    fingerprint: str = ""


def _described(store: Store) -> dict[str, Any]:
    """What was asked for, where ``retrieve`` wrote the subset.

    Raises:
        CorruptMemoryError: that is damaged.
    """
    fix = "remove it to train on the tars alone, or retrieve the subset again into another --out"
    described = store.read_json(DESCRIPTION, fix=fix) or {}
    decode_value(Chooser, described, where=f"{store.root}/{DESCRIPTION}", fix=fix)
    return described


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


def scan_tars(subset: Subset, cache: Store) -> None:
    """Find the pairs of the tars, each by one of the workers; all return when all are there.

    Raises:
        SourceError: a tar cannot be read.
    """
    from trainer.loop.distributed import (  # imports torch, and who chose a subset is read before that
        wait_for_all,
        world,
    )

    here = world()
    if not cache.exists(f"{_folder(subset)}/{RECORD}"):
        _scan_missing(subset, cache, range(here.rank, len(subset.shards), here.size))
    wait_for_all()


def prepare_pairs(subset: Subset, cache: Store) -> Pairs:
    """The pairs of a subset; from ``cache`` as far as they were found before.

    Raises:
        SourceError: a tar cannot be read.
    """
    folder = _folder(subset)
    kept = _kept_pairs(cache, folder)
    if kept is None:
        shards = range(len(subset.shards))
        rejects = _scan_missing(subset, cache, shards)
        tables = (cache.read(f"{_tar(subset, shard)}.parquet") for shard in shards)
        found = pa.concat_tables(decode_table(data, SCHEMA, where=folder, max_rows=1 << 40) for data in tables)
        cache.put(f"{folder}/pairs.parquet", parquet_bytes(found))
        record = {"subset": subset.root, "pairs": found.num_rows, "rejects": dict(sorted(rejects.items()))}
        cache.put(f"{folder}/{RECORD}", json.dumps(record, indent=1).encode())
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in record["rejects"].items())
        say(f"{subset.root}: {found.num_rows:,} pairs" + (f"; left out: {left_out}" if left_out else ""))
        kept = found, record["rejects"]
    return Pairs(subset=subset, table=kept[0], rejects=kept[1])


@partial_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Scanned:
    """What makes a table of pairs exist in the cache."""

    pairs: Count
    rejects: dict[str, Count]


def _kept_pairs(cache: Store, folder: str) -> tuple[pa.Table, dict[str, int]] | None:
    """(the pairs of all tars, the rejects); None if they are to be found anew."""
    record = read_sound_record(cache, f"{folder}/{RECORD}", Scanned)
    table = _sound_table(cache, f"{folder}/pairs.parquet", record)
    return None if record is None or table is None else (table, record.rejects)


def _sound_table(cache: Store, path: str, record: Scanned | None) -> pa.Table | None:
    """A table of pairs that has as many as its record says."""
    if record is None:
        return None
    try:
        table = decode_table(cache.read(path), SCHEMA, where=f"{cache.root}/{path}", max_rows=record.pairs)
    except (FileNotFoundError, CorruptMemoryError):
        return None
    return table if table.num_rows == record.pairs else None


def _scan_missing(subset: Subset, cache: Store, shards: Sequence[int]) -> Counter[str]:
    """Write a table and then a record of each of these tars that has no record yet; the rejects of them all."""
    records = {shard: _scanned(subset, cache, shard) for shard in shards}
    rejects = sum((Counter(record.rejects) for record in records.values() if record), start=Counter[str]())
    missing = [shard for shard, record in records.items() if record is None]
    if not missing:
        return rejects
    progress = Progress("pairs", n_planned=len(shards), n_done=len(shards) - len(missing), unit="tars")
    for shard in missing:
        found, left_out = scan_tar(subset.shards[shard], shard)
        cache.put(f"{_tar(subset, shard)}.parquet", parquet_bytes(found))
        written = {"pairs": found.num_rows, "rejects": dict(sorted(left_out.items()))}
        cache.put(f"{_tar(subset, shard)}.json", json.dumps(written, indent=1).encode())
        rejects += left_out
        progress.advance(n_pairs=found.num_rows)
    return rejects


def _scanned(subset: Subset, cache: Store, shard: int) -> Scanned | None:
    record = read_sound_record(cache, f"{_tar(subset, shard)}.json", Scanned)
    return record if _sound_table(cache, f"{_tar(subset, shard)}.parquet", record) is not None else None


def _folder(subset: Subset) -> str:
    return f"pairs/{subset.digest[:16]}"


def _tar(subset: Subset, shard: int) -> str:
    """What is kept of one tar, without a suffix."""
    return f"{_folder(subset)}/tars/{shard:05d}"


def read_picture(place: Place) -> bytes:
    """A pair's encoded picture: one read of its bytes alone."""
    fs, path = open_filesystem(place.uri)
    data: bytes = fs.cat_file(path, start=place.offset, end=place.offset + place.n_bytes)
    return data
