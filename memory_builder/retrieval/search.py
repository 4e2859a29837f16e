"""Search blocks of queries and commit their hits: ``search/00000.parquet``, then its record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.types import NO_ROW, Scores
from memory_builder.catalog.paths import shard_name
from memory_builder.catalog.snapshots import Snapshot
from memory_builder.errors import CorruptMemoryError, UsageError
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.retrieval.block_records import done_records
from memory_builder.retrieval.config import QueryConfig, modality_of, query_modality_of
from memory_builder.retrieval.queries import Block, Query
from memory_builder.search.hits import Hits
from memory_builder.search.queries import query_vectors
from memory_builder.storage.filesystem import open_filesystem
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.records import Count, Digest, Seconds, decode_table, strict_record, write_record
from memory_builder.storage.store import Store, sha256

FOLDER = "search"
HITS = pa.schema(
    [
        ("query", pa.int32()),
        ("label", pa.int32()),
        ("class", pa.string()),
        ("mode", pa.string()),
        ("asked", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("id", pa.int64()),
        ("key", pa.string()),
    ]
)
"""A row for each hit; ``rank`` counts from 0 within its query."""


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRecord:
    """Commit record of a block's hits."""

    number: Count
    n_queries: Count
    n_hits: Count
    n_short: Count
    """Number of queries with fewer hits than --per-query."""
    sha256: Digest
    seconds: dict[str, Seconds]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTask:
    """Worker that opens the memory and searches blocks."""

    memory: str
    out: str
    encoder: EncoderConfig | None
    """The memory's model at its current path, if it has moved."""
    ask: QueryConfig
    snapshot: Snapshot
    """Snapshot to search."""
    wants_gpu: bool = False

    def start(self) -> Callable[[Block], BlockRecord]:
        memory = Memory.open(self.memory, encoder=self.encoder, snapshot=self.snapshot)
        return partial(search_block, memory=memory, store=Store(self.out), ask=self.ask)


def search_block(block: Block, *, memory: Memory, store: Store, ask: QueryConfig) -> BlockRecord:
    """Search a block and commit its hits."""
    started = time.perf_counter()
    modality = modality_of(block.mode)
    k = min(ask.per_query, max(1, memory.index(modality).n_rows))
    query_modality = query_modality_of(block.mode)
    vectors = block_vectors(block.queries, query_modality, memory)
    embedded = time.perf_counter()
    hits = memory.search(vectors=vectors, query_modality=query_modality, k=k, modality=modality, where=ask.where)
    searched = time.perf_counter()
    table = hits_table(block, hits, memory)
    data = parquet_bytes(table)
    store.put(f"{FOLDER}/{shard_name(block.number)}.parquet", data)
    record = BlockRecord(
        number=block.number,
        n_queries=len(block.queries),
        n_hits=table.num_rows,
        n_short=int(((hits.ids != NO_ROW).sum(axis=1) < ask.per_query).sum()),
        sha256=sha256(data),
        seconds={
            "embed": embedded - started,
            "search": searched - embedded,
            "total": time.perf_counter() - started,
        },
    )
    write_record(store, f"{FOLDER}/{shard_name(block.number)}.json", record)
    return record


def done_blocks(store: Store) -> dict[int, BlockRecord]:
    """Records of committed blocks."""
    return done_records(store, FOLDER, BlockRecord)


def whole_blocks(store: Store) -> dict[int, BlockRecord]:
    """Records of committed blocks with undamaged hits."""

    def is_whole(record: BlockRecord) -> bool:
        try:
            read_block(store, record)
        except CorruptMemoryError:
            return False
        return True

    return done_records(store, FOLDER, BlockRecord, is_whole)


def read_block(store: Store, record: BlockRecord) -> pa.Table:
    """Read the hits of a committed block.

    Raises:
        CorruptMemoryError: the hits do not match their record.
    """
    path, fix = f"{FOLDER}/{shard_name(record.number)}.parquet", "run the same command again"
    try:
        data = store.read(path)
    except FileNotFoundError:
        data = b""
    if sha256(data) != record.sha256:
        raise CorruptMemoryError(f"{store.root}/{path} is missing or damaged", fix)
    return decode_table(data, HITS, where=f"{store.root}/{path}", fix=fix, max_rows=record.n_hits)


def block_vectors(queries: Sequence[Query], side: str, memory: Memory) -> Scores:
    """f32[q, d] unit rows: the mean embedding of each query's inputs."""
    inputs = [one for query in queries for one in query.inputs]
    distinct = {one: i for i, one in enumerate(dict.fromkeys(inputs))}
    given: Any = list(distinct) if side == "text" else [_picture(path) for path in distinct]
    encoder = lambda: memory.encoder  # noqa: E731, called only if needed
    texts, images = (given, None) if side == "text" else (None, given)
    _, vectors = query_vectors(texts, images, None, encoder=encoder, d=memory.description.d)
    vectors = vectors[[distinct[one] for one in inputs]]
    sizes = np.array([len(query.inputs) for query in queries])
    if (sizes == 1).all():
        return vectors
    sums = np.add.reduceat(vectors, np.concatenate([[0], np.cumsum(sizes)[:-1]]), axis=0)
    means: Scores = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
    return means


def _picture(path: str) -> bytes:
    try:
        fs, at = open_filesystem(path)
        data: bytes = fs.cat_file(at)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"example picture {path} of --classes cannot be read: {error}") from None
    return data


def hits_table(block: Block, hits: Hits, memory: Memory) -> pa.Table:
    """Table of the hits (no -1), by query and rank, with the rows' keys."""
    is_hit = hits.ids != NO_ROW
    queries_of_hits, ranks = np.nonzero(is_hit)
    ids: npt.NDArray[np.int64] = hits.ids[is_hit]
    queries = block.queries
    inputs = [query.inputs[0] if len(query.inputs) == 1 else f"mean of {len(query.inputs)}" for query in queries]
    columns = {
        "query": np.array([query.number for query in queries], np.int32)[queries_of_hits],
        "label": np.array([query.label for query in queries], np.int32)[queries_of_hits],
        "class": pa.array([query.name for query in queries], pa.string()).take(pa.array(queries_of_hits)),
        "mode": pa.array([block.mode], pa.string()).take(pa.array(np.zeros(len(ids), np.int64))),
        "asked": pa.array(inputs, pa.string()).take(pa.array(queries_of_hits)),
        "rank": ranks.astype(np.int32),
        "score": hits.scores[is_hit],
        "id": ids,
        "key": memory.rows(ids, ["key"])["key"].combine_chunks(),
    }
    return pa.table(columns, schema=HITS)
