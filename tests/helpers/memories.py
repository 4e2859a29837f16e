"""Memories made of vectors alone, and vectors that lie as a CLIP's do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memory_builder.catalog.create_memory import create_memory
from memory_builder.catalog.description import Description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.metadata import metadata_table
from memory_builder.catalog.plan import extend_plan
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.readers.shard import Source
from memory_builder.storage.records import content_hash
from memory_builder.storage.store import Store, sha256

Floats = npt.NDArray[np.float32]


def unit(vectors: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)


def clustered(n: int, d: int, seed: int, *, n_clusters: int = 200) -> tuple[Floats, Floats]:
    """Image and text vectors as a CLIP gives them: clusters, and the two modalities on cones of their own.

    Returns:
        (images f32[n, d], texts f32[n, d]), unit rows; row i of both belong together.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_clusters, d))
    images = centres[rng.integers(0, n_clusters, n)] + 0.5 * rng.standard_normal((n, d))
    texts = images + 0.5 * rng.standard_normal((n, d)) + rng.standard_normal(d)
    return unit(images), unit(texts)


def write_memory(
    root: str | Path,
    images: Floats | None,
    texts: Floats | None,
    *,
    shard_rows: int = 1_000,
    fingerprint: str = "0" * 64,
    model: str = "synthetic",
    fold: bool = True,
    columns: dict[str, str] | None = None,
    fields: Callable[[int], dict[str, Any]] = lambda _: {},
    **storage_options: Any,
) -> Store:
    """A memory made of given vectors, written through the package's own functions: what ``embed`` would leave.

    Args:
        root: where.
        images: f32[n, d]; a zero row is a pair without an image. None: no pair has one.
        texts: likewise, of the captions.
        shard_rows: rows a shard; the last one takes the rest.
        fingerprint: of the encoder; ask with text or image only if this is the one of ``model``.
        model: as EncoderConfig takes it.
        fold: also write manifest.parquet, as the driver does at the end.
        columns: metadata columns beside the fixed ones, as ``--columns`` takes them.
        fields: what the json of row i says.
        storage_options: passed to fsspec.

    Row i has key ``00000123`` and caption ``caption 123``, and no url.
    """
    sides = [side for side in (images, texts) if side is not None]
    n, d = sides[0].shape
    images_f16, texts_f16 = (
        np.zeros((n, d), np.float16) if side is None else unit(side).astype(np.float16) for side in (images, texts)
    )
    store = Store(root, **storage_options)
    description = Description(
        model=model,
        pretrained=None,
        fingerprint=fingerprint,
        d=d,
        columns=columns or {},
        config={"fingerprint": fingerprint},
        config_hash=content_hash({"fingerprint": fingerprint}),
    )
    create_memory(store, description)
    starts = range(0, n, shard_rows)
    sources = [Source(uri=f"/synthetic/{start:09d}.tar", bytes=1, etag="1") for start in starts]
    for shard, start in zip(extend_plan(store, sources), starts, strict=True):
        rows = range(start, min(n, start + shard_rows))
        some_images, some_texts = images_f16[rows.start : rows.stop], texts_f16[rows.start : rows.stop]
        has_image, has_text = some_images.any(axis=1).tolist(), some_texts.any(axis=1).tolist()
        found = [
            {
                "key": f"{row:08d}",
                "caption": f"caption {row}" if text else None,
                "width": 64 if image else None,
                "height": 64 if image else None,
                "sha256": sha256(str(row).encode()) if image else None,
                "member": f"{row:08d}.png",
                "has_image": image,
                "has_text": text,
            }
            for row, image, text in zip(rows, has_image, has_text, strict=True)
        ]
        described = [(row, fields(i)) for i, row in zip(rows, found, strict=True)]
        table = metadata_table(described, columns or {})
        commit_shard(
            store,
            shard,
            images=some_images,
            texts=some_texts,
            metadata=table,
            rejects=[],
            partial=None,
            config_hash=description.config_hash,
            seconds={"total": 0.0},
        )
    if fold:
        Manifest.read(store).fold(store)
    return store
