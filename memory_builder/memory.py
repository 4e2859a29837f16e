"""``Memory``: a memory opened for search."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.ann.fastscan import ServeFormat, check_serve_format
from memory_builder.base.arguments import one_modality, several
from memory_builder.base.runner import LocalRunner, Runner
from memory_builder.base.types import Ids, Modality, Scores, row_ids, split_id
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import Description, read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import LOOKUP_FIELDS
from memory_builder.catalog.row_bitmap import RowBitmap
from memory_builder.catalog.rows import Rows
from memory_builder.catalog.snapshots import Snapshot, read_snapshot, read_tuning
from memory_builder.catalog.tombstones import current_tombstones
from memory_builder.catalog.trusted_sources import encoder_of, link_policy
from memory_builder.errors import EncoderError, IndexBuildError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.readers.fetch import Missing, PictureRef, read_pictures
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.search.filtered import lists_for
from memory_builder.search.hits import Hits
from memory_builder.search.open_index import OpenIndex, SearchParams, tuned_params
from memory_builder.search.queries import Picture, query_vectors
from memory_builder.search.row_filter import AllowedRows
from memory_builder.search.tuned import stated_recall
from memory_builder.storage.store import Store

MODEL_LOCK = Lock()
"""Allows one model load at a time: concurrent threads would each load it."""


class Memory:
    """A memory as of one snapshot; later writers do not change the rows and indexes seen here.

    Use ``Memory.open``.
    """

    def __init__(
        self,
        store: Store,
        description: Description,
        snapshot: Snapshot,
        manifest: Manifest,
        encoder: EncoderConfig | None,
        serve_format: ServeFormat = "plain",
        address: str | None = None,
    ) -> None:
        self.store = store
        self.description = description
        self.snapshot = snapshot
        self._rows = Rows(store, manifest.commits, description.d)
        self._deleted = current_tombstones(store, snapshot)
        self._encoder_config = encoder
        self._serve_format = serve_format
        self._address = address
        self._indexes: dict[Modality, OpenIndex] = {}
        self._index_lock = Lock()
        self._allowed = AllowedRows(self._rows, self._deleted)

    @staticmethod
    def open(
        root: str | Path,
        *,
        encoder: EncoderConfig | None = None,
        serve_format: ServeFormat = "plain",
        address: str | None = None,
        snapshot: Snapshot | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> "Memory":
        """Open the memory at a local path or fsspec URL. Reads a handful of files, whatever the number of shards.

        Args:
            root: the memory's folder.
            encoder: the memory's model at its current path; needed for a memory built elsewhere, or if the model has
                moved. Loaded at the first text or image query, and refused if its fingerprint differs.
            serve_format: ``fastscan`` holds codes of 4-bit PQ and RaBitQ in RAM in the layout that SIMD scans;
                other indexes are refused when they are first searched.
            address: a Ray cluster, as for ray.init (``auto``, HOST:PORT), or ``local`` for one on this machine: the
                parts of an index are spread over its actors and searched together, with the same hits.
                Candidates are re-ranked here. The actors end with this process, or when the memory is freed.
            snapshot: a snapshot of this memory, so that workers read the same state as their driver; without it, the
                current one.
            storage_options: of the filesystem, for fsspec, here and in the workers of ``append`` and ``compact``.

        Raises:
            UsageError: no memory exists at ``root``, or ``serve_format`` is unknown.
            CorruptMemoryError: a file is missing or damaged.
        """
        return Memory._read(
            Store(root, **(storage_options or {})), encoder, check_serve_format(serve_format), address, snapshot
        )

    @staticmethod
    def from_vectors(
        root: str | Path,
        *,
        images: npt.ArrayLike | None = None,
        texts: npt.ArrayLike | None = None,
        metadata: pa.Table | Mapping[str, Sequence[Any]] | None = None,
        encoder: EncoderConfig | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> "Memory":
        """Write embeddings as a memory at ``root``, index them, and open it.

        Args:
            root: the memory's folder, a local path or an fsspec URL.
            images, texts: f[n, d] embeddings, row i for pair i; at least one of them.
            metadata: columns of n values: key, caption and url have a meaning, others become metadata columns.
            encoder: the model of the embeddings; without it, only vectors can be searched with.
            storage_options: of the filesystem, for fsspec.

        Raises:
            UsageError: arrays or columns do not have the same number of rows, or no array is given.
            EncoderError: the model makes vectors of another width.
        """
        from memory_builder.embedding.from_vectors import write_vectors
        from memory_builder.indexing.driver import index

        store = Store(root, **(storage_options or {}))
        write_vectors(store, images=images, texts=texts, metadata=metadata, encoder=encoder)
        index(store)
        return Memory.open(root, encoder=encoder, storage_options=storage_options)

    @staticmethod
    def _read(
        store: Store,
        encoder: EncoderConfig | None,
        serve_format: ServeFormat,
        address: str | None,
        snapshot: Snapshot | None = None,
    ) -> "Memory":
        description = read_description(store)
        snapshot = snapshot or read_snapshot(store)
        manifest = Manifest.read_folded(store)
        if manifest.version < snapshot.manifest_version:  # lost or overwritten: the commit records say the same
            manifest = Manifest.read(store)
        return Memory(store, description, snapshot, manifest, encoder, serve_format, address)

    def __len__(self) -> int:
        """Number of rows that are not deleted, indexed or not."""
        return sum(commit.n_written for commit in self._rows.commits.values()) - len(self._deleted)

    def __repr__(self) -> str:
        return f"Memory({self.store.root!r}, {len(self):,} rows, indexes: {', '.join(self.snapshot.indexes) or 'none'})"

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        vectors: npt.ArrayLike | None = None,
        k: int = 10,
        query_modality: Modality | None = None,
        modality: Modality | None = None,
        where: str | None = None,
        nprobe: int | None = None,
        refine: int | None = None,
        side: Modality | None = None,
        keys: Modality | None = None,
    ) -> Hits:
        """The k rows whose image or text vectors are nearest to each query; deleted rows are left out.

        Args:
            text: one text or several. Exactly one of text, image and vectors is given.
            image: one picture or several.
            vectors: f32[q, d] or f32[d], in the encoder's space; scaled to unit length here.
            k: rows to retrieve for each query; -1 pads short results.
            query_modality: modality of ``vectors``, whose tuned search parameters are used; without it, the
                greater ones of both modalities.
            modality: modality of the rows' vectors to search (default: image).
            where: filter over metadata columns, such as ``width >= 256 AND caption LIKE '%cat%'``.
            nprobe: inverted lists to scan (default: tuned for the query modality).
            refine: candidates to re-rank for each of the k rows (default: tuned); 0 keeps the scores of the codes.
            side, keys: former names of ``query_modality`` and ``modality``, for one more version.

        Raises:
            UsageError: none or several kinds of query, k < 1, invalid vectors or filter.
            IndexBuildError: this modality is not indexed.
            EncoderError: the model cannot be loaded or is not the one the memory was built with.
        """
        k = _at_least("k", k, 1)
        modality = one_modality(modality, keys)
        known, queries = query_vectors(text, image, vectors, encoder=lambda: self.encoder, d=self.description.d)
        index = self.index(modality)
        allowed = self._allowed.of(index, where)
        params = self._search_params(index, modality, known or query_modality or side, allowed, nprobe, refine)
        scores, ids = index.search(queries, k, params, self._rows, modality, allowed)
        return Hits(scores=scores, ids=ids, memory=self)

    def _search_params(
        self,
        index: OpenIndex,
        modality: Modality,
        query_modality: str | None,
        allowed: RowBitmap | None,
        nprobe: int | None,
        refine: int | None,
    ) -> SearchParams:
        """Tuned search parameters, with more lists if a filter leaves few rows, overridden by the caller's."""
        params = tuned_params(self._tuned[modality], query_modality, index)
        if allowed is not None:
            n_rows = len(allowed) * self._allowed.share(index, modality)
            params = replace(params, nprobe=lists_for(n_rows, params.nprobe, index.n_tuned, index.n_lists))
        if nprobe is not None:
            params = replace(params, nprobe=_at_least("nprobe", nprobe, 1))
        if refine is not None:
            params = replace(params, refine=_at_least("refine", refine, 0))
        return params

    def stated_recall(self, modality: Modality = "image", query_modality: str | None = None) -> dict[str, float] | None:
        """Recall measured at the tuned search parameters of ``modality``; see ``tuned.stated_recall``."""
        return stated_recall(self.tuning(modality)["sides"], query_modality)

    def info(self) -> dict[str, Any]:
        """Number of rows, description, snapshot, and the tuned search parameters and recall of each index."""
        return {
            "rows": len(self),
            "indexes": {modality: self.tuning(modality)["sides"] for modality in self.snapshot.modalities},
            "description": asdict(self.description),
            "snapshot": asdict(self.snapshot),
        }

    def picture(self, row_id: int, *, policy: LinkPolicy | None = None) -> bytes:
        """The encoded picture of a row, read from its source.

        Args:
            row_id: id of a row that is not deleted.
            policy: links that may be read; without it, the sources that this user embedded on this machine.

        Raises:
            UsageError: no row has this id, or its picture is gone or may not be read.
        """
        ordinal, number = split_id(row_id)
        commit = self.commits.get(ordinal)
        if commit is None or number >= commit.n_written or self.is_deleted([row_id])[0]:
            raise UsageError(f"row {row_id}: no row has this id")
        (row,) = self.metadata([row_id], ["member", "url", "sha256", "has_image"]).to_pylist()
        policy = policy or link_policy([commit])
        ((_, picture),) = read_pictures(commit.uri, [PictureRef.of(row)], policy, self.image_key)
        if isinstance(picture, Missing):
            raise UsageError(f"row {row_id}: its picture is {picture.reason}")
        return picture

    def rows(self, ids: npt.ArrayLike, columns: str | Sequence[str] = LOOKUP_FIELDS) -> pa.Table:
        """i64[...] ids → a table with one row for each: id and these columns; nulls for id -1.

        Any metadata column may be named, and ``path``, the row's source. Columns beyond the default ones read a parquet
        file of each shard involved.
        """
        return self._rows.table(np.asarray(ids, np.int64), several(columns))

    def metadata(self, ids: npt.ArrayLike, columns: str | Sequence[str] | None = None) -> pa.Table:
        """i64[n] ids → a table of all metadata columns, or of these. Slower than ``rows``: reads the shards' parquet
        files."""
        return self._rows.metadata(np.asarray(ids, np.int64), None if columns is None else several(columns))

    def vectors(self, ids: npt.ArrayLike, modality: Modality | None = None, *, keys: Modality | None = None) -> Scores:
        """i64[n] ids → f32[n, d] stored vectors of a modality; ``keys`` is its former name."""
        return self._rows.vectors(np.asarray(ids, np.int64).ravel(), one_modality(modality, keys))

    @property
    def commits(self) -> dict[int, Commit]:
        """Shard ordinal → commit record."""
        return self._rows.commits

    @property
    def image_key(self) -> str | None:
        """Column of the pictures in source tables, if ``--image-key`` named one."""
        return self.description.config.get("image_key")

    def row_ids(self, ordinal: int) -> Ids:
        """i64[n] ids of the rows of a shard that are not deleted."""
        ids = row_ids(ordinal, np.arange(self.commits[ordinal].n_written))
        return np.setdiff1d(ids, self._deleted, assume_unique=True)

    def is_deleted(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """i64[n] ids → bool[n], True for deleted rows."""
        return np.isin(np.asarray(ids, np.int64), self._deleted)

    def source(self, row_id: int) -> str:
        """URI of the shard of a row."""
        return self._rows.source(row_id)

    def append(
        self,
        *,
        modality: Modality | Sequence[Modality] = (),
        runner: Runner | None = None,
        keys: Modality | Sequence[Modality] = (),
    ) -> "Memory":
        """Index the shards committed since, in the indexes of these modalities, or in all indexes.

        ``keys`` is the former name of ``modality``, for one more version. Returns the memory in its new state.
        """
        from memory_builder.maintenance.append import append

        append(self.store, modalities=several(modality or keys), runner=runner or LocalRunner())
        return self.latest()

    def delete(
        self,
        *,
        ids: npt.ArrayLike | None = None,
        pair_keys: str | Sequence[str] | None = None,
        where: str | None = None,
        keys: str | Sequence[str] | None = None,
    ) -> "Memory":
        """Delete rows by id, by the keys of their pairs or by a filter; see ``maintenance.delete``.

        ``keys`` is the former name of ``pair_keys``, for one more version. A bare string is one key.

        Returns the memory without them; this one stays as it was opened.
        """
        from memory_builder.maintenance.delete import delete

        if pair_keys is not None and keys is not None:
            raise UsageError("pair_keys and keys: keys is the former name of pair_keys, give one")
        delete(self.store, ids=ids, keys=keys if pair_keys is None else pair_keys, where=where)
        return self.latest()

    def compact(self, *, purge: bool = False, runner: Runner | None = None) -> "Memory":
        """Remove deleted rows from the indexes; see ``maintenance.compact``. Returns the memory in its new state."""
        from memory_builder.maintenance.compact import compact

        compact(self.store, purge=purge, runner=runner or LocalRunner())
        return self.latest()

    @cached_property
    def encoder(self) -> Encoder:
        """The memory's model."""
        config = self._encoder_config or encoder_of(self.description, self.store.root)
        if not config.model:
            raise EncoderError(
                f"{self.store.root} was imported without a model: search with vectors, or import again with --model"
            )
        with MODEL_LOCK:
            encoder = load_encoder(config)
        if encoder.fingerprint != self.description.fingerprint:
            raise EncoderError(
                f"{encoder.config.model} has fingerprint {encoder.fingerprint[:12]}, {self.store.root} was built with "
                f"{self.description.model}, {self.description.fingerprint[:12]}: query it with the same weights"
            )
        return encoder

    def index(self, modality: Modality) -> OpenIndex:
        """The index of a modality, opened at the first call."""
        with self._index_lock:
            if modality not in self._indexes:
                self._indexes[modality] = self._open_index(modality)
            return self._indexes[modality]

    def tuning(self, modality: Modality) -> dict[str, Any]:
        """Search parameters, recall and curves of an index, from ``tuning.json``."""
        return read_tuning(self.store, self.snapshot.view(modality, self.store.root))

    def latest(self) -> "Memory":
        """The memory in its current state, with the model loaded here."""
        memory = Memory._read(self.store, self._encoder_config, self._serve_format, self._address)
        if "encoder" in self.__dict__:
            memory.__dict__["encoder"] = self.encoder
        return memory

    def _open_index(self, modality: Modality) -> OpenIndex:
        if modality not in self.snapshot.indexes and not any(
            commit.n_present(modality) for commit in self.commits.values()
        ):
            raise IndexBuildError(
                f"{self.store.root} has no {modality} vectors, so they cannot be searched: use the other modality"
            )
        view = self.snapshot.view(modality, self.store.root)
        if self._address is None:
            return OpenIndex(self.store, view.index, view.parts, serve_format=self._serve_format)
        from cluster.search import SearchPool

        pool = SearchPool(self._address, self.store, view.index, view.parts, serve_format=self._serve_format)
        return OpenIndex(self.store, view.index, view.parts, remote_scan=pool.scan)

    @cached_property
    def _tuned(self) -> dict[Modality, dict[str, Any]]:
        return {modality: self.tuning(modality)["sides"] for modality in self.snapshot.modalities}


def _at_least(name: str, value: int, least: int) -> int:
    if not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"{name} {value}: expected a whole number, at least {least}")
    return int(value)
