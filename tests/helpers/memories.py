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
    given = [modality for modality in (images, texts) if modality is not None]
    n, d = given[0].shape
    vectors = [
        np.zeros((n, d), np.float16) if array is None else unit(array).astype(np.float16) for array in (images, texts)
    ]
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
        shard_images, shard_texts = (array[rows.start : rows.stop] for array in vectors)
        known = described(rows, shard_images.any(axis=1).tolist(), shard_texts.any(axis=1).tolist())
        commit_shard(
            store,
            shard,
            images=shard_images,
            texts=shard_texts,
            metadata=metadata_table([(row, fields(i)) for i, row in zip(rows, known, strict=True)], columns or {}),
            rejects=[],
            partial=None,
            config_hash=description.config_hash,
            seconds={"total": 0.0},
        )
    if fold:
        Manifest.read(store).fold(store)
    return store


def described(rows: range, has_image: list[bool], has_text: list[bool]) -> list[dict[str, Any]]:
    """The fixed metadata columns of made-up pairs."""
    return [
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
