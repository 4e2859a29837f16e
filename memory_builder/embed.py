"""Shards of pairs → embeddings, metadata, rejects and a commit record each.

``embed_shard`` is the work of one shard and knows no cluster; ``embed`` plans the shards, hands the pending ones to a
runner and keeps the books. Doing a shard twice is harmless: the same input and config give the same bytes.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.encoder import Encoder, EncoderConfig, Pixels, Vectors, load_encoder
from memory_builder.errors import EncoderError, SourceError, UsageError
from memory_builder.images import MAX_PIXELS, BadImageError, decode_image
from memory_builder.manifest import (
    Commit,
    Description,
    Shard,
    config_hash,
    shard_name,
    write_commit,
)
from memory_builder.runner import available_threads
from memory_builder.shards import Break, Pair, Reject, Require, read_pairs
from memory_builder.sources import current_etag
from memory_builder.storage import Store, sha256
from memory_builder.tables import (
    COLUMN_TYPES,
    FIXED_FIELDS,
    LOOKUP_FIELDS,
    arrow_bytes,
    metadata_table,
    npy_bytes,
    parquet_bytes,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """What decides the bytes of a memory, beside its inputs and its encoder."""

    require: Require = "both"
    """Sides a pair must have; one that lacks a required side is a reject."""
    caption_key: str = "caption"
    """Json field that holds the caption where there is no .txt."""
    columns: tuple[str, ...] = ()
    """Json fields to keep as metadata columns, as name:type with type string, int, float or bool."""
    batch_size: int = 256
    """Pairs a forward pass; part of the configuration because float16 rows depend on it."""
    max_pixels: int = MAX_PIXELS
    """A larger picture is a reject."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size}: at least 1")
        for column in self.columns:
            name, _, kind = column.partition(":")
            if kind not in COLUMN_TYPES or not name or name in dict(FIXED_FIELDS) or name == "extra":
                raise UsageError(
                    f"--columns {column}: expected name:type, type one of {', '.join(COLUMN_TYPES)}, and a name that "
                    f"is not already a column ({', '.join(name for name, _ in FIXED_FIELDS)})"
                )

    @property
    def column_types(self) -> dict[str, str]:
        return {name: kind for name, _, kind in (column.partition(":") for column in self.columns)}


def describe(encoder: Encoder, config: EmbedConfig) -> Description:
    """``memory.json`` for a memory made by this encoder and config."""
    changed = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    decisive = {"fingerprint": encoder.fingerprint, "precision": encoder.config.resolved_precision()}
    return Description(
        model=encoder.config.model,
        pretrained=encoder.config.pretrained,
        fingerprint=encoder.fingerprint,
        d=encoder.d,
        columns=config.column_types,
        config={
            **asdict(config),
            "columns": list(config.columns),
            **decisive,
        },
        config_hash=config_hash(changed | decisive),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribeTask:
    """Loads the model where the work will be done, because only there it is known on what device that is."""

    encoder: EncoderConfig
    wants_gpu: bool = True

    def start(self) -> Callable[[EmbedConfig], Description]:
        return partial(describe, load_encoder(self.encoder))


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """A worker with the model loaded, writing into ``memory``."""

    memory: str
    encoder: EncoderConfig
    config: EmbedConfig
    description: Description
    decode_threads: int | None = None
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
            hash_of_config=self.description.config_hash,
            decode_threads=self.decode_threads or available_threads(),
        )


def embed_shard(
    shard: Shard,
    *,
    encoder: Encoder,
    store: Store,
    config: EmbedConfig,
    hash_of_config: str,
    decode_threads: int = 1,
) -> Commit:
    """Embed one shard and commit it: data first, the record last.

    Raises:
        SourceError: the shard is gone, is no tar, cannot be read, or is not what it was when it was planned.
    """
    started = time.perf_counter()
    rows = _Rows(encoder, config)
    _check_unchanged(shard)
    pairs = read_pairs(shard.uri, require=config.require, caption_key=config.caption_key)
    prepare = partial(_prepare, encoder, config.max_pixels)
    with ThreadPoolExecutor(decode_threads) as threads:
        for item in _look_ahead(pairs, prepare, threads, 2 * config.batch_size):
            rows.add(item)
        rows.flush()
    _check_unchanged(shard)
    decoded = time.perf_counter()
    files = rows.files(shard.ordinal)
    for path, data in files.items():
        store.put(path, data)
    finished = time.perf_counter()
    total = finished - started
    forward = rows.forward_s
    return write_commit(
        store,
        Commit(
            ordinal=shard.ordinal,
            uri=shard.uri,
            etag=shard.etag,
            config_hash=hash_of_config,
            n_read=len(rows.kept) + len(rows.rejects),
            n_written=len(rows.kept),
            n_images=sum(row.has_image for row in rows.kept),
            n_texts=sum(row.has_text for row in rows.kept),
            reasons=dict(sorted(Counter(reject.reason for reject in rows.rejects).items())),
            partial=rows.broken,
            checksums={path: sha256(data) for path, data in files.items()},
            seconds={
                "decode": decoded - started - forward,
                "forward": forward,
                "write": finished - decoded,
                "total": total,
            },
        ),
    )


def _check_unchanged(shard: Shard) -> None:
    etag = current_etag(shard.uri)
    if etag != shard.etag:
        raise SourceError(
            f"shard {shard.uri} changed since it was planned (etag {shard.etag} then, {etag} now): "
            "run embed again to plan it anew"
        )


