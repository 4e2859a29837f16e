"""``Session``: a served memory in its latest snapshot, with limits of requests."""

import base64
import binascii
import contextlib
import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa
from PIL import Image

from cluster.wire import Question, Settings
from memory_builder.ann.fastscan import ServeFormat
from memory_builder.base.log import logger
from memory_builder.base.types import Ids, Modality, Scores
from memory_builder.catalog.snapshots import snapshot_numbers
from memory_builder.catalog.trusted_sources import link_policy
from memory_builder.errors import EncoderError, MemoryBuilderError, UsageError
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.model.images import DAMAGE, FORMATS, BadImageError, decode_image
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.search.hits import Hits
from memory_builder.search.queries import DECODE_LOCK

DRAFT = 512
"""Pixels to which a JPEG is decoded, to check that it is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """Memory to serve, and limits of requests."""

    memory: str
    """Folder of the memory: a local path or an fsspec URL."""
    encoder: EncoderConfig | None = None
    """The memory's model at its current path, if it has moved."""
    serve_format: ServeFormat = "plain"
    """Layout of the codes in RAM; see ``Memory.open``."""
    address: str | None = None
    """Ray cluster whose actors hold the index parts; None for this process."""
    max_k: int = 10_000
    """Largest k of a query."""
    max_rows: int = 2_000_000
    """Largest number of rows of a request: of all its queries together, or by id."""
    max_told: int = 100_000
    """Largest number of rows of a JSON response."""
    max_candidates: int = 200_000
    """Largest number of re-ranked candidates of a query whose request sets refine."""
    max_body_bytes: int = 256 << 20
    """Largest request to /bulk in bytes."""
    max_json_bytes: int = 32 << 20
    """Largest JSON request in bytes."""
    max_spool_bytes: int = 4 << 30
    """Largest total of request bodies and responses on disk, in bytes."""
    max_pixels: int = 32_000_000
    """Largest picture to decode or show: decoding takes some 15 bytes for each pixel."""
    links: LinkPolicy = field(default_factory=LinkPolicy)
    """Links that pictures may be read from; sources that this user embeds later are added."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    server_names: tuple[str, ...] = ()
    """Host names of this service, besides this machine's."""
    refresh_s: float = 10.0
    """Seconds between checks for a newer snapshot."""

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self) if one.name.startswith("max_")):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected at least 1")
        if not self.refresh_s >= 0:
            raise UsageError(f"refresh_s {self.refresh_s}: expected at least 0")


