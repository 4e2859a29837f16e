"""Embed one shard: write its embeddings, metadata and rejects, then its commit record.

Pictures are decoded in threads, batches are encoded in another thread, files are written at the end. A batch never
crosses a shard, so the same input and config give the same bytes, and embedding a shard twice is harmless.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from memory_builder.base.prefetch import map_ahead
from memory_builder.base.runner import available_threads
from memory_builder.base.types import Pixels, Vectors
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import Description
from memory_builder.catalog.metadata import metadata_table
from memory_builder.catalog.paths import rejects_path
from memory_builder.catalog.plan import REPLACED, REPLACED_ROWS
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.import_shard import NO_CAPTION
from memory_builder.embedding.known_pairs import SHARED_KEY, KnownPairs
from memory_builder.errors import EncoderError, SourceError, TransportFailedError
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.images import BadImageError, decode_image, picture_size
from memory_builder.readers.discover import current_etag
from memory_builder.readers.pairs import UNCHANGED_NOTE
from memory_builder.readers.read import DUPLICATE_KEY, UNCHANGED, MembersApartError, Pair, Reject, Truncated, read_pairs
from memory_builder.readers.shard import Shard
from memory_builder.readers.shard_uri import split_uri
from memory_builder.storage.formats import read_parquet
from memory_builder.storage.store import Store, sha256

ATTEMPTS = 3
"""Attempts at reading a shard while its storage fails."""
BATCHES_AHEAD = 2
"""Batches that wait for the model; more would only take memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """A worker that loads the model and embeds shards into ``memory``."""

    memory: Store | str
    encoder: EncoderConfig
    config: EmbedConfig
    description: Description
    decode_threads: int | None = None
    allow_hosts: tuple[str, ...] = ()
    """See ``LinkPolicy.hosts``."""
    wants_gpu: bool = True

    def start(self) -> Callable[[Shard], Commit]:
        encoder = load_encoder(self.encoder)
        if encoder.fingerprint != self.description.fingerprint:
            raise EncoderError(
                f"{self.encoder.model} on this worker has fingerprint {encoder.fingerprint[:12]}, the memory was made "
                f"with {self.description.fingerprint[:12]}: give every node the same weights"
            )
        return partial(
            embed_shard,
            encoder=encoder,
            store=Store(self.memory),
            config=self.config,
            config_hash=self.description.config_hash,
            decode_threads=self.decode_threads or available_threads(),
            allow_hosts=self.allow_hosts,
        )


def embed_shard(
    shard: Shard,
    *,
    encoder: Encoder,
    store: Store,
    config: EmbedConfig,
    config_hash: str,
    decode_threads: int = 1,
    allow_hosts: tuple[str, ...] = (),
) -> Commit:
    """Embed one shard and commit it: data first, the record last.

    Raises:
        SourceError: the shard is missing, cannot be read, or changed since it was planned.
    """
    gather, attempt = False, 1
    while True:
        try:
            read = _read(shard, encoder, store, config, decode_threads, allow_hosts, gather=gather)
            break
        except MembersApartError:
            if gather:
                raise
            gather = True
        except TransportFailedError:
            if attempt == ATTEMPTS:
                raise
            attempt += 1
    rows, notes, seconds = read
    notes[NO_CAPTION] += sum(not row.has_text for row in rows.accepted)
    notes["rows have no picture"] += sum(not row.has_image for row in rows.accepted)
    metadata = metadata_table([(row.fixed, row.fields) for row in rows.accepted], config.column_types, notes)
    images, texts = rows.matrices()
    return commit_shard(
        store,
        shard,
        images=images,
        texts=texts,
        metadata=metadata,
        rejects=rows.rejects,
        partial=rows.truncated,
        config_hash=config_hash,
        seconds=seconds,
        notes=notes,
    )


