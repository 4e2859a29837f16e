"""The pairs that RECO trains on, with what each finds in a memory: looked up once, shard by shard, beside the run.

A pair's own two vectors and its neighbours lie together, so that training reads one stretch of a local file for each
pair and asks no memory.
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

from memory_builder.base.types import Ids, unit_rows
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
from trainer.reco.config import SIDES, NeighbourConfig
from trainer.reco.lookup import Pairs, column_of, neighbours_of

QUERIES = 1_024
"""Pairs looked up at a time."""
OPEN_FILES = 512
"""Of vectors; each holds a descriptor, of which 1,024 is a common limit."""

Vectors = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourTask:
    """A worker that looks up the neighbours of one shard of the training pairs at a time."""

    memory: str
    train: str
    """The memory that holds the embeddings of the training pairs."""
    folder: str
    """Where they are stored."""
    config: NeighbourConfig
    state: str
    """The ``neighbours_hash`` that what is found is stored for."""
    clusters: str | None = None
    wants_gpu: bool = False

    def __post_init__(self) -> None:
        make_absolute(self, "memory", "train", "folder", "clusters")

    def start(self) -> Callable[[int], Counter[str]]:
        """Open both memories.

        Raises:
            ConcurrentWriterError: they, or the clusters, are not in that state any more.
        """
        memory, train = Memory.open(self.memory), Memory.open(self.train)
        if neighbours_hash(memory, train, self.config, self.clusters) != self.state:
            raise ConcurrentWriterError(
                f"{memory.store.root}, {train.store.root} or the clusters were changed during the look-up of neighbours"
                "; run the command again: it looks them up in what is there now"
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
    """Look up one shard of training pairs: write what each finds, then the record. One that is recorded is left alone.

    Rows that are deleted, or lack a picture or a caption and so cannot be trained on, are left out.
    """
    there = read_record(store, ordinal)
    if there is not None:
        return there
    in_memory = train.store.root == memory.store.root
    pairs, captions = _training_pairs(train, ordinal, clusters, in_memory, config.apart)
    n, counts = len(pairs.ids), Counter(pairs=len(pairs.ids))
    ids = np.empty((n, len(SIDES), config.looked_up), np.int64)
    with store.writing(vectors_path(ordinal)) as file:
        vectors = _npy_to_fill(file, (n, 2 + 2 * config.looked_up, train.description.d))
        for start in range(0, n, QUERIES):
            some = slice(start, start + QUERIES)
            vectors[some, 0], vectors[some, 1] = pairs.images[some], pairs.texts[some]
            for place, side in enumerate(SIDES):
                found, dropped = neighbours_of(memory, pairs.at(some), side, config, clusters)
                first = 2 + place * config.looked_up
                ids[some, place], vectors[some, first : first + config.looked_up] = found.ids, found.vectors
                counts.update({f"{side} {reason}": count for reason, count in dropped.items()})
        vectors.flush()
        del vectors
    store.put(ids_path(ordinal), npy_bytes(ids))
    store.put(pairs_path(ordinal), parquet_bytes(pa.table({"row": pairs.ids, "caption": captions})))
    sizes = {path: store.size(path) for path in (vectors_path(ordinal), ids_path(ordinal), pairs_path(ordinal))}
    store.put(_record_path(ordinal), json.dumps({"counts": dict(counts), "bytes": sizes}, indent=1).encode())
    return counts


def _training_pairs(
    train: Memory, ordinal: int, clusters: Clusters, in_memory: bool, apart: str | None
) -> tuple[Pairs, Ids]:
    """(pairs of a shard that have both sides, i64[n] a number for each caption)."""
    ids = train.row_ids(ordinal)
    images, texts = train.vectors(ids, "image"), train.vectors(ids, "text")
    whole = np.flatnonzero(images.any(axis=1) & texts.any(axis=1))
    table = train.rows(ids[whole])
    pairs = Pairs(
        ids=ids[whole],
        images=unit_rows(images[whole]),
        texts=unit_rows(texts[whole]),
        clusters=clusters.of(table["key"]),
        in_memory=in_memory,
        apart=None if apart is None else column_of(train.metadata(ids[whole], [apart]), apart),
    )
    return pairs, np.array([caption_number(caption) for caption in table["caption"].to_pylist()], np.int64)


def caption_number(caption: str | None) -> int:
    """The same for the same text: 63 bits of its hash. Published embeddings may come without their captions."""
    if not caption:
        return NO_GROUP
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:8], "big") >> 1


def vectors_path(ordinal: int) -> str:
    """f16[n, 2 + 2 k, d]: a pair's image and text, what its image finds, what its text finds; zero where too few."""
    return f"vectors/{shard_name(ordinal)}.npy"


