"""A memory opened for questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from memory_builder.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.errors import CorruptMemoryError, EncoderError, IndexBuildError, UsageError
from memory_builder.images import BadImageError, decode_image, to_rgb
from memory_builder.manifest import Commit, Description, IndexView, Manifest, Snapshot, read_description, read_snapshot
from memory_builder.rows import NO_ROW, Ids, Keys, Rows
from memory_builder.search import Effort, OpenIndex, Scores
from memory_builder.storage import Store

BATCH = 256
"""Queries through the model at a time."""
Picture = str | Path | bytes | Image.Image
"""A file, encoded bytes, or a decoded image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """Rows found, best first."""

    scores: Scores
    """f32[q, k] inner products of unit vectors; -inf where there is no hit."""
    ids: Ids
    """i64[q, k] row ids; -1 where there is no hit."""


class Memory:
    """The state of a memory at the moment it was opened; later writers do not change what this one sees.

    Use ``Memory.open``.
    """

    def __init__(
        self, store: Store, description: Description, snapshot: Snapshot, manifest: Manifest, encoder: EncoderConfig
    ) -> None:
        self.store = store
        self.description = description
        self.snapshot = snapshot
        self._rows = Rows(store, manifest.commits, description.d)
        self._encoder_config = encoder
        self._index = lru_cache(maxsize=2)(self._open_index)

    @staticmethod
    def open(root: str | Path, *, encoder: EncoderConfig | None = None, **storage_options: Any) -> "Memory":
        """Open the memory at a local path or fsspec URL. Reads a handful of files, however many shards there are.

        Args:
            root: the memory's folder.
            encoder: where to find the model the memory was built with, if not where it was then. Loaded when the
                first text or image is asked for, and refused if its fingerprint is another.
            storage_options: passed to fsspec.

        Raises:
            UsageError: there is no memory here.
            CorruptMemoryError: a file is missing or damaged.
        """
        store = Store(root, **storage_options)
        description = read_description(store)
        snapshot = read_snapshot(store)
        manifest = Manifest.read_folded(store)
        if manifest.version < snapshot.manifest_version:  # lost or overwritten: the commit records say the same
            manifest = Manifest.read(store)
        built_with = EncoderConfig(model=description.model, pretrained=description.pretrained)
        return Memory(store, description, snapshot, manifest, encoder or built_with)

    def __len__(self) -> int:
        """Rows, indexed or not."""
        return sum(commit.n_written for commit in self._rows.commits.values())

    def __repr__(self) -> str:
        return f"Memory({self.store.root!r}, {len(self):,} rows, indexes: {', '.join(self.snapshot.indexes) or 'none'})"

    def search(
        self,
        *,
        text: str | Sequence[str] | None = None,
        image: Picture | Sequence[Picture] | None = None,
        vectors: npt.ArrayLike | None = None,
        k: int = 10,
        keys: Keys = "image",
        nprobe: int | None = None,
        refine: int | None = None,
    ) -> Hits:
        """The k rows whose ``keys`` vectors are nearest to each query.

        Args:
            text: one text or several. Exactly one of text, image and vectors is given.
            image: one picture or several.
            vectors: f32[q, d] or f32[d], in the encoder's space; scaled to unit length here.
            k: rows a query; more than there are pads with -1.
            keys: search the rows' image or text vectors.
            nprobe: inverted lists to scan, instead of the number tuned for this kind of query.
            refine: candidates to rescore exactly for each row asked for, likewise; 0 keeps the scores of the codes.

        Raises:
            UsageError: none or several kinds of query, k < 1, vectors of another width or not finite.
            IndexBuildError: there is no index of this key modality.
            EncoderError: the model cannot be loaded or is not the one the memory was built with.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise UsageError(f"k {k}: expected a whole number, at least 1")
        side, queries = self._queries(text, image, vectors)
        index = self.index(keys)
        effort = self._effort(keys, side, index)
        if nprobe is not None:
            effort = replace(effort, nprobe=_at_least("nprobe", nprobe, 1))
        if refine is not None:
            effort = replace(effort, refine=_at_least("refine", refine, 0))
        scores, ids = index.search(queries, k, effort, self._rows, keys)
        return Hits(scores=scores, ids=ids)

    def rows(self, ids: npt.ArrayLike) -> pa.Table:
        """i64[...] → one row for each id in order: id, key, caption, url. Nulls for id -1."""
        return self._rows.table(np.asarray(ids, np.int64))

    def metadata(self, ids: npt.ArrayLike, columns: Sequence[str] | None = None) -> pa.Table:
        """i64[n] ids → all metadata columns, or these. Slower than ``rows``: reads the shards' parquet files."""
        return self._rows.metadata(np.asarray(ids, np.int64), columns)

    def vectors(self, ids: npt.ArrayLike, keys: Keys = "image") -> Scores:
        """i64[n] ids → f32[n, d] the stored vectors."""
        return self._rows.vectors(np.asarray(ids, np.int64).ravel(), keys)

    @property
    def commits(self) -> dict[int, Commit]:
        """Shard ordinal → commit record."""
        return self._rows.commits

    def source(self, row_id: int) -> str:
        """The shard a row came from."""
        return self._rows.source(row_id)

    @cached_property
    def encoder(self) -> Encoder:
        """The model the memory was built with."""
        encoder = load_encoder(self._encoder_config)
        if encoder.fingerprint != self.description.fingerprint:
            raise EncoderError(
                f"{encoder.config.model} has fingerprint {encoder.fingerprint[:12]}, {self.store.root} was built with "
                f"{self.description.model}, {self.description.fingerprint[:12]}: query it with the same weights"
            )
        return encoder

    def index(self, keys: Keys) -> OpenIndex:
        """The opened index of a key modality."""
        index: OpenIndex = self._index(keys)
        return index

    def tuning(self, keys: Keys) -> dict[str, Any]:
        """What was measured of an index: settings, recall, curves (``tuning.json``)."""
        view = self._view(keys)
        path = f"{view.index}/{view.tuning}"
        tuning = self.store.read_json(path)
        if tuning is None:
            raise CorruptMemoryError(f"{self.store.root}/{path} is missing: build the index again")
        return tuning

    def _view(self, keys: Keys) -> IndexView:
        if keys not in self.snapshot.indexes:
            there = ", ".join(self.snapshot.indexes) or "none yet"
            raise IndexBuildError(
                f"{self.store.root} has no index of {keys} vectors ({there}): "
                f"run memory-builder index {self.store.root} --keys {keys}"
            )
        return self.snapshot.indexes[keys]

    def _open_index(self, keys: Keys) -> OpenIndex:
        view = self._view(keys)
        return OpenIndex(self.store, view.index, [name for segment in view.segments for name in segment])

    @cached_property
    def _tuned(self) -> dict[Keys, dict[str, Any]]:
        return {keys: self.tuning(keys)["sides"] for keys in ("image", "text") if keys in self.snapshot.indexes}

    def _effort(self, keys: Keys, side: str | None, index: OpenIndex) -> Effort:
        """As tuned for the query's modality; for bare vectors, the greater effort of both."""
        sides = self._tuned[keys]
        tuned = [sides[side]] if side in sides else list(sides.values())
        if not tuned:  # too few rows to tune on
            return Effort(nprobe=index.n_lists, refine=0 if index.has_exact_codes else 16)
        return Effort(nprobe=max(t["nprobe"] for t in tuned), refine=max(t["refine"] for t in tuned))

    def _queries(self, text: Any, image: Any, vectors: Any) -> tuple[str | None, Scores]:
        """(query modality or None, f32[q, d] unit rows)."""
        if sum(query is not None for query in (text, image, vectors)) != 1:
            raise UsageError("give exactly one of text, image and vectors")
        if vectors is not None:
            return None, _unit_rows(vectors, self.description.d)
        side = "text" if text is not None else "image"
        asked = text if text is not None else image
        several = isinstance(asked, Sequence) and not isinstance(asked, str | bytes)
        queries = list(asked) if several else [asked]
        if not queries:
            raise UsageError(f"no {side} to search with: the list is empty")
        if side == "text":
            if not all(isinstance(query, str) for query in queries):
                raise UsageError(f"text queries are strings, not {queries!r:.100}")
            encode: Callable[[Any], Any] = self.encoder.encode_texts
        else:
            encode = self._encode_pictures
        batches = [encode(queries[i : i + BATCH]) for i in range(0, len(queries), BATCH)]
        return side, np.concatenate(batches).astype(np.float32)

    def _encode_pictures(self, pictures: Sequence[Picture]) -> Any:
        pixels = [self.encoder.preprocess(_picture(picture)) for picture in pictures]
        return self.encoder.encode_images(np.stack(pixels))


def _picture(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return to_rgb(picture)
    try:
        return decode_image(picture if isinstance(picture, bytes) else Path(picture).read_bytes())
    except BadImageError as error:
        raise UsageError(f"cannot use the query image: {error}") from None
    except (OSError, TypeError) as error:
        raise UsageError(f"cannot read the query image: {error}") from None


def _unit_rows(vectors: npt.ArrayLike, d: int) -> Scores:
    try:
        queries = np.atleast_2d(np.asarray(vectors, np.float32))
    except (TypeError, ValueError) as error:
        raise UsageError(f"query vectors are not numbers: {error}") from None
    if queries.ndim != 2 or queries.shape[1] != d:
        raise UsageError(f"query vectors have shape {list(queries.shape)}, this memory takes [q, {d}]")
    norms = np.linalg.norm(queries, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise UsageError("query vectors hold NaN, infinity or only zeros")
    units: Scores = queries / norms
    return units


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise UsageError(f"{name} {value}: at least {least}")
    return value


__all__ = ["NO_ROW", "Hits", "Memory", "Picture"]
