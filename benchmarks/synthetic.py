"""Memories of made-up vectors, for measuring indexes at sizes no corpus here has.

Vectors lie in clusters of a low-dimensional shape, as embeddings do; a text vector is its image's, moved by what the
two modalities do not share. With ``ordered`` the clusters come one after another, as a pile sorted by site or topic has
them: the order in which a quantizer trained on the first rows knows nothing of the rest.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.catalog.create_memory import create_memory
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import metadata_table
from memory_builder.catalog.plan import extend_plan
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.embedding.config import EmbedConfig, describe_vectors
from memory_builder.readers.shard import Source
from memory_builder.storage.store import Store

Floats = npt.NDArray[np.float32]
SHARD_ROWS = 50_000


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the vectors look like."""

    d: int = 256
    n_clusters: int = 1_000
    intrinsic: int = 32
    """Dimensions in which a cluster is wide."""
    ordered: bool = True
    seed: int = 0


def make_memory(root: Path, n_rows: int, shape: Shape, *, texts: bool = True) -> Store:
    """A memory of ``n_rows``, made shard by shard; one that is partly there is finished."""
    store = Store(root)
    described = describe_vectors(shape.d, EmbedConfig())
    create_memory(store, described)
    sizes = [min(SHARD_ROWS, n_rows - start) for start in range(0, n_rows, SHARD_ROWS)]
    plan = extend_plan(store, [Source(uri=f"synthetic/{i:05d}", bytes=0, etag=str(n)) for i, n in enumerate(sizes)])
    manifest = Manifest.read(store)
    columns = metadata_table([], {}).schema
    for shard, n in zip(plan, sizes, strict=True):
        if shard.ordinal in manifest.commits:
            continue
        images, captions = vectors(shape, shard.ordinal, len(sizes), n)
        keys = pa.array([f"{shard.ordinal:05d}{row:06d}" for row in range(n)])
        flags = {"has_image": pa.array(np.ones(n, bool)), "has_text": pa.array(np.full(n, texts))}
        given = {"key": keys, "caption": keys, **flags, "extra": pa.array(["{}"] * n)}
        table = pa.table({field.name: given.get(field.name, pa.nulls(n, field.type)) for field in columns}, columns)
        commit = commit_shard(
            store,
            shard,
            images=images.astype(np.float16),
            texts=(captions if texts else np.zeros_like(captions)).astype(np.float16),
            metadata=table,
            rejects=[],
            partial=None,
            config_hash=described.config_hash,
            seconds={"total": 0.0},
        )
        manifest.add(commit)
    manifest.fold(store)
    return store


def vectors(shape: Shape, shard: int, n_shards: int, n: int) -> tuple[Floats, Floats]:
    """Image and text vectors of one shard: f32[n, d] unit rows each."""
    common = np.random.default_rng(shape.seed)
    centres = common.normal(size=(shape.n_clusters, shape.d)).astype(np.float32)
    basis = common.normal(size=(shape.intrinsic, shape.d)).astype(np.float32)
    gap = common.normal(size=shape.d).astype(np.float32)
    own = np.random.default_rng([shape.seed, 1 + shard])
    place = (shard + np.sort(own.random(n))) / n_shards if shape.ordered else own.random(n)
    cluster = (place * shape.n_clusters).astype(np.int64)
    wide = own.normal(size=(n, shape.intrinsic)).astype(np.float32) @ basis / shape.intrinsic**0.5
    images = centres[cluster] + wide + 0.1 * own.normal(size=(n, shape.d)).astype(np.float32)
    captions = images + 0.3 * gap + 0.5 * own.normal(size=(n, shape.d)).astype(np.float32)
    return _unit(images), _unit(captions)


def queries(shape: Shape, n: int) -> tuple[Floats, Floats]:
    """Image and text vectors of rows that are in no memory."""
    return vectors(replace(shape, ordered=False), 1 << 20, 1, n)


def _unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