def ids_path(ordinal: int) -> str:
    """i64[n, 2, k]: the rows found, by image and by text; -1 where too few."""
    return f"ids/{shard_name(ordinal)}.npy"


def pairs_path(ordinal: int) -> str:
    """n rows: ``row``, the pair's own row id, and ``caption``, a number for its text, or -1 without."""
    return f"pairs/{shard_name(ordinal)}.parquet"


def _record_path(ordinal: int) -> str:
    return f"records/{shard_name(ordinal)}.json"


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What makes a shard's neighbours exist."""

    counts: dict[str, Count]
    bytes: dict[str, Count]
    """Of its files."""


def read_record(store: Store, ordinal: int) -> Counter[str] | None:
    """What was counted in a shard that is stored, whole; None if it is to be looked up."""
    record = read_sound_record(store, _record_path(ordinal), Stored)
    if record is None or record.bytes.keys() != {vectors_path(ordinal), ids_path(ordinal), pairs_path(ordinal)}:
        return None
    for path, size in record.bytes.items():
        if not store.exists(path) or store.size(path) != size:
            return None
    return Counter(record.counts)


def read_records(store: Store) -> dict[int, Counter[str]]:
    """Shard → what was counted in it, of all that are stored, whole."""
    ordinals = sorted(int(name.partition(".")[0]) for name in record_names(store, "records"))
    found = ((ordinal, read_record(store, ordinal)) for ordinal in ordinals)
    return {ordinal: counts for ordinal, counts in found if counts is not None}


def neighbours_hash(memory: Memory, train: Memory, config: NeighbourConfig, clusters: str | None) -> str:
    """What the stored neighbours depend on: the state of both memories, and the settings."""
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
        """i64[n] equal for equal captions; NO_GROUP where there is none."""
        self._vectors = lru_cache(OPEN_FILES)(self._map)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, places: Ids) -> Vectors:
        """i64[b] → f16[b, 2 + 2 k, d]; see ``vectors_path``."""
        shards = np.searchsorted(self._starts, places, side="right") - 1
        found: Vectors | None = None
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            rows = self._vectors(int(shard))[places[here] - self._starts[shard]]
            if found is None:
                found = np.empty((len(places), *rows.shape[1:]), np.float16)
            found[here] = rows
        if found is None:
            raise ValueError("no places to read")
        return found

    def _map(self, shard: int) -> Vectors:
        path = vectors_path(self._ordinals[shard])
        vectors: Vectors = read_npy(self._store.fetch(path), mapped=True)
        if len(vectors) != self._starts[shard + 1] - self._starts[shard]:
            raise CorruptMemoryError(f"{self._store.root}/{path} has {len(vectors)} pairs, not its table's: remove it")
        return vectors


def _npy_to_fill(file: Path, shape: Sequence[int]) -> np.memmap[tuple[int, ...], np.dtype[np.float16]]:
    """A .npy file on disk, to be filled a block at a time."""
    return np.lib.format.open_memmap(str(file), mode="w+", dtype=np.float16, shape=tuple(shape))
