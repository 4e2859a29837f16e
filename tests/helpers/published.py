"""Folders of embeddings as clip-retrieval publishes them, and their import."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import import_embeddings

D = 192  # as wide as the bundled model's


def unit(n: int, seed: int, d: int = D) -> Any:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def publish(
    root: Path, sizes: list[int], *, width: int = 4, kinds: str = "img text meta", seed: int = 0
) -> dict[str, Any]:
    """A folder as clip-retrieval writes it; returns image and text vectors of all rows."""
    images, texts = [], []
    for i, n in enumerate(sizes):
        images.append(unit(n, seed + i))
        texts.append(unit(n, 100 + i))
        for kind, folder, array in (("img", "img_emb", images[-1]), ("text", "text_emb", texts[-1])):
            if kind in kinds:
                (root / folder).mkdir(parents=True, exist_ok=True)
                np.save(root / folder / f"{folder}_{i:0{width}d}.npy", array.astype(np.float16))
        if "meta" in kinds:
            (root / "metadata").mkdir(parents=True, exist_ok=True)
            names = [f"{i}-{row}" for row in range(n)]
            table = {"image_path": names, "caption": names, "url": names, "NSFW": ["no"] * n, "width": [640.0] * n}
            pq.write_table(pa.table(table), root / "metadata" / f"metadata_{i:0{width}d}.parquet")
    return {"image": np.concatenate(images), "text": np.concatenate(texts)}


def run(root: Path, memory: Path, **options: Any) -> Any:
    return import_embeddings(
        str(root), str(memory), **{"encoder": None, "config": EmbedConfig(), "runner": LocalRunner()} | options
    )
