"""The neighbours of every pair that RECO trains on: looked up once, shard by shard, and stored beside the run."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from memory_builder.manifest import Manifest, config_hash, read_description, shard_name
from memory_builder.memory import Memory
from memory_builder.recall import Side
from memory_builder.rows import NO_ROW, Ids, Rows, row_ids
from memory_builder.scores import Scores
from memory_builder.storage import Store
from memory_builder.tables import npy_bytes
from trainer.artwork import Clusters, read_clusters
from trainer.lookup import SIDES, NeighbourConfig, Pairs, neighbours_of

QUERIES = 1_024
"""Pairs looked up at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourTask:
    """A worker that looks up the neighbours of one shard of the training pairs at a time."""

    memory: str
    train: str
    """The memory that holds the embeddings of the training pairs."""
    folder: str
    """Where they are stored."""
    config: NeighbourConfig
    clusters: str | None = None
    address: str | None = None
    wants_gpu: bool = False

    def start(self) -> Callable[[int], Counter[str]]:
        memory, train = Memory.open(self.memory, address=self.address), Store(self.train)
        rows = Rows(train, Manifest.read_folded(train).commits, read_description(train).d)
        return partial(
            find_shard,
            store=Store(self.folder),
            memory=memory,
            rows=rows,
            config=self.config,
            clusters=read_clusters(self.clusters),
        )


def find_shard(
    ordinal: int, *, store: Store, memory: Memory, rows: Rows, config: NeighbourConfig, clusters: Clusters
) -> Counter[str]:
    """Look up one shard of training pairs: write what its rows find, then the record of it. One recorded is left alone.

    Rows that lack a picture or a caption cannot be trained on and find nothing.
    """
    there = read_record(store, ordinal)
    if there is not None:
        return there
    pairs, whole, n_rows = _training_pairs(rows, ordinal, clusters, rows.store.root == memory.store.root)
    counts, sizes = Counter(pairs=len(whole)), {}
    for side in SIDES:
        ids = np.full((n_rows, config.k), NO_ROW, np.int64)
        vectors = np.zeros((n_rows, config.k, rows.d), np.float16)
        for start in range(0, len(whole), QUERIES):
            some = slice(start, start + QUERIES)
            found, dropped = neighbours_of(memory, pairs.at(some), side, config, clusters)
            ids[whole[some]], vectors[whole[some]] = found.ids, found.vectors
            counts.update({f"{side} {reason}": n for reason, n in dropped.items()})
        for name, values in (("ids", ids), ("vectors", vectors)):
            data = npy_bytes(values)
            store.put(neighbours_path(ordinal, side, name), data)
            sizes[neighbours_path(ordinal, side, name)] = len(data)
    record = {"counts": dict(counts), "bytes": sizes}
    store.put(f"records/{shard_name(ordinal)}.json", json.dumps(record, indent=1).encode())
    return counts


def _training_pairs(rows: Rows, ordinal: int, clusters: Clusters, in_memory: bool) -> tuple[Pairs, Ids, int]:
    """(pairs of a shard that have both sides, i64[n] which of its rows they are, rows in all)."""
    ids = row_ids(ordinal, np.arange(rows.commits[ordinal].n_written))
    images, texts = rows.vectors(ids, "image"), rows.vectors(ids, "text")
    whole = np.flatnonzero(images.any(axis=1) & texts.any(axis=1))
    pairs = Pairs(
        ids=ids[whole],
        images=_unit(images[whole]),
        texts=_unit(texts[whole]),
        clusters=clusters.of(rows.table(ids[whole])["key"]),
        in_memory=in_memory,
    )
    return pairs, whole, len(ids)


def neighbours_path(ordinal: int, side: Side, name: str) -> str:
    """Where the ids or vectors of one side of one shard lie."""
    return f"{side}_{name}/{shard_name(ordinal)}.npy"


def read_record(store: Store, ordinal: int) -> Counter[str] | None:
    """What was counted in a shard whose neighbours are stored, whole; None if they are to be looked up."""
    record = store.read_sound_json(f"records/{shard_name(ordinal)}.json")
    if record is None:
        return None
    for path, size in record["bytes"].items():
        if not store.exists(path) or store.size(path) != size:
            return None
    return Counter(record["counts"])


def neighbours_hash(memory: Memory, train: Memory, config: NeighbourConfig, clusters: str | None) -> str:
    """What the stored neighbours depend on: the state of both memories, and the settings."""
    return config_hash(
        {
            "memory": asdict(memory.snapshot) | {"root": memory.store.root},
            "train": {str(o): commit.checksums for o, commit in train.commits.items()},
            "config": asdict(config),
            "clusters": None if clusters is None else Store(clusters).checksum(""),
        }
    )


def _unit(rows: Scores) -> Scores:
    """Stored rows are float16 and so a little off unit length."""
    units: Scores = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return units
