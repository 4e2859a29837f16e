"""RECO's training pairs with their neighbours: searched once, shard by shard, and stored with the run.

The two vectors of a pair and those of its neighbours are contiguous, so training reads one range of a local file for
each pair and searches no memory.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.types import MODALITIES, Ids, unit_rows
from memory_builder.catalog.commits import record_names
from memory_builder.catalog.paths import shard_name
from memory_builder.errors import ConcurrentWriterError, CorruptMemoryError
from memory_builder.memory import Memory
from memory_builder.storage.formats import npy_bytes, parquet_bytes, read_npy, read_parquet
from memory_builder.storage.records import Count, content_hash, read_sound_record, strict_record
from memory_builder.storage.store import Store
from trainer.loop.config import NO_GROUP
from trainer.loop.launch import make_absolute
from trainer.reco.clusters import Clusters, read_clusters
from trainer.reco.config import NeighbourConfig
from trainer.reco.lookup import TrainingPairs, column_of, neighbours_of

QUERIES = 1_024
"""Pairs searched at a time."""
OPEN_FILES = 512
"""Vector files mapped at a time; each holds a file descriptor, and 1,024 is a common limit."""

Vectors = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourTask:
    """A task that searches the neighbours of one shard of the training pairs at a time."""

    memory: str
    """The memory to search."""
    train: str
    """The memory that holds the embeddings of the training pairs."""
    folder: str
    """Folder of the stored neighbours."""
    config: NeighbourConfig
    state: str
    """The ``neighbours_hash`` of the memories and settings."""
    clusters: str | None = None
    wants_gpu: bool = False

    def __post_init__(self) -> None:
        make_absolute(self, "memory", "train", "folder", "clusters")

    def start(self) -> Callable[[int], Counter[str]]:
        """Open both memories.

        Raises:
            ConcurrentWriterError: a memory or the clusters have changed since the hash was taken.
        """
        memory, train = Memory.open(self.memory), Memory.open(self.train)
        if neighbours_hash(memory, train, self.config, self.clusters) != self.state:
            raise ConcurrentWriterError(
                f"{memory.store.root}, {train.store.root} or the clusters changed during the search for neighbours; "
                "run the command again, which searches the current state"
            )
        return partial(
            find_shard,
            store=Store(self.folder),
            memory=memory,
            train=train,
            config=self.config,
            clusters=read_clusters(self.clusters),
        )


def find_shard(
    ordinal: int, *, store: Store, memory: Memory, train: Memory, config: NeighbourConfig, clusters: Clusters
) -> Counter[str]:
    """Search the neighbours of one shard and write them, then its record; a shard with a record is left as it is.

    Rows that are deleted, or lack a picture or a caption, are left out.
    """
    stored = read_shard_record(store, ordinal)
    if stored is not None:
        return stored
    in_memory = train.store.root == memory.store.root
    pairs, captions = _training_pairs(train, ordinal, clusters, in_memory, config.apart)
    n, counts = len(pairs.ids), Counter(pairs=len(pairs.ids))
    ids = np.empty((n, len(MODALITIES), config.looked_up), np.int64)
    with store.writing(vectors_path(ordinal)) as file:
        vectors = _npy_to_fill(file, (n, 2 + 2 * config.looked_up, train.description.d))
        for start in range(0, n, QUERIES):
            block = slice(start, start + QUERIES)
            vectors[block, 0], vectors[block, 1] = pairs.images[block], pairs.texts[block]
            for i, modality in enumerate(MODALITIES):
                neighbours, dropped = neighbours_of(memory, pairs.at(block), modality, config, clusters)
                first = 2 + i * config.looked_up
                ids[block, i], vectors[block, first : first + config.looked_up] = neighbours.ids, neighbours.vectors
                counts.update({f"{modality} {reason}": count for reason, count in dropped.items()})
        vectors.flush()
        del vectors
    store.put(ids_path(ordinal), npy_bytes(ids))
    store.put(pairs_path(ordinal), parquet_bytes(pa.table({"row": pairs.ids, "caption": captions})))
    sizes = {path: store.size(path) for path in (vectors_path(ordinal), ids_path(ordinal), pairs_path(ordinal))}
    store.put(_record_path(ordinal), json.dumps({"counts": dict(counts), "bytes": sizes}, indent=1).encode())
    return counts


def _training_pairs(
    train: Memory, ordinal: int, clusters: Clusters, in_memory: bool, apart: str | None
) -> tuple[TrainingPairs, Ids]:
    """(pairs of a shard that have picture and caption, i64[n] hashes of their captions)."""
    ids = train.row_ids(ordinal)
    images, texts = train.vectors(ids, "image"), train.vectors(ids, "text")
    complete = np.flatnonzero(images.any(axis=1) & texts.any(axis=1))
    table = train.rows(ids[complete])
    pairs = TrainingPairs(
        ids=ids[complete],
        images=unit_rows(images[complete]),
        texts=unit_rows(texts[complete]),
        clusters=clusters.of(table["key"]),
        in_memory=in_memory,
        apart=None if apart is None else column_of(train.metadata(ids[complete], [apart]), apart),
    )
    return pairs, np.array([caption_hash(caption) for caption in table["caption"].to_pylist()], np.int64)


def caption_hash(caption: str | None) -> int:
    """63 bits of the SHA-256 of a caption; NO_GROUP without one, as in some published embeddings."""
    if not caption:
        return NO_GROUP
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") >> 1


def vectors_path(ordinal: int) -> str:
    """f16[n, 2 + 2 k, d]: image, text, k neighbours of the image, k neighbours of the text; zeros pad."""
    return f"vectors/{shard_name(ordinal)}.npy"


def ids_path(ordinal: int) -> str:
    """i64[n, 2, k]: row ids of the neighbours of the image and of the text; -1 pads."""
    return f"ids/{shard_name(ordinal)}.npy"


def pairs_path(ordinal: int) -> str:
    """n rows: ``row``, the pair's own row id, and ``caption``, the hash of its text, or -1 without."""
    return f"pairs/{shard_name(ordinal)}.parquet"


