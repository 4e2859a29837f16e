"""Write and commit the tars of a subset: ``00000.tar`` and the rows left out of it, then its record."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from memory_builder.base.types import split_id
from memory_builder.catalog.metadata import FIXED_FIELDS
from memory_builder.catalog.paths import shard_name
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.memory import Memory
from memory_builder.readers.fetch import Missing
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.pairs import printable
from memory_builder.retrieval.chosen import Pair, read_piece
from memory_builder.retrieval.copies.exclude import Evaluation
from memory_builder.retrieval.copies.left_out import LeftOut, left_out, out_table
from memory_builder.retrieval.copies.thresholds import Thresholds
from memory_builder.retrieval.fetch import read_piece_pairs
from memory_builder.retrieval.pieces import LEFT_OUT, RECORDS, STRIP, STRIPS, PieceRecord
from memory_builder.retrieval.tar_writer import TarWriter
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.records import write_record
from memory_builder.storage.store import Store

BATCH = 256
"""Pictures compared with the evaluation sets at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteTask:
    """Worker that opens the memory, reads the evaluation sets and writes tars."""

    memory: str
    out: str
    limits: Thresholds
    class_names: tuple[str, ...]
    snapshot: Snapshot
    """Snapshot that was searched."""
    policy: LinkPolicy
    """Links that pictures may be read from."""
    wants_gpu: bool = False

    def start(self) -> Callable[[int], PieceRecord]:
        store = Store(self.out)
        return partial(
            write_piece,
            memory=Memory.open(self.memory, snapshot=self.snapshot),
            store=store,
            evaluation=Evaluation.read(store),
            limits=self.limits,
            class_names=self.class_names,
            policy=self.policy,
        )


def write_piece(
    number: int,
    *,
    memory: Memory,
    store: Store,
    evaluation: Evaluation | None,
    limits: Thresholds,
    class_names: Sequence[str],
    policy: LinkPolicy,
) -> PieceRecord:
    """Write and commit one tar.

    Raises:
        SourceError: a source exists but cannot be read.
    """
    started = time.perf_counter()
    name = shard_name(number)
    left: list[LeftOut] = []
    strip: list[dict[str, Any]] = []
    n_pairs = 0
    pairs = read_piece_pairs(read_piece(store, number), memory, policy, decode_all=evaluation is not None)
    with store.writing(f"{name}.tar") as path, path.open("wb") as file, TarWriter(file) as tar:
        for batch in _batches(pairs):
            out = left_out(batch, memory, evaluation, limits)
            left += out.values()
            for pair in batch:
                if pair.id not in out:
                    for member, data in members(pair, class_names):
                        tar.add(member, data)
                    n_pairs += 1
                    strip += [{"id": pair.id, "thumbnail": pair.thumbnail}] if pair.shown else []
    store.put(f"{LEFT_OUT}/{name}.parquet", parquet_bytes(out_table(left)))
    store.put(f"{STRIPS}/{name}.parquet", parquet_bytes(pa.Table.from_pylist(strip, schema=STRIP)))
    leaks = [pair for pair in left if pair.evidence]
    record = PieceRecord(
        number=number,
        n_pairs=n_pairs,
        n_bytes=tar.n_bytes,
        missing=dict(sorted(Counter(pair.missing for pair in left if pair.missing).items())),
        evidence=dict(sorted(Counter(kind for pair in leaks for kind in pair.evidence).items())),
        n_leaks=len(leaks),
        sha256=tar.sha256,
        seconds={"total": time.perf_counter() - started},
    )
    write_record(store, f"{RECORDS}/{name}.json", record)
    return record


def pair_key(row_id: int) -> str:
    """Pair key of a row: unique in the subset, without dots and slashes."""
    ordinal, row = split_id(row_id)
    return f"{ordinal:05d}-{row:06d}"


def members(pair: Pair, class_names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Iterate over (name, content) of a pair's files: picture, caption and metadata."""
    assert not isinstance(pair.picture, Missing)
    key = pair_key(pair.id)
    claims = [
        {"class": class_names[label], "label": label, "mode": mode, "score": round(score, 6)}
        for label, mode, score in pair.claims
    ]
    kept = {name: value for name, value in pair.metadata.items() if name not in _OWN and value is not None}
    fields = json.loads(pair.metadata["extra"] or "{}") | kept
    fields |= {"claims": claims, "row_id": pair.id, "source_key": pair.metadata["key"]}
    yield f"{key}.{pair.suffix}", pair.picture
    yield f"{key}.txt", pair.metadata["caption"].encode()
    yield f"{key}.json", printable(json.dumps(fields, sort_keys=True, ensure_ascii=False)).encode()


_OWN = {name for name, _ in FIXED_FIELDS} - {"url"} | {"extra"}


def _batches(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    pairs = iter(pairs)
    while batch := list(islice(pairs, BATCH)):
        yield batch
