"""Evaluation sets to exclude from a subset: list, embed and store them as ``exclude/00000.*``."""

import io
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.base.log import logger
from memory_builder.base.prefetch import map_ahead
from memory_builder.base.runner import available_threads
from memory_builder.base.types import Pixels, Vectors
from memory_builder.catalog.commits import record_names
from memory_builder.catalog.paths import shard_name
from memory_builder.errors import CorruptMemoryError, EncoderError, SourceError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.images import BadImageError, decode_image
from memory_builder.readers.discover import find_sources
from memory_builder.readers.file_kinds import describe_passed_over, kind_of
from memory_builder.readers.folder import file_info
from memory_builder.readers.read import Pair, Reject, Truncated, read_pairs
from memory_builder.readers.shard import Source
from memory_builder.readers.splits import TAR_MARK, is_named_as_split, is_training_split
from memory_builder.retrieval.block_records import done_records
from memory_builder.retrieval.copies.compare import ImageSignatures, ReferenceImages
from memory_builder.retrieval.copies.glyph import Glyphs, glyph_of
from memory_builder.retrieval.copies.miniature import Miniatures, miniature_of
from memory_builder.storage.filesystem import open_filesystem
from memory_builder.storage.formats import npy_bytes, parquet_bytes, read_npy
from memory_builder.storage.records import Count, decode_table, reading, strict_record, write_record
from memory_builder.storage.store import Store, sha256

FOLDER = "exclude"
BATCH = 256
KEYS = pa.schema([("uri", pa.string()), ("key", pa.string()), ("sha256", pa.string())])


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """A shard of an evaluation set."""

    number: int
    uri: str
    etag: str


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class ExcludedRecord:
    """Commit record of a shard's files."""

    number: Count
    uri: str
    n_pictures: Count
    n_unreadable: Count
    """Number of entries without a decodable picture, which are not compared."""


def find_excluded(named: Sequence[str]) -> list[Excluded]:
    """List the shards of evaluation sets: all splits but ``train``, or without splits every source that embed reads.

    Logs the folders that are read in one line for each set.

    Raises:
        SourceError: a set has no sources.
        UsageError: a set has only a train split, or is ambiguous.
    """
    sources: dict[str, Source] = {}
    for name in named:
        for source in find_sources(_splits(name) or [name]):
            sources.setdefault(source.uri, source)
    return [Excluded(number=i, uri=s.uri, etag=s.etag) for i, s in enumerate(sources.values())]


def _splits(name: str) -> list[str]:
    """List the folders of a set's splits except train; empty for a set without splits."""
    fs, path = open_filesystem(name)
    if not fs.isdir(path):
        return []
    listed = sorted(fs.ls(path, detail=True), key=lambda entry: str(entry["name"]))
    entries = {posixpath.basename(entry["name"].rstrip("/")): file_info(fs, entry) for entry in listed}
    folders = [folder for folder, info in entries.items() if info["type"] == "directory" and folder[:1] != "."]
    inside = {folder: f"{path.rstrip('/')}/{folder}" for folder in folders}
    marked = [folder for folder in folders if fs.exists(f"{inside[folder]}/{TAR_MARK}")]
    if not marked and not any(map(is_named_as_split, folders)):
        logger.info(f"evaluation set {name}: no splits, all folders are read")
        return []
    splits = [folder for folder in folders if folder in marked or is_named_as_split(folder)] if marked else folders
    left = [folder for folder in splits if is_training_split(folder)]
    read = [folder for folder in splits if folder not in left]
    if not read:
        raise UsageError(f"--exclude {name} has only a train split; to exclude it, name its folder")
    if not marked:
        _refuse_classes(fs, name, inside, left, read)
    beside = describe_passed_over(entry for entry in entries if entry not in splits)
    logger.info(
        f"evaluation set {name}: read {', '.join(read)}"
        + (f"; {', '.join(left)} is for training and is not read" if left else "")
        + (f"; passed over {beside}" if beside else "")
    )
    where = [inside[folder] for folder in read]
    return [str(fs.unstrip_protocol(folder)) for folder in where] if "://" in name else where


