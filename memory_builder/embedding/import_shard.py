"""Import one shard of published embeddings into a memory.

Every row is kept, blank if its vector is unusable, so that the row numbers of an index published with them stay valid.
Only the deleted rows of an imported memory are left out.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.types import MODALITIES, Modality, Vectors
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import Description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import FIXED_FIELDS, metadata_table
from memory_builder.catalog.paths import metadata_path, vectors_path
from memory_builder.catalog.plan import REPLACED
from memory_builder.catalog.published_memory import deleted_rows
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import SourceError
from memory_builder.readers.columns import first_spelled, key_text, python_rows, text_of
from memory_builder.readers.pairs import CAPTION, CAPTION_SPELLINGS, UNCHANGED_NOTE, URL_SPELLINGS, rename_url
from memory_builder.readers.published import FOLDERS, Published, metadata_columns, read_published
from memory_builder.readers.shard import Shard
from memory_builder.readers.shard_uri import split_uri
from memory_builder.storage.formats import npy_bytes, parquet_bytes
from memory_builder.storage.store import Store, sha256

UNIT_TOLERANCE = 1e-2
"""Tolerated deviation from length 1: published float16 rows deviate by some 1e-3."""
KEY_COLUMNS = ("image_path", "key", "__key__")
BLOCK_ROWS = 1 << 16
NO_CAPTION = "rows have no caption"
NO_URL = "rows have no url"
DELETED = "rows are deleted in the memory they come from and were left out"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportTask:
    """A worker that copies published embeddings into ``memory``."""

    memory: Store | str
    config: EmbedConfig
    description: Description
    wants_gpu: bool = False

    def start(self) -> Callable[[Shard], Commit]:
        return partial(
            import_shard,
            store=Store(self.memory),
            d=self.description.d,
            config=self.config,
            config_hash=self.description.config_hash,
        )


def import_shard(shard: Shard, *, store: Store, d: int, config: EmbedConfig, config_hash: str) -> Commit:
    """Copy one shard of published embeddings into a memory and commit it.

    If the files were rewritten with the same content, no row is copied again.

    Raises:
        SourceError: files are missing, hold no vectors or vectors of another width, or differ in their number of rows.
    """
    started = time.perf_counter()
    try:
        published = read_published(shard.uri)
    except FileNotFoundError:
        raise SourceError(f"shard {shard.uri} is missing since it was planned: restore it") from None
    n = _check_rows(published, d)
    notes: Counter[str] = Counter()
    vectors = {modality: np.zeros((n, d), np.float16) for modality in MODALITIES}
    vectors |= {modality: _unit(array, modality, notes) for modality, array in published.vectors.items() if array.size}
    kept = np.setdiff1d(np.arange(n), deleted_rows(shard.uri))
    if len(kept) < n:
        notes[DELETED] += n - len(kept)
        vectors = {modality: array[kept] for modality, array in vectors.items()}
    has = {modality: np.asarray(array.any(axis=1)) for modality, array in vectors.items()}
    table = None if published.metadata is None else published.metadata.take(pa.array(kept))
    rows = list(_rows(table, kept, _prefix(shard.uri), has, config, notes))
    metadata = metadata_table(rows, config.column_types, notes)
    if shard.earlier and _is_unchanged(store, shard, vectors, metadata):
        return _commit_no_rows(shard, store, d, config, config_hash, len(kept), started)
    notes[REPLACED] += len(kept) if shard.earlier else 0
    return commit_shard(
        store,
        shard,
        images=vectors["image"],
        texts=vectors["text"],
        metadata=metadata,
        rejects=[],
        partial=None,
        config_hash=config_hash,
        seconds={"total": time.perf_counter() - started},
        notes=notes,
    )


def describe_missing(uri: str, config: EmbedConfig) -> str | None:
    """Describe whether the rows of a shard will lack captions or URLs, and why; None if they have both.

    Raises:
        SourceError: --caption-key or --url-key names a missing column.
    """
    names = metadata_columns(uri)
    if names is None:
        return f"no metadata beside the vectors ({FOLDERS['metadata'][0]}/*.parquet): rows without captions and URLs"
    for option, name in (("--caption-key", config.caption_key), ("--url-key", config.url_key)):
        if name not in (None, CAPTION) and name not in names:
            raise SourceError(f"metadata has the columns {', '.join(names)}, and no {name!r}: give another {option}")
    missing = [
        f"{name} (expected a column {spellings[0]}, or {option} NAME)"
        for name, spellings, column, option in (
            ("captions", CAPTION_SPELLINGS, caption_column(names, config), "--caption-key"),
            ("URLs", URL_SPELLINGS, url_column(names, config), "--url-key"),
        )
        if column is None
    ]
    return f"metadata has the columns {', '.join(names)}: rows without {' and '.join(missing)}" if missing else None


def caption_column(names: list[str], config: EmbedConfig) -> str | None:
    """Return the name of the metadata column with captions."""
    return first_spelled(CAPTION_SPELLINGS if config.caption_key == CAPTION else (config.caption_key,), names)


def url_column(names: list[str], config: EmbedConfig) -> str | None:
    """Return the name of the metadata column with URLs."""
    return config.url_key or first_spelled(URL_SPELLINGS, names)


def _prefix(uri: str) -> str:
    """Return the prefix of generated keys, ``<prefix>/<row>``, for rows without a key."""
    piece = split_uri(uri)[1]
    return piece.embeddings or (piece.vectors or "").rsplit(".", 1)[0] or str((piece.items or (0,))[0])


def _check_rows(published: Published, d: int) -> int:
    """Check that all files have the same number of rows, and width d; return the number."""
    rows = {published.files[modality]: len(array) for modality, array in published.vectors.items()}
    if published.metadata is not None:
        rows[published.files["metadata"]] = published.metadata.num_rows
    if len(set(rows.values())) != 1:
        counts = ", ".join(f"{file} has {n:,} rows" for file, n in rows.items())
        raise SourceError(f"rows do not pair up: {counts}. Fetch the files again, or select the matching ones")
    for modality, array in published.vectors.items():
        if array.size and array.shape[1] != d:
            raise SourceError(
                f"{published.files[modality]} holds vectors of width {array.shape[1]}, the memory's are {d}"
            )
    return next(iter(rows.values()))


def _unit(array: npt.NDArray[Any], modality: str, notes: Counter[str]) -> Vectors:
    """Normalise [n, d] of any float type → f16[n, d] unit rows; rows that are zero or not finite stay blank."""
    vectors = np.zeros(array.shape, np.float16)
    for start in range(0, len(array), BLOCK_ROWS):
        block = np.array(array[start : start + BLOCK_ROWS], np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are detected below
            lengths = np.linalg.norm(block, axis=1)  # f32[b]
        usable = np.isfinite(lengths) & (lengths > 0)
        off = usable & (np.abs(lengths - 1) > UNIT_TOLERANCE)
        block[off] /= lengths[off, None]
        vectors[start : start + BLOCK_ROWS][usable] = block[usable]
        for note, n in ((f"{modality} vectors normalised", off.sum()), (f"{modality} vectors blank", (~usable).sum())):
            notes[note] += int(n)
    return vectors


def _rows(
    table: pa.Table | None,
    kept: npt.NDArray[np.int64],
    prefix: str,
    has: Mapping[Modality, npt.NDArray[Any]],
    config: EmbedConfig,
    notes: Counter[str],
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (fixed columns, other fields) of every row; unreadable cells count as missing."""
    names = [] if table is None else table.column_names
    is_memory = {name for name, _ in FIXED_FIELDS} | {"extra"} <= {*names}
    key = next((name for name in KEY_COLUMNS if name in names), None)
    caption, url = caption_column(names, config), url_column(names, config)
    given = python_rows(table) if table is not None else [({}, None) for _ in kept]
    for i, (row, fault) in enumerate(given):
        if fault:
            notes[fault] += 1
        if is_memory:
            known, fields = _of_memory(row)
        else:
            own_key = row.pop(key, None) if key else None
            text = _text(row.pop(caption, None), notes) if caption else None
            fields = rename_url(row, url)
            notes[NO_CAPTION] += text is None
            notes[NO_URL] += not isinstance(fields.get("url"), str)
            known = {
                "key": f"{prefix}/{kept[i]:09d}" if own_key is None else key_text(own_key),
                "caption": text,
                "width": _size(fields, "width"),
                "height": _size(fields, "height"),
            }
        yield known | {"has_image": bool(has["image"][i]), "has_text": bool(has["text"][i])}, fields


