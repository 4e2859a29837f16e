"""What a service answers: the memory in its latest state, and what may be asked of it at a time."""

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
from memory_builder.catalog.trusted import link_policy
from memory_builder.errors import EncoderError, MemoryBuilderError, UsageError
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.model.images import DAMAGE, FORMATS, BadImageError, decode_image
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.search.hits import Hits
from memory_builder.search.queries import ONE_DECODES

DRAFT = 512
"""Pixels a side that a JPEG is decoded to, to see whether it is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceConfig:
    """What is served, and how much may be asked of it at a time."""

    memory: str
    """Local path or fsspec URL."""
    encoder: EncoderConfig | None = None
    """Where the memory's model is now, if not where it was."""
    serve_format: ServeFormat = "plain"
    """See ``Memory.open``."""
    address: str | None = None
    """Ray cluster whose actors hold the index's parts; None: this process holds them."""
    max_k: int = 10_000
    """Rows a query."""
    max_rows: int = 2_000_000
    """Rows a request: of all its queries together, or by id."""
    max_told: int = 100_000
    """Rows a request that is answered in JSON."""
    max_candidates: int = 200_000
    """Rows a query that are rescored exactly, where the request says how many."""
    max_body_bytes: int = 256 << 20
    """Of a request to /bulk."""
    max_json_bytes: int = 32 << 20
    """Of a request in JSON."""
    max_spool_bytes: int = 4 << 30
    """Of bodies and answers on disk while clients send and take them, of all together."""
    max_pixels: int = 32_000_000
    """Of a picture that is asked with or shown: decoding takes some 15 bytes for each."""
    links: LinkPolicy = field(default_factory=LinkPolicy)
    """What may be read for pictures; what this user embeds meanwhile is added."""
    host: str = "127.0.0.1"
    """Address that is listened at."""
    server_names: tuple[str, ...] = ()
    """Names by which clients may call this service, beside those of this machine."""
    refresh_s: float = 10.0
    """Seconds after which a request looks whether the memory has a newer state."""

    def __post_init__(self) -> None:
        for name in (one.name for one in fields(self) if one.name.startswith("max_")):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: expected at least 1")
        if not self.refresh_s >= 0:
            raise UsageError(f"refresh_s {self.refresh_s}: expected at least 0")


class Served:
    """A memory in its latest state. Safe to ask from several threads.

    Raises:
        MemoryBuilderError: as ``Memory.open``, and what it answers as ``Memory``.
    """

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self._memory = Memory.open(
            config.memory, encoder=config.encoder, serve_format=config.serve_format, address=config.address
        )
        self._load_model()
        self._looked_s = time.monotonic()
        self._one_looks = threading.Lock()
        self._links = self._link_policy()
        self._asked: set[Modality] = set()
        """Kinds of keys that were searched."""

    def _load_model(self) -> None:
        """Load it before anyone asks, with its tokenizer; what needs none is answered without."""
        try:
            self._memory.encoder.encode_texts(["a"])
        except EncoderError as error:
            logger.info(f"vectors alone can be asked with: {error}")

    def memory(self) -> Memory:
        """The memory; one request in ``refresh_s`` looks for a newer state, the others take what is there."""
        if time.monotonic() - self._looked_s >= self.config.refresh_s and self._one_looks.acquire(blocking=False):
            try:
                self._look()
            except MemoryBuilderError as error:  # what is open answers on
                logger.info(f"{self.config.memory}: its latest state cannot be read: {error}")
            finally:
                self._looked_s = time.monotonic()
                self._one_looks.release()
        return self._memory

    def _look(self) -> None:
        numbers = snapshot_numbers(self._memory.store)
        if not numbers or numbers[-1] == self._memory.snapshot.number:
            return
        latest = self._memory.latest()
        # Whoever asks meanwhile is answered from the state before. Actors have no room for two states: theirs opens
        # when the one before has gone.
        for keys in self._asked & set(latest.snapshot.modalities) if self.config.address is None else ():
            latest.index(keys)
        self._memory = latest
        self._links = self._link_policy()

    def _link_policy(self) -> LinkPolicy:
        return self.config.links.and_sources(link_policy(self._memory.commits.values()).sources)

    def answer(self, question: Question) -> dict[str, Any]:
        """Hits of each query, the recall that is stated of such queries, and the state that was asked."""
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
        """i64[n] ids → one row for each, as ``Memory.rows``."""
        self._check_rows(ids.size, self.config.max_rows)
        return self.memory().rows(ids, columns)

    def info(self) -> dict[str, Any]:
        """What is served, and the recall that is stated of it."""
        return self.memory().info()

    def picture(self, row_id: int) -> bytes:
        """The encoded picture of a row, from the shard it was embedded from.

        Raises:
            UsageError: there is none, or it does not decode as a picture.
        """
        return self._shown(row_id, self.memory().picture(row_id, policy=self._links))

    def _shown(self, row_id: int, picture: bytes) -> bytes:
        """The bytes, if they decode as a picture: nothing else of what a memory names leaves this service."""
        try:
            with ONE_DECODES:
                decode_image(picture, max_pixels=self.config.max_pixels, draft_size=DRAFT)
        except BadImageError as error:
            raise UsageError(f"row {row_id}: its picture is not shown ({error})") from None
        return picture

    def _query_picture(self, encoded: str) -> bytes:
        data = _decoded(encoded)
        pixels = 0
        with (
            contextlib.suppress(*DAMAGE, Image.DecompressionBombError),  # said when it is decoded
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
        """Refuse what one request may not ask."""
        k, refine, candidates = settings.k, settings.refine or 0, self.config.max_candidates
        if k > self.config.max_k:
            raise UsageError(f"k {k}: this service gives at most {self.config.max_k:,} rows a query")
        if k * refine > candidates:
            raise UsageError(f"refine {refine} at k {k}: this service rescores at most {candidates:,} rows a query")
        self._check_rows(n_queries * k, most)
        self._asked.add(settings.modality)

    def _check_rows(self, n_rows: int, most: int) -> None:
        if n_rows > most:
            raise UsageError(f"{n_rows:,} rows: a request like this gets at most {most:,}: ask in several")


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else given or []


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError("the query image is not base64: send the file's bytes, encoded") from None