def _refuse_classes(fs: Any, name: str, inside: Mapping[str, str], left: list[str], read: list[str]) -> None:
    """Refuse a set whose ``train`` folder may be a class, such as trains."""

    def holds_pictures(folder: str) -> bool:
        return any(kind_of(entry["name"]) == "picture" for entry in fs.ls(inside[folder], detail=True))

    classes = [folder for folder in read if not is_named_as_split(folder) and holds_pictures(folder)]
    if classes and any(map(holds_pictures, left)):
        raise UsageError(
            f"--exclude {name}: its folders {', '.join((*left, *classes[:3]))} hold pictures, so {left[0]} may be a "
            f"class or a split: name the folders to exclude, as in --exclude {name.rstrip('/')}/{classes[0]}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExcludeTask:
    """Worker that loads the memory's model and embeds evaluation pictures."""

    out: str
    encoder: EncoderConfig
    fingerprint: str
    wants_gpu: bool = True

    def start(self) -> Callable[[Excluded], ExcludedRecord]:
        encoder = load_encoder(self.encoder)
        if encoder.fingerprint != self.fingerprint:
            raise EncoderError(
                f"{self.encoder.model} has fingerprint {encoder.fingerprint[:12]}, the memory was built with "
                f"{self.fingerprint[:12]}: name the memory's own model with --model"
            )
        return partial(read_excluded, encoder=encoder, store=Store(self.out))


@dataclass(frozen=True, slots=True)
class _Picture:
    key: str
    sha256: str
    pixels: Pixels
    glyph: Glyphs
    miniature: Miniatures


def read_excluded(item: Excluded, *, encoder: Encoder, store: Store) -> ExcludedRecord:
    """Embed the pictures of a shard, store their signatures, and commit.

    Raises:
        SourceError: the shard cannot be read to its end, and unread pictures cannot be excluded.
    """
    pictures: list[_Picture | None] = []
    with ThreadPoolExecutor(available_threads()) as threads:
        pictures.extend(map_ahead(partial(_prepare, encoder=encoder), _pairs(item.uri), threads, BATCH))
    usable = [picture for picture in pictures if picture is not None]
    name = shard_name(item.number)
    batches = [
        encoder.encode_images(np.stack([picture.pixels for picture in usable[i : i + BATCH]]))
        for i in range(0, len(usable), BATCH)
    ]
    vectors = np.concatenate(batches) if batches else np.zeros((0, encoder.d), np.float16)
    store.put(f"{FOLDER}/{name}.vectors.npy", npy_bytes(vectors))
    for kind, shape in (("glyph", (32, 32)), ("miniature", (8, 8, 3))):
        arrays = [getattr(picture, kind) for picture in usable]
        store.put(f"{FOLDER}/{name}.{kind}s.npy", npy_bytes(np.array(arrays, np.uint8).reshape(-1, *shape)))
    keys = [{"uri": item.uri, "key": p.key, "sha256": p.sha256} for p in usable]
    store.put(f"{FOLDER}/{name}.parquet", parquet_bytes(pa.Table.from_pylist(keys, schema=KEYS)))
    n_unreadable = len(pictures) - len(usable)
    record = ExcludedRecord(number=item.number, uri=item.uri, n_pictures=len(usable), n_unreadable=n_unreadable)
    write_record(store, f"{FOLDER}/{name}.json", record)
    return record


def _pairs(uri: str) -> Iterator[Pair | Reject]:
    for item in read_pairs(uri, require="image", pictures_only=True):
        if isinstance(item, Truncated):
            raise SourceError(f"evaluation set {uri} {item.reason}: fetch it again")
        yield item


def _prepare(pair: Pair | Reject, *, encoder: Encoder) -> _Picture | None:
    if isinstance(pair, Reject):
        return None
    data = pair.image or b""
    try:
        image = decode_image(data)
    except BadImageError:  # models cannot be evaluated on it either
        return None
    return _Picture(pair.key, sha256(data), encoder.preprocess(image), glyph_of(image), miniature_of(image))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Signatures of all evaluation pictures."""

    uris: list[str]
    keys: list[str]
    by_bytes: dict[str, int]
    """SHA-256 → position of the picture."""
    compared: ReferenceImages

    @staticmethod
    def read(store: Store) -> "Evaluation | None":
        """Read the committed signatures; None without evaluation sets."""
        names = [name.removesuffix(".json") for name in record_names(store, FOLDER)]
        if not names:
            return None
        kept = [_read_kept(store, name) for name in names]
        keys = pa.concat_tables([shard.keys for shard in kept])
        vectors, glyphs, miniatures = (
            np.concatenate(arrays) for arrays in zip(*(shard.arrays for shard in kept), strict=True)
        )
        if not len(keys):
            return None
        hashes = keys["sha256"].to_pylist()
        return Evaluation(
            uris=keys["uri"].to_pylist(),
            keys=keys["key"].to_pylist(),
            by_bytes={digest: i for i, digest in reversed(list(enumerate(hashes)))},
            compared=ReferenceImages(ImageSignatures(vectors, glyphs, miniatures)),
        )


@dataclass(frozen=True, slots=True)
class _Kept:
    """Stored signatures of one shard."""

    keys: pa.Table
    arrays: tuple[Vectors, Glyphs, Miniatures]


def _read_kept(store: Store, name: str) -> _Kept:
    """
    Raises:
        CorruptMemoryError: a file is missing or damaged.
    """
    where, fix = f"{store.root}/{FOLDER}/{name}", "run the same command again"
    with reading(where, fix):
        data = store.read(f"{FOLDER}/{name}.parquet")
        keys = decode_table(data, KEYS, where=f"{where}.parquet", fix=fix, max_rows=1 << 32)
        vectors, glyphs, miniatures = (
            read_npy(io.BytesIO(store.read(f"{FOLDER}/{name}.{kind}.npy")))
            for kind in ("vectors", "glyphs", "miniatures")
        )
        shapes = (glyphs.shape, miniatures.shape, len(vectors), vectors.ndim)
        n = keys.num_rows
        types = (vectors.dtype, glyphs.dtype, miniatures.dtype)
        if shapes != ((n, 32, 32), (n, 8, 8, 3), n, 2) or types != (np.float16, np.uint8, np.uint8):
            raise ValueError(f"arrays of {shapes}, {n} keys")
        return _Kept(keys, (vectors, glyphs, miniatures))


def done_excluded(store: Store) -> dict[int, ExcludedRecord]:
    """Records of committed and readable shards of evaluation sets."""

    def is_whole(record: ExcludedRecord) -> bool:
        try:
            return int(_read_kept(store, shard_name(record.number)).keys.num_rows) == record.n_pictures
        except CorruptMemoryError:
            return False

    return done_records(store, FOLDER, ExcludedRecord, is_whole)
