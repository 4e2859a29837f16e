"""Random access to committed rows by row id: vectors, captions, metadata.

A row id is ``ordinal << 32 | row``. Local files are memory-mapped; from an object store only the pages of the requested
vectors are fetched and cached, or the whole file if many are requested.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from cachetools import LRUCache, cachedmethod

from memory_builder.base.log import warn_once
from memory_builder.base.types import NO_ROW, ROW_BITS, Ids, Modality, Vectors, row_ids, rows_of, split_ids
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.metadata import FIXED_FIELDS, LOOKUP_FIELDS, LOOKUP_SCHEMA, PATH
from memory_builder.catalog.origins import path_of
from memory_builder.catalog.paths import lookup_path, metadata_path, vectors_path
from memory_builder.errors import REPAIR, CorruptMemoryError, UsageError
from memory_builder.storage.formats import arrow_array, read_npy, read_npy_header, string_array
from memory_builder.storage.page_cache import REQUEST_BYTES, PageCache
from memory_builder.storage.records import UNREADABLE, reading
from memory_builder.storage.store import Store

MAPPED_FILES = 256  # of vectors, and as many of captions; each holds a descriptor, of which 1,024 is a common limit


def are_rows(ids: Ids, commits: Mapping[int, Commit]) -> npt.NDArray[np.bool_]:
    """i64[n] ids → bool[n]: whether the commits have such a row."""
    ordinals, rows = split_ids(ids)
    met, at = np.unique(ordinals, return_inverse=True)
    sizes = np.array([commits[ordinal].n_written if ordinal in commits else 0 for ordinal in met.tolist()], np.int64)
    known: npt.NDArray[np.bool_] = (ids >= 0) & (rows < sizes[at]) if len(ids) else np.zeros(0, np.bool_)
    return known


def open_vectors(store: Store, commit: Commit, modality: str, d: int) -> Vectors:
    """Open all vectors of one shard, memory-mapped: f16[n, d].

    Raises:
        CorruptMemoryError: the file is missing, damaged or of another shape than its commit record's.
    """
    path = vectors_path(commit.ordinal, modality)
    try:
        with np.errstate(over="ignore"):  # a shape whose product overflows is refused below
            vectors: Vectors = read_npy(store.fetch(path), mapped=True)
    except FileNotFoundError:
        raise CorruptMemoryError(f"{store.root}/{path} is missing though its shard is committed", REPAIR) from None
    except UNREADABLE as error:
        raise CorruptMemoryError(f"{store.root}/{path} cannot be read ({error})", REPAIR) from None
    if vectors.shape != (commit.n_written, d) or vectors.dtype != np.float16:
        raise CorruptMemoryError(
            f"{store.root}/{path} holds {vectors.dtype}{list(vectors.shape)}, its commit record says "
            f"float16[{commit.n_written}, {d}]",
            REPAIR,
        )
    return vectors


def present_rows(commit: Commit, vectors: Vectors, modality: str, deleted: Ids | None = None) -> Ids:
    """Return the rows of a shard to index, i64[n], ascending: those with this modality that are not deleted.

    A purged row is blank, though its commit record counts it; as it is deleted too, it is left out.
    """
    is_full = commit.n_present(modality) == commit.n_written
    rows = np.arange(commit.n_written) if is_full else np.flatnonzero(vectors.any(axis=1))
    return rows if deleted is None else np.setdiff1d(rows, rows_of(commit.ordinal, deleted), assume_unique=True)


class Rows:
    """The committed rows of a memory.

    Look-ups by id include deleted rows; ``n_present`` and ``ids_at`` leave out ``deleted`` (i64[n], ascending).
    """

    def __init__(self, store: Store, commits: dict[int, Commit], d: int, deleted: Ids | None = None) -> None:
        self.store = store
        self.commits = commits
        self.d = d
        self._deleted = np.zeros(0, np.int64) if deleted is None else deleted
        self._pages = PageCache(store)
        # Caches of the instance without a reference cycle, so that the maps close together with the memory.
        self._maps: LRUCache[Any, Vectors] = LRUCache(MAPPED_FILES)
        self._headers: LRUCache[Any, tuple[int, int]] = LRUCache(MAPPED_FILES)
        self._lookups: LRUCache[Any, pa.RecordBatch] = LRUCache(MAPPED_FILES)
        self._counts: dict[Any, int] = {}
        self._lock = Lock()

    def vectors(self, ids: Ids, modality: Modality) -> npt.NDArray[np.float32]:
        """i64[n] ids → f32[n, d] exact vectors; zeros for id -1."""
        out = np.zeros((len(ids), self.d), np.float32)
        for ordinal, positions, rows in self.by_shard(ids):
            n_bytes = 2 * self.d * self.commits[ordinal].n_written
            if self.store.is_local or len(rows) * REQUEST_BYTES >= n_bytes:
                out[positions] = self._mapped(ordinal, modality)[rows]
            else:
                out[positions] = self._ranged(ordinal, modality, rows)
        return out

    def table(self, ids: Ids, columns: Sequence[str] = LOOKUP_FIELDS) -> pa.Table:
        """i64[n] ids → n rows of id and these columns; nulls for id -1.

        Columns of the look-up files are quick; any other metadata column, and ``path`` (``origins.path_of``), reads a
        parquet file of each shard.

        Raises:
            UsageError: a column does not exist.
        """
        flat = np.asarray(ids, np.int64).ravel()
        quick = [name for name in columns if name in LOOKUP_FIELDS]
        slow = [name for name in columns if name not in (*LOOKUP_FIELDS, PATH)]
        table = self._looked_up(flat, quick) if quick else pa.table({"id": arrow_array(flat)})
        if len(quick) == len(columns) or not self.commits:
            return table
        metadata = self.metadata(flat, [*slow, *(["member"] if PATH in columns and "member" not in slow else [])])
        arrays = {name: table[name] for name in table.column_names} | {name: metadata[name] for name in slow}
        if PATH in columns:
            arrays[PATH] = string_array(self._paths(flat, metadata["member"].to_pylist()))
        return pa.table({name: arrays[name] for name in ("id", *columns)})

    def _paths(self, ids: Ids, members: list[str | None]) -> list[str | None]:
        return [
            None if row_id == NO_ROW else path_of(self.source(row_id), member)
            for row_id, member in zip(ids.tolist(), members, strict=True)
        ]

    def _looked_up(self, flat: Ids, columns: Sequence[str]) -> pa.Table:
        batches, positions = [], []
        for ordinal, where, rows in self.by_shard(flat):
            batches.append(self._taken(ordinal, rows, columns))
            positions.append(where)
        schema = pa.schema([(name, dict(FIXED_FIELDS)[name]) for name in columns])
        table = _in_order(pa.Table.from_batches(batches, schema=schema), positions, len(flat))
        return table.add_column(0, "id", arrow_array(flat))

    def metadata(self, ids: Ids, columns: Sequence[str] | None = None) -> pa.Table:
        """i64[n] ids → n rows of all metadata columns (or these); nulls for id -1.

        Reads a parquet file of each shard.
        """
        flat = np.asarray(ids, np.int64).ravel()
        tables, positions = [], []
        for ordinal, where, rows in self.by_shard(flat):
            tables.append(self.shard_metadata(ordinal, columns).take(arrow_array(rows)))
            positions.append(where)
        if not tables:  # all shards have the same columns
            tables = [self.shard_metadata(ordinal, columns).slice(0, 0) for ordinal in list(self.commits)[:1]]
        with reading(f"{self.store.root}/metadata"):  # raises if the columns of two files differ
            return _in_order(pa.concat_tables(tables), positions, len(flat)) if tables else pa.table({})

    def with_keys(self, keys: Sequence[str]) -> tuple[Ids, list[str]]:
        """Pair keys → (ids i64[n] of all rows with one of them, the keys that no row has)."""
        wanted, met, ids = pa.array(keys, pa.string()), set(), [np.zeros(0, np.int64)]
        for ordinal in self.commits:
            column = self._taken(ordinal, np.arange(self.commits[ordinal].n_written), ["key"]).column("key")
            rows = np.flatnonzero(pc.is_in(column, value_set=wanted))
            met.update(column.take(pa.array(rows)).to_pylist())
            ids.append(row_ids(ordinal, rows))
        return np.concatenate(ids), [key for key in keys if key not in met]

    def n_present(self, modality: Modality) -> int:
        """Count the rows that have this modality and are not deleted."""
        return sum(self._count(ordinal, modality) for ordinal in self.commits)

    def ids_at(self, positions: Ids, modality: Modality) -> Ids:
        """Ascending positions i64[n] among the rows of ``n_present`` → row ids i64[n]."""
        ids, start = [np.zeros(0, np.int64)], 0
        for ordinal in self.commits:
            end = start + self._count(ordinal, modality)
            low, high = np.searchsorted(positions, [start, end])
            if high > low:
                ids.append(row_ids(ordinal, self._present(ordinal, modality)[positions[low:high] - start]))
            start = end
        return np.concatenate(ids)

    @cachedmethod(attrgetter("_counts"), lock=attrgetter("_lock"))
    def _count(self, ordinal: int, modality: Modality) -> int:
        commit, n_deleted = self.commits[ordinal], len(rows_of(ordinal, self._deleted))
        if n_deleted and commit.n_present(modality) < commit.n_written:  # deleted rows may lack it: read the vectors
            return len(self._present(ordinal, modality))
        return commit.n_present(modality) - n_deleted

    def _present(self, ordinal: int, modality: Modality) -> Ids:
        return present_rows(self.commits[ordinal], self._mapped(ordinal, modality), modality, self._deleted)

    def source(self, row_id: int) -> str:
        """URI of the shard of a row."""
        return self.commits[row_id >> ROW_BITS].uri

    def by_shard(self, ids: Ids) -> Iterator[tuple[int, Ids, Ids]]:
        """Group the ids other than -1 by shard: (ordinal, positions in ``ids``, rows in the shard)."""
        ordinals, rows = split_ids(ids)
        wanted = np.flatnonzero(ids != NO_ROW)
        wanted = wanted[np.argsort(ordinals[wanted], kind="stable")]
        if not len(wanted):
            return
        met, starts = np.unique(ordinals[wanted], return_index=True)
        for ordinal, positions in zip(met.tolist(), np.split(wanted, starts[1:]), strict=True):
            commit = self.commits.get(ordinal)
            if commit is None or rows[positions].max() >= commit.n_written:
                raise UsageError(f"row id {ids[positions[rows[positions].argmax()]]} is not in {self.store.root}")
            yield ordinal, positions, rows[positions]

    @cachedmethod(attrgetter("_maps"), lock=attrgetter("_lock"))
    def _mapped(self, ordinal: int, modality: str) -> Vectors:
        return open_vectors(self.store, self.commits[ordinal], modality, self.d)

    @cachedmethod(attrgetter("_lookups"), lock=attrgetter("_lock"))
    def _lookup(self, ordinal: int) -> pa.RecordBatch:
        """Read the look-up columns of one shard; from its metadata if the look-up file is missing or damaged."""
        where = f"{self.store.root}/{lookup_path(ordinal)}"
        try:
            with reading(where):
                file = pa.ipc.open_file(pa.memory_map(str(self.store.fetch(lookup_path(ordinal)))))
                # the file of a shard without rows has no batch
                batch = file.get_batch(0) if file.num_record_batches else pa.RecordBatch.from_pylist([], file.schema)
                batch.validate()
                if batch.schema.remove_metadata() != LOOKUP_SCHEMA or len(batch) != self.commits[ordinal].n_written:
                    raise ValueError(f"{len(batch)} rows of {', '.join(batch.schema.names)}")
        except CorruptMemoryError as error:
            columns = self.shard_metadata(ordinal, LOOKUP_FIELDS).combine_chunks()
            warn_once(f"{error.problem}; the shard's metadata is read instead")
            return pa.RecordBatch.from_arrays([columns[name].combine_chunks() for name in LOOKUP_FIELDS], LOOKUP_FIELDS)
        return batch

    def _taken(self, ordinal: int, rows: Ids, columns: Sequence[str]) -> pa.RecordBatch:
        """Take rows of a shard's look-up columns.

        Arrow trusts the offsets of a mapped file, so the offsets of these rows are checked first.
        """
        batch = self._lookup(ordinal).select(list(columns))
        if all(_are_offsets_sound(column, rows) for column in batch.columns):
            taken = batch.take(arrow_array(rows))
            with suppress(pa.ArrowInvalid):
                taken.validate(full=True)
                return taken
        raise CorruptMemoryError(
            f"{self.store.root}/{lookup_path(ordinal)} is damaged (a text is out of range)", REPAIR
        )

    def schema(self) -> pa.Schema:
        """Schema of the metadata, which is the same for all shards."""
        return self.shard_metadata(next(iter(self.commits))).schema

    def shard_metadata(self, ordinal: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all metadata columns of one shard, or these: n rows, in order.

        Raises:
            UsageError: a column does not exist.
            CorruptMemoryError: the file is missing or damaged.
        """
        path = metadata_path(ordinal)
        try:
            with pq.ParquetFile(str(self.store.fetch(path)), pre_buffer=False) as file:
                names = file.schema_arrow.names
                unknown = set(columns or ()) - set(names)
                if unknown:
                    raise UsageError(
                        f"no column {', '.join(sorted(unknown))} in {self.store.root}: it has {', '.join(names)}"
                    )
                if file.metadata.num_rows != self.commits[ordinal].n_written:
                    raise ValueError(f"{file.metadata.num_rows:,} rows, unlike its commit record")
                expected = [*FIXED_FIELDS, ("extra", pa.string())]
                wrong = [name for name, kind in expected if file.schema_arrow.field(name).type != kind]
                if wrong:
                    raise ValueError(f"column {wrong[0]} is of another type")
                table = file.read(None if columns is None else list(columns), use_threads=False)
                table.validate(full=True)
        except UsageError:
            raise
        except UNREADABLE as error:
            raise CorruptMemoryError(f"{self.store.root}/{path} cannot be read ({error})", REPAIR) from None
        return table if columns is None else table.select(list(columns))

    def _ranged(self, ordinal: int, modality: str, rows: Ids) -> Vectors:
        start, width = self._header(ordinal, modality)
        file_bytes = start + width * self.commits[ordinal].n_written
        read = self._pages.read(vectors_path(ordinal, modality), start + width * rows, width, file_bytes)
        return read.view(np.float16)

    @cachedmethod(attrgetter("_headers"), lock=attrgetter("_lock"))
    def _header(self, ordinal: int, modality: str) -> tuple[int, int]:
        """Read the header of a .npy file of version 1: (offset of the rows in bytes, bytes per row)."""
        path = vectors_path(ordinal, modality)
        head = self.store.fs.cat_file(self.store.full(path), start=0, end=128)
        shape, dtype, start = read_npy_header(head)
        if dtype != np.float16 or shape != (self.commits[ordinal].n_written, self.d):
            raise CorruptMemoryError(
                f"{self.store.root}/{path} holds {dtype}{list(shape)}, unlike its commit record",
                REPAIR,
            )
        return start, 2 * self.d


def _are_offsets_sound(column: pa.StringArray, rows: Ids) -> bool:
    """Whether the offsets of these rows are within the text buffer."""
    _, offsets, texts = column.buffers()
    if offsets is None or not len(rows):
        return True
    ends = np.frombuffer(offsets, np.int32)[column.offset :]
    starts, stops = ends[rows], ends[rows + 1]
    return bool((starts >= 0).all() and (starts <= stops).all() and (stops <= (texts.size if texts else 0)).all())


def _in_order(table: pa.Table, positions: Sequence[Ids], n: int) -> pa.Table:
    """Sort rows that were read shard by shard into n rows by ``positions``, with nulls elsewhere."""
    position = np.full(n, -1)
    if positions:
        position[np.concatenate(positions)] = np.arange(table.num_rows)
    return table.take(arrow_array(position, valid=position >= 0))