def _read(
    shard: Shard,
    encoder: Encoder,
    store: Store,
    config: EmbedConfig,
    decode_threads: int,
    allow_hosts: tuple[str, ...],
    *,
    gather: bool,
) -> "tuple[_Rows, Counter[str], dict[str, float]]":
    """Read and encode a shard: (its rows, notes about them, seconds by step)."""
    started = time.perf_counter()
    _check_unchanged(shard)
    notes: Counter[str] = Counter()
    rows = _Rows(encoder, config)
    known = KnownPairs(store, shard.earlier, config.column_types)
    rejected = split_uri(shard.uri)[1].rejects
    pairs = read_pairs(
        shard.uri,
        require=config.require,
        caption_key=config.caption_key,
        image_key=config.image_key,
        url_key=config.url_key,
        only=None if rejected is None else _worth_retrying(store, rejected),
        known=known.holds_row if shard.earlier else None,
        gather=gather,
        notes=notes,
        allow_hosts=allow_hosts,
    )
    prepare = partial(_prepare, encoder=encoder, config=config)
    with closing(rows), ThreadPoolExecutor(decode_threads) as threads, closing(pairs):
        for item in map_ahead(prepare, _unknown(pairs, known, notes), threads, 2 * config.batch_size):
            if isinstance(item, _Row) and item.fixed["key"] in known.replacing:
                notes[REPLACED_ROWS if item.is_numbered else REPLACED] += 1
            notes[SHARED_KEY] += isinstance(item, _Row) and item.fixed["key"] in known.shared
            rows.add(item)
        rows.finish()
    _check_unchanged(shard)
    return rows, notes, {"decode": rows.decode_s, "forward": rows.forward_s, "total": time.perf_counter() - started}


def _unknown(
    pairs: Iterable[Pair | Reject | Truncated], known: KnownPairs, notes: Counter[str]
) -> Iterator[Pair | Reject | Truncated]:
    """Leave out the pairs that are unchanged in the memory, and count them."""
    for item in pairs:
        is_known = item.reason == UNCHANGED if isinstance(item, Reject) else False
        if is_known or (isinstance(item, Pair) and not known.admits(item)):
            notes[UNCHANGED_NOTE] += 1
        else:
            yield item


def _check_unchanged(shard: Shard) -> None:
    etag = current_etag(shard.uri)
    if etag != shard.etag:
        raise SourceError(
            f"shard {shard.uri} changed since it was planned (etag {shard.etag} then, {etag} now): "
            "run embed again to plan its current version"
        )


def _worth_retrying(store: Store, ordinal: int) -> frozenset[str]:
    """Return the keys of the pairs that a shard rejected, without duplicate keys, which no retry can accept."""
    rejects = read_parquet(store.read(rejects_path(ordinal))).to_pylist()
    return frozenset(reject["key"] for reject in rejects if reject["reason"] != DUPLICATE_KEY)


@dataclass(slots=True)
class _Row:
    """A pair that becomes a row; its pixels are dropped once encoded."""

    fixed: dict[str, Any]
    """The fixed metadata columns."""
    fields: dict[str, Any]
    pixels: Pixels | None  # u8[h, w, 3]
    decode_s: float
    is_numbered: bool
    """See ``Pair``."""

    @property
    def has_image(self) -> bool:
        return bool(self.fixed["has_image"])

    @property
    def has_text(self) -> bool:
        return bool(self.fixed["has_text"])


def _prepare(item: Pair | Reject | Truncated, *, encoder: Encoder, config: EmbedConfig) -> _Row | Reject | Truncated:
    """Decode and resize a picture; runs in threads."""
    if not isinstance(item, Pair):
        return item
    started = time.perf_counter()
    pixels: Pixels | None = None
    size: tuple[int | None, int | None] = (None, None)
    digest = None
    if item.image is not None:
        try:
            draft_size = encoder.image_size if config.jpeg_draft else None
            image = decode_image(item.image, max_pixels=config.max_pixels, draft_size=draft_size)
        except BadImageError as bad:
            return Reject(key=item.key, reason=str(bad))
        pixels, digest = encoder.preprocess(image), sha256(item.image)
        size = picture_size(item.image) if config.jpeg_draft else image.size
    fixed = {
        "key": item.key,
        "caption": item.caption,
        "width": size[0],
        "height": size[1],
        "sha256": digest,
        "member": item.member,
        "has_image": item.image is not None,
        "has_text": item.caption is not None,
    }
    return _Row(fixed, item.fields, pixels, time.perf_counter() - started, item.is_numbered)