def _of_memory(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a memory's metadata row into its fixed columns and the fields that it was made of."""
    known = {name: row.pop(name) for name, _ in FIXED_FIELDS}
    row.pop("row_id", None)  # the id in the imported memory
    try:
        fields = json.loads(row.pop("extra") or "{}")
    except ValueError:
        fields = {}
    url = {} if known["url"] is None else {"url": known["url"]}
    return known, fields | url | {name: value for name, value in row.items() if value is not None}


def _text(value: Any, notes: Counter[str]) -> str | None:
    if isinstance(value, list):
        value = next((text for text in value if isinstance(text, str) and text.strip()), None)
    if isinstance(value, str | bytes):
        return text_of(value)
    notes["captions are no text and were left out"] += value is not None
    return None


def _size(fields: dict[str, Any], modality: str) -> int | None:
    """Pop a picture's width or height from the fields; a value that is not a valid size stays."""
    for name in (modality, f"original_{modality}"):
        value = fields.pop(name, None)
        if isinstance(value, int | float) and 0 <= value < 2**31:
            return int(value)
        if value is not None:
            fields[name] = value
            break
    return None


def _is_unchanged(store: Store, shard: Shard, vectors: dict[Any, Vectors], metadata: pa.Table) -> bool:
    """Whether the newest earlier shard of these files that has rows has the same content."""
    commits = Manifest.read(store).commits
    newest = next((commits[o] for o in reversed(shard.earlier) if commits[o].n_written), None)
    if newest is None:
        return False
    files = {vectors_path(newest.ordinal, modality): npy_bytes(array) for modality, array in vectors.items()}
    files[metadata_path(newest.ordinal)] = parquet_bytes(metadata)
    return all(newest.checksums.get(path) == sha256(data) for path, data in files.items())


def _commit_no_rows(
    shard: Shard, store: Store, d: int, config: EmbedConfig, config_hash: str, n_unchanged: int, started: float
) -> Commit:
    return commit_shard(
        store,
        shard,
        images=np.zeros((0, d), np.float16),
        texts=np.zeros((0, d), np.float16),
        metadata=metadata_table([], config.column_types),
        rejects=[],
        partial=None,
        config_hash=config_hash,
        seconds={"total": time.perf_counter() - started},
        notes={UNCHANGED_NOTE: n_unchanged},
    )