@dataclass(slots=True)
class _Row:
    """A pair on its way to becoming a row; pixels are dropped once encoded."""

    pair: Pair
    pixels: Pixels | None = None  # u8[h, w, 3]
    width: int | None = None
    height: int | None = None
    digest: str | None = None

    @property
    def has_image(self) -> bool:
        return self.pair.image is not None

    @property
    def has_text(self) -> bool:
        return self.pair.caption is not None

    @property
    def found(self) -> dict[str, Any]:
        """The fixed metadata columns."""
        return {
            "key": self.pair.key,
            "caption": self.pair.caption,
            "width": self.width,
            "height": self.height,
            "sha256": self.digest,
            "member": self.pair.member,
            "has_image": self.has_image,
            "has_text": self.has_text,
        }


def _prepare(encoder: Encoder, max_pixels: int, pair: Pair) -> _Row | Reject:
    """Decode and resize; runs in threads."""
    if pair.image is None:
        return _Row(pair)
    try:
        image = decode_image(pair.image, max_pixels=max_pixels)
    except BadImageError as bad:
        return Reject(key=pair.key, reason=str(bad))
    return _Row(pair, encoder.preprocess(image), image.width, image.height, sha256(pair.image))


def _look_ahead(
    items: Iterable[Pair | Reject | Break],
    prepare: Callable[[Pair], _Row | Reject],
    threads: ThreadPoolExecutor,
    window: int,
) -> Iterator[_Row | Reject | Break]:
    """Prepare pairs in threads, yield everything in order; at most ``window`` pairs are held."""
    queue: deque[Future[_Row | Reject] | Reject | Break] = deque()
    for item in items:
        queue.append(threads.submit(prepare, item) if isinstance(item, Pair) else item)
        if len(queue) >= window:
            yield _settled(queue.popleft())
    while queue:
        yield _settled(queue.popleft())


def _settled(item: Future[_Row | Reject] | Reject | Break) -> _Row | Reject | Break:
    return item.result() if isinstance(item, Future) else item


@dataclass(slots=True)
class _Rows:
    """The rows of one shard as they grow; a batch never crosses a shard."""

    encoder: Encoder
    config: EmbedConfig
    kept: list[_Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    broken: str | None = None
    forward_s: float = 0.0
    batch: list[_Row] = field(default_factory=list)
    image_vectors: list[Vectors] = field(default_factory=list)
    text_vectors: list[Vectors] = field(default_factory=list)

    def add(self, item: _Row | Reject | Break) -> None:
        if isinstance(item, Break):
            if item.offset == 0:
                raise SourceError(f"not a tar ({item.reason}): fetch the shard again, or embed without it")
            self.broken = item.reason
        elif isinstance(item, Reject):
            self.rejects.append(item)
        else:
            self.batch.append(item)
            if len(self.batch) == self.config.batch_size:
                self.flush()

    def flush(self) -> None:
        """Encode the batch; rows whose vectors are not finite become rejects."""
        if not self.batch:
            return
        started = time.perf_counter()
        images = self._encode([row.has_image for row in self.batch], self._encode_images)
        texts = self._encode([row.has_text for row in self.batch], self._encode_texts)
        self.forward_s += time.perf_counter() - started
        good = np.asarray(np.isfinite(np.hstack([images, texts])).all(axis=1))  # bool[b]
        for row, is_good in zip(self.batch, good.tolist(), strict=True):
            row.pixels = None
            if is_good:
                self.kept.append(replace(row, pair=replace(row.pair, image=row.pair.image and b"")))
            else:
                self.rejects.append(Reject(key=row.pair.key, reason="embedding is not finite"))
        self.image_vectors.append(images[good])
        self.text_vectors.append(texts[good])
        self.batch = []

    def _encode(self, present: list[bool], encode: Callable[[], Vectors]) -> Vectors:
        vectors = np.zeros((len(self.batch), self.encoder.d), np.float16)  # a side that is not there stays zero
        if any(present):
            vectors[present] = encode()
        return vectors

    def _encode_images(self) -> Vectors:
        return self.encoder.encode_images(np.stack([row.pixels for row in self.batch if row.pixels is not None]))

    def _encode_texts(self) -> Vectors:
        return self.encoder.encode_texts([row.pair.caption for row in self.batch if row.pair.caption is not None])

    def files(self, ordinal: int) -> dict[str, bytes]:
        """Path → bytes of everything this shard leaves, the commit record aside."""
        name = shard_name(ordinal)
        table = metadata_table([(row.found, row.pair.fields) for row in self.kept], self.config.column_types)
        rejects = {"key": [r.key for r in self.rejects], "reason": [r.reason for r in self.rejects]}
        return {
            f"img_emb/img_emb_{name}.npy": npy_bytes(self._matrix(self.image_vectors)),
            f"text_emb/text_emb_{name}.npy": npy_bytes(self._matrix(self.text_vectors)),
            f"metadata/metadata_{name}.parquet": parquet_bytes(table),
            f"rows/rows_{name}.arrow": arrow_bytes(table.select(LOOKUP_FIELDS)),
            f"rejects/rejects_{name}.parquet": parquet_bytes(
                pa.table(rejects, schema=pa.schema([("key", pa.string()), ("reason", pa.string())]))
            ),
        }

    def _matrix(self, batches: list[Vectors]) -> Vectors:
        return np.concatenate(batches) if batches else np.zeros((0, self.encoder.d), np.float16)