@dataclass(slots=True)
class _Rows:
    """Rows of one shard, collected batch by batch."""

    encoder: Encoder
    config: EmbedConfig
    accepted: list[_Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    truncated: str | None = None
    decode_s: float = 0.0
    """Seconds of all threads together."""
    forward_s: float = 0.0
    batch: list[_Row] = field(default_factory=list)
    waiting: deque[tuple[list[_Row], "Future[_Encoded]"]] = field(default_factory=deque)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    texts: dict[str, Vectors] = field(default_factory=dict)
    """Caption → its vector, so that each distinct caption is encoded once."""
    vectors: list[tuple[Vectors, Vectors]] = field(default_factory=list)

    def add(self, item: _Row | Reject | Truncated) -> None:
        if isinstance(item, Truncated):
            if item.offset == 0:
                raise SourceError(f"{item.reason}: fetch the shard again, or embed without it")
            self.truncated = item.reason
        elif isinstance(item, Reject):
            self.rejects.append(item)
        else:
            self.decode_s += item.decode_s
            self.batch.append(item)
            if len(self.batch) == self.config.batch_size:
                self._submit_batch()

    def finish(self) -> None:
        """Encode the last batch and collect all."""
        if self.batch:
            self._submit_batch()
        while self.waiting:
            self._collect_batch()

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)

    def _submit_batch(self) -> None:
        if len(self.waiting) == BATCHES_AHEAD:
            self._collect_batch()
        self.waiting.append((self.batch, self.thread.submit(self._encode, self.batch)))
        self.batch = []

    def _collect_batch(self) -> None:
        """Collect the oldest batch's vectors; rows whose vectors are not finite become rejects."""
        batch, encoding = self.waiting.popleft()
        images, texts, seconds = encoding.result()
        self.forward_s += seconds
        good = np.asarray(np.isfinite(np.hstack([images, texts])).all(axis=1))  # bool[b]
        for row, is_good in zip(batch, good.tolist(), strict=True):
            if is_good:
                self.accepted.append(row)
            else:
                self.rejects.append(Reject(key=row.fixed["key"], reason="embedding is not finite"))
        self.vectors.append((images[good], texts[good]))

    def _encode(self, batch: list[_Row]) -> "_Encoded":
        """Encode a batch in a thread of its own; a missing image or caption has a zero vector."""
        started = time.perf_counter()
        images = np.zeros((len(batch), self.encoder.d), np.float16)
        pixels = [row.pixels for row in batch if row.pixels is not None]
        if pixels:
            images[[row.pixels is not None for row in batch]] = self.encoder.encode_images(np.stack(pixels))
        for row in batch:
            row.pixels = None
        texts = np.zeros((len(batch), self.encoder.d), np.float16)
        captions = [row.fixed["caption"] for row in batch if row.has_text]
        fresh = list(dict.fromkeys(caption for caption in captions if caption not in self.texts))
        if fresh:
            self.texts |= zip(fresh, self.encoder.encode_texts(fresh), strict=True)
        if captions:
            texts[[row.has_text for row in batch]] = np.stack([self.texts[caption] for caption in captions])
        return images, texts, time.perf_counter() - started

    def matrices(self) -> tuple[Vectors, Vectors]:
        """Return image and text vectors of the accepted rows: f16[n, d] each."""
        if not self.vectors:
            return np.zeros((0, self.encoder.d), np.float16), np.zeros((0, self.encoder.d), np.float16)
        images, texts = zip(*self.vectors, strict=True)
        return np.concatenate(images), np.concatenate(texts)


_Encoded = tuple[Vectors, Vectors, float]
"""Image vectors, text vectors (f16[b, d]) and seconds."""