def _record_path(ordinal: int) -> str:
    return f"records/{shard_name(ordinal)}.json"


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """Record of the stored neighbours of a shard, written last."""

    counts: dict[str, Count]
    bytes: dict[str, Count]
    """Sizes of its files."""


def read_shard_record(store: Store, ordinal: int) -> Counter[str] | None:
    """The counts of a shard whose neighbours are stored completely, else None."""
    record = read_sound_record(store, _record_path(ordinal), ShardRecord)
    if record is None or record.bytes.keys() != {vectors_path(ordinal), ids_path(ordinal), pairs_path(ordinal)}:
        return None
    for path, size in record.bytes.items():
        if not store.exists(path) or store.size(path) != size:
            return None
    return Counter(record.counts)


def read_shard_records(store: Store) -> dict[int, Counter[str]]:
    """Shard → counts, of all shards whose neighbours are stored completely."""
    ordinals = sorted(int(name.partition(".")[0]) for name in record_names(store, "records"))
    records = ((ordinal, read_shard_record(store, ordinal)) for ordinal in ordinals)
    return {ordinal: counts for ordinal, counts in records if counts is not None}


def neighbours_hash(memory: Memory, train: Memory, config: NeighbourConfig, clusters: str | None) -> str:
    """Hash of all that stored neighbours depend on: the state of both memories, and the settings."""
    return content_hash(
        {
            "memory": asdict(memory.snapshot) | {"root": memory.store.root},
            "train": {str(o): commit.checksums for o, commit in train.commits.items()},
            "train_deleted": train.snapshot.tombstones_sha256,
            "config": asdict(config),
            "clusters": None if clusters is None else Store(clusters).checksum(""),
        }
    )


class NeighbourTable:
    """Stored pairs and their neighbours, numbered from 0."""

    def __init__(self, store: Store, ordinals: Iterable[int]) -> None:
        self._store, self._ordinals = store, list(ordinals)
        tables = [read_parquet(store.read(pairs_path(ordinal))) for ordinal in self._ordinals]
        self._starts = np.cumsum([0, *(table.num_rows for table in tables)])
        self.captions: Ids = np.concatenate([np.asarray(table["caption"]) for table in tables])
        """i64[n] caption hashes; NO_GROUP without a caption."""
        self._vectors = lru_cache(OPEN_FILES)(self._map)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, pairs: Ids) -> Vectors:
        """i64[b] pairs → f16[b, 2 + 2 k, d]; see ``vectors_path``."""
        shards = np.searchsorted(self._starts, pairs, side="right") - 1
        vectors: Vectors | None = None
        for shard in np.unique(shards):
            in_shard = np.flatnonzero(shards == shard)
            rows = self._vectors(int(shard))[pairs[in_shard] - self._starts[shard]]
            if vectors is None:
                vectors = np.empty((len(pairs), *rows.shape[1:]), np.float16)
            vectors[in_shard] = rows
        if vectors is None:
            raise ValueError("no pairs to read")
        return vectors

    def _map(self, shard: int) -> Vectors:
        path = vectors_path(self._ordinals[shard])
        vectors: Vectors = read_npy(self._store.fetch(path), mapped=True)
        if len(vectors) != self._starts[shard + 1] - self._starts[shard]:
            raise CorruptMemoryError(f"{self._store.root}/{path} has {len(vectors)} pairs, not its table's: remove it")
        return vectors


def _npy_to_fill(file: Path, shape: Sequence[int]) -> np.memmap[tuple[int, ...], np.dtype[np.float16]]:
    """A new .npy file, memory-mapped for writing block by block."""
    return np.lib.format.open_memmap(str(file), mode="w+", dtype=np.float16, shape=tuple(shape))
