"""Choose the rows of the subset from all hits, in pieces that become tars: ``selection.parquet``, then its record.

Runs in one process, with RAM for the hits and, with --dedup, for two vectors a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.base.types import Ids, Scores, split_ids
from memory_builder.memory import Memory
from memory_builder.retrieval.chosen import RECORD, ROWS, SELECTION, Chosen
from memory_builder.retrieval.config import MODES, Mode, RetrieveConfig
from memory_builder.retrieval.duplicates import first_of_each, without_near_duplicates
from memory_builder.retrieval.queries import Block
from memory_builder.retrieval.search import HITS, done_blocks, read_block
from memory_builder.retrieval.selection import Claims, best_claims, percentile_ranks, rank_in_class, row_scores, select
from memory_builder.storage.records import write_record
from memory_builder.storage.store import Store

ALL_HITS = "hits.parquet"
VECTORS_AT_ONCE = 100_000


@dataclass(frozen=True, slots=True)
class AllHits:
    """Columns of all hits."""

    labels: npt.NDArray[np.int64]
    ids: Ids
    scores: Scores
    modes: npt.NDArray[np.int8]
    """i8[n] positions in MODES."""

    def at(self, kept: npt.NDArray[np.bool_]) -> "AllHits":
        return AllHits(self.labels[kept], self.ids[kept], self.scores[kept], self.modes[kept])


def read_all_hits(store: Store, blocks: Sequence[Block]) -> AllHits:
    """Read the hits of all blocks, in order."""
    done = done_blocks(store)
    columns: list[tuple[npt.NDArray[np.int64], Ids, Scores]] = []
    modes: list[npt.NDArray[np.int8]] = []
    for block in blocks:
        table = read_block(store, done[block.number])
        labels, ids, scores = (table[name].to_numpy() for name in ("label", "id", "score"))
        columns.append((labels.astype(np.int64), ids, scores))
        modes.append(np.full(len(ids), MODES.index(block.mode), np.int8))
    labels, ids, scores = (np.concatenate(column) for column in zip(*columns, strict=True))
    return AllHits(labels, ids, scores, np.concatenate(modes))


def write_all_hits(store: Store, blocks: Sequence[Block]) -> None:
    """Write ``hits.parquet``: every hit of every query, a row group for each block."""
    done = done_blocks(store)
    with store.writing(ALL_HITS) as path, pq.ParquetWriter(str(path), HITS, compression="zstd") as writer:
        for block in blocks:
            writer.write_table(read_block(store, done[block.number]))


def choose(store: Store, blocks: Sequence[Block], memory: Memory, config: RetrieveConfig) -> Chosen:
    """Choose the subset's rows, and write them with their claims."""
    every = read_all_hits(store, blocks)
    hits = every.at(_above_minimum(every, config.ask.min_scores()))
    several = len(np.unique(hits.modes)) > 1
    values = percentile_ranks(hits.scores, hits.modes) if several else hits.scores
    claims = best_claims(hits.labels, hits.ids, values)
    rows, _ = row_scores(claims)
    facts = memory.metadata(rows, ["has_image", "caption", "sha256"])
    complete = facts["has_image"].to_numpy() & facts["caption"].is_valid().to_numpy()
    distinct = complete.copy()
    hashes = facts["sha256"].to_pylist()
    distinct[complete] = first_of_each([hashes[i] for i in np.flatnonzero(complete)])
    kept = distinct.copy()
    if config.dedup is not None:
        kept[distinct] = without_near_duplicates(_vectors(memory, rows[distinct]), config.dedup)
    chosen = select(claims.at(np.isin(claims.rows, rows[kept])), config.select)
    pieces = _pieces(np.unique(chosen.rows), config.shard_pairs)
    record = Chosen(
        n_hits=len(every.ids),
        n_below=len(every.ids) - len(hits.ids),
        n_rows=len(rows),
        n_incomplete=int((~complete).sum()),
        n_same_bytes=int((complete & ~distinct).sum()),
        n_near_duplicates=int((distinct & ~kept).sum()),
        pieces=[len(piece) for piece in pieces],
    )
    with store.writing(SELECTION) as path:
        _write_pieces(path, pieces, chosen, hits, config.strip)
    write_record(store, RECORD, record)
    return record


def _above_minimum(hits: AllHits, least: dict[Mode, float]) -> npt.NDArray[np.bool_]:
    """bool[n]: whether each hit reaches the min_score of its mode."""
    bars = np.full(len(MODES), -np.inf, np.float32)
    for mode, score in least.items():
        bars[MODES.index(mode)] = score
    reached: npt.NDArray[np.bool_] = hits.scores >= bars[hits.modes]
    return reached


def _vectors(memory: Memory, rows: Ids) -> npt.NDArray[np.float16]:
    """f16[n, d] image vectors of these rows."""
    vectors = np.empty((len(rows), memory.description.d), np.float16)
    for start in range(0, len(rows), VECTORS_AT_ONCE):
        block = slice(start, start + VECTORS_AT_ONCE)
        vectors[block] = memory.vectors(rows[block], "image")
    return vectors


def _pieces(rows: Ids, at_most: int) -> list[Ids]:
    """Split ascending rows into tars. All rows of a source shard are in one tar, so that it is read once."""
    if not len(rows):
        return []
    pieces: list[list[Ids]] = [[]]
    for of_source in np.split(rows, np.flatnonzero(np.diff(split_ids(rows)[0])) + 1):
        if pieces[-1] and sum(map(len, pieces[-1])) + len(of_source) > at_most:
            pieces.append([])
        pieces[-1].append(of_source)
    return [np.concatenate(piece) for piece in pieces]


def _write_pieces(path: Path, pieces: Sequence[Ids], chosen: Claims, hits: AllHits, strip: int) -> None:
    shown = np.unique(chosen.rows[rank_in_class(chosen.labels) < strip])
    by_row = chosen.at(np.lexsort((chosen.labels, -chosen.scores, chosen.rows)))
    starts = np.concatenate([np.flatnonzero(np.diff(by_row.rows, prepend=-1)), [len(by_row)]])
    first = 0
    with pq.ParquetWriter(str(path), ROWS, compression="zstd") as writer:
        for piece in pieces:
            ends = starts[first : first + len(piece) + 1]
            claims = by_row.at(np.arange(int(ends[0]), int(ends[-1])))
            table = _piece_table(piece, claims, ends - ends[0], hits, shown)
            writer.write_table(table, row_group_size=max(1, len(piece)))
            first += len(piece)


def _piece_table(rows: Ids, claims: Claims, offsets: npt.NDArray[np.int64], hits: AllHits, shown: Ids) -> pa.Table:
    """Build the table of claims ordered by row; row i has those from offsets[i] to offsets[i + 1]."""
    names = pa.array(MODES, pa.string()).take(pa.array(hits.modes[claims.hits]))
    lists = {
        "labels": pa.array(claims.labels.astype(np.int32)),
        "modes": names,
        "scores": pa.array(hits.scores[claims.hits]),
        "values": pa.array(claims.scores),
    }
    columns = {
        name: pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values) for name, values in lists.items()
    }
    return pa.table({"id": rows, **columns, "shown": np.isin(rows, shown)}, schema=ROWS)
