"""Write a memory from arrays of embeddings."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.runner import LocalRunner
from memory_builder.base.types import MODALITIES, Vectors, unit_rows
from memory_builder.catalog.create_memory import create_memory
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import FIXED_FIELDS, metadata_table
from memory_builder.catalog.plan import extend_plan
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.embedding.config import EmbedConfig, describe_embeddings
from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.shard import Source
from memory_builder.readers.shard_uri import Piece, join_uri
from memory_builder.storage.formats import npy_bytes
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store, sha256

SHARD_ROWS = 1_000_000
KINDS = {"string": "string", "large_string": "string", "bool": "bool", "double": "float", "float": "float"}
"""Arrow type → type of a metadata column; every integer is an int."""
GIVEN = ("key", "caption", "url", "width", "height", "sha256", "member")
"""Fixed columns that callers may pass."""


def write_vectors(
    memory: Store | str,
    *,
    images: npt.ArrayLike | None = None,
    texts: npt.ArrayLike | None = None,
    metadata: pa.Table | Mapping[str, Sequence[Any]] | None = None,
    encoder: EncoderConfig | None = None,
    shard_rows: int = SHARD_ROWS,
) -> Store:
    """Write embeddings and their metadata as shards of a new or existing memory; the same call twice adds them once.

    Args:
        memory: its folder, a local path or an fsspec URL.
        images: f[n, d] image embeddings, scaled to unit length here; a row of zeros is a pair without an image.
        texts: f[n, d] text embeddings, scaled too; row i of both belongs to pair i.
        metadata: columns of n values: key, caption and url are fixed columns, others become metadata columns.
        encoder: the model of the embeddings; without it, the memory can be searched with vectors alone.
        shard_rows: rows of each shard.

    Raises:
        UsageError: arrays or columns do not have the same number of rows, or no array is given.
        EncoderError: the model makes vectors of another width.
    """
    vectors = _pair_vectors({"image": images, "text": texts})
    n, d = vectors["image"].shape
    table = pa.table(metadata if metadata is not None else {"key": [f"{row:08d}" for row in range(n)]})
    if table.num_rows != n:
        raise UsageError(f"vectors and metadata differ in rows: {n} vectors, metadata {table.num_rows} rows")
    columns = tuple(f"{name}:{_kind(table, name)}" for name in table.column_names if name not in GIVEN)
    store, config = Store(memory), EmbedConfig(columns=columns)
    description = describe_embeddings(encoder, d, config, LocalRunner(), "these")
    create_memory(store, description)
    digests = [sha256(npy_bytes(vectors[modality])) for modality in MODALITIES]
    name = content_hash({"vectors": digests, "metadata": sha256(repr(table.to_pydict()).encode())})
    starts = range(0, n, shard_rows)
    pieces = {join_uri(f"vectors-{name}", Piece(items=(start, min(n, start + shard_rows)))): start for start in starts}
    plan = extend_plan(store, [Source(uri=uri, bytes=0, etag=name) for uri in pieces])
    committed = Manifest.read(store).commits
    for shard in plan:
        if shard.uri in pieces and shard.ordinal not in committed:
            rows = slice(pieces[shard.uri], pieces[shard.uri] + shard_rows)
            started = time.perf_counter()
            commit_shard(
                store,
                shard,
                images=vectors["image"][rows],
                texts=vectors["text"][rows],
                metadata=_metadata(table.slice(rows.start, shard_rows), vectors, rows, config),
                rejects=[],
                partial=None,
                config_hash=description.config_hash,
                seconds={"total": time.perf_counter() - started},
            )
    Manifest.read(store).fold(store)
    return store


def _pair_vectors(given: Mapping[str, npt.ArrayLike | None]) -> dict[str, Vectors]:
    """Modality → f16[n, d] unit rows, of both; zeros for one that is not given."""
    arrays = {modality: _unit(array, modality) for modality, array in given.items() if array is not None}
    if not arrays:
        raise UsageError("no vectors: give images or texts")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1:
        named = ", ".join(f"{modality} {list(array.shape)}" for modality, array in arrays.items())
        raise UsageError(f"vectors differ in rows or width: {named}")
    return {modality: arrays.get(modality, np.zeros(shapes.copy().pop(), np.float16)) for modality in MODALITIES}


def _unit(array: npt.ArrayLike, modality: str) -> Vectors:
    rows = np.asarray(array)
    if rows.ndim != 2 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise UsageError(
            f"{modality} vectors: expected finite floats of [rows, width], got {rows.dtype}{list(rows.shape)}"
        )
    return unit_rows(rows).astype(np.float16)


def _kind(table: pa.Table, name: str) -> str:
    """Return the type of a metadata column, named as in ``--columns``."""
    kind = table.schema.field(name).type
    known = "int" if pa.types.is_integer(kind) else KINDS.get(str(kind))
    if known is None:
        raise UsageError(f"metadata column {name} is of type {kind}: expected strings, integers, floats or booleans")
    return known


def _metadata(table: pa.Table, vectors: dict[str, Vectors], rows: slice, config: EmbedConfig) -> pa.Table:
    """Build the metadata table of one shard from the caller's columns."""
    has_image: list[bool] = np.asarray(vectors["image"][rows].any(axis=1)).tolist()
    has_text: list[bool] = np.asarray(vectors["text"][rows].any(axis=1)).tolist()
    fixed = {name for name, _ in FIXED_FIELDS}
    described = []
    for number, row in enumerate(table.to_pylist()):
        own = {"key": f"{rows.start + number:08d}"} | {name: value for name, value in row.items() if name in fixed}
        known = own | {"has_image": has_image[number], "has_text": has_text[number]}
        fields = {name: value for name, value in row.items() if name not in fixed or name == "url"}
        described.append((known, fields))
    return metadata_table(described, config.column_types)