class Session:
    """A served memory in its latest snapshot. Safe to use from several threads.

    Raises:
        MemoryBuilderError: as ``Memory.open``; methods raise as those of ``Memory``.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self._memory = Memory.open(
            config.memory, encoder=config.encoder, serve_format=config.serve_format, address=config.address
        )
        self._load_model()
        self._refreshed_s = time.monotonic()
        self._refresh_lock = threading.Lock()
        self._links = self._link_policy()
        self._searched: set[Modality] = set()
        """Modalities searched so far."""

    def _load_model(self) -> None:
        """Load the model with its tokenizer before the first request; without a model, vectors can still be
        searched."""
        try:
            self._memory.encoder.encode_texts(["a"])
        except EncoderError as error:
            logger.info(f"only vectors can be searched with: {error}")

    def memory(self) -> Memory:
        """Return the memory; one request in ``refresh_s`` checks for a newer snapshot, the others do not wait."""
        if time.monotonic() - self._refreshed_s >= self.config.refresh_s and self._refresh_lock.acquire(blocking=False):
            try:
                self._refresh()
            except MemoryBuilderError as error:  # the open one stays in use
                logger.info(f"{self.config.memory}: its latest snapshot cannot be read: {error}")
            finally:
                self._refreshed_s = time.monotonic()
                self._refresh_lock.release()
        return self._memory

    def _refresh(self) -> None:
        numbers = snapshot_numbers(self._memory.store)
        if not numbers or numbers[-1] == self._memory.snapshot.number:
            return
        latest = self._memory.latest()
        # Concurrent requests use the previous snapshot. Actors have no room for two: theirs opens once the previous one
        # is gone.
        for modality in self._searched & set(latest.snapshot.modalities) if self.config.address is None else ():
            latest.index(modality)
        self._memory = latest
        self._links = self._link_policy()

    def _link_policy(self) -> LinkPolicy:
        return self.config.links.and_sources(link_policy(self._memory.commits.values()).sources)

    def answer(self, question: Question) -> dict[str, Any]:
        """Hits of each query, the recall stated for such queries, and the number of the searched snapshot."""
        memory, settings = self.memory(), question.model_dump(include=set(Settings.model_fields))
        image = None if question.image is None else [self._query_picture(one) for one in _listed(question.image)]
        n_queries = len(_listed(question.text) or image or question.vectors or ())
        self._check(n_queries, question, self.config.max_told)
        hits = memory.search(text=question.text, image=image, vectors=question.vectors, **settings)
        modality = "text" if question.text is not None else "image" if image is not None else question.query_modality
        tuned = question.nprobe is None and question.refine is None
        return {
            "queries": [{"query": i, "hits": rows} for i, rows in enumerate(hits.to_list())],
            "stated": memory.stated_recall(question.modality, modality) if tuned else None,
            "snapshot": memory.snapshot.number,
        }

    def search(self, vectors: Scores, settings: Settings) -> Hits:
        """f32[q, d] → hits."""
        self._check(len(vectors) if vectors.ndim > 1 else 1, settings, self.config.max_rows)
        return self.memory().search(vectors=vectors, **settings.model_dump())

    def vectors(self, ids: Ids, modality: Modality) -> Scores:
        """i64[n] ids → f32[n, d]."""
        memory = self.memory()
        self._check_rows(ids.size, min(self.config.max_rows, self.config.max_body_bytes // (4 * memory.description.d)))
        return memory.vectors(ids, modality)

    def rows(self, ids: Ids, columns: Sequence[str]) -> pa.Table:
        """i64[n] ids → a table as of ``Memory.rows``."""
        self._check_rows(ids.size, self.config.max_rows)
        return self.memory().rows(ids, columns)

    def info(self) -> dict[str, Any]:
        """Number of rows, description, snapshot, and the search parameters and recall of each index."""
        return self.memory().info()

    def picture(self, row_id: int) -> bytes:
        """The encoded picture of a row, read from its source.

        Raises:
            UsageError: the row has no picture, or it cannot be decoded.
        """
        return self._checked_picture(row_id, self.memory().picture(row_id, policy=self._links))

    def _checked_picture(self, row_id: int, picture: bytes) -> bytes:
        """Return the bytes if they decode as a picture, so that links leak no other files."""
        try:
            with DECODE_LOCK:
                decode_image(picture, max_pixels=self.config.max_pixels, draft_size=DRAFT)
        except BadImageError as error:
            raise UsageError(f"row {row_id}: its picture is not shown ({error})") from None
        return picture

    def _query_picture(self, encoded: str) -> bytes:
        data = _decoded(encoded)
        pixels = 0
        with (
            contextlib.suppress(*DAMAGE, Image.DecompressionBombError),  # reported at decoding
            Image.open(io.BytesIO(data), formats=FORMATS) as image,
        ):
            pixels = image.width * image.height
        if pixels > self.config.max_pixels:
            raise UsageError(
                f"the query image has {pixels:,} pixels, this service takes {self.config.max_pixels:,}: "
                "scale it down; the model sees far fewer"
            )
        return data

    def _check(self, n_queries: int, settings: Settings, most: int) -> None:
        """Refuse a request beyond the limits."""
        k, refine, candidates = settings.k, settings.refine or 0, self.config.max_candidates
        if k > self.config.max_k:
            raise UsageError(f"k {k}: the largest k is {self.config.max_k:,}")
        if k * refine > candidates:
            raise UsageError(f"refine {refine} at k {k}: at most {candidates:,} re-ranked candidates a query")
        self._check_rows(n_queries * k, most)
        self._searched.add(settings.modality)

    def _check_rows(self, n_rows: int, most: int) -> None:
        if n_rows > most:
            raise UsageError(f"{n_rows:,} rows: at most {most:,} in one request: split it")


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else given or []


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("the query image is not base64: send the file's bytes, encoded") from None
