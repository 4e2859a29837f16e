"""Recall of a memory's search, measured from outside: queries it has never seen, truth by brute force in numpy.

    uv run python benchmarks/recall.py MEMORY --queries OTHER_SHARD.tar [--n 1000]

Texts and pictures of a shard that is not in the memory are asked through ``Memory.search`` at its tuned settings and
compared with the exact answer over all stored vectors. Nothing here uses the package's own measuring code.
"""

import json
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro

from memory_builder import EncoderConfig, Memory
from memory_builder.images import decode_image
from memory_builder.shards import Pair, read_pairs


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What is asked, and of what."""

    memory: tyro.conf.Positional[str]
    """Folder of the memory."""
    queries: str
    """Shard whose pairs are the queries; not in the memory."""
    n: int = 1000
    """Queries of each kind."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Rows asked for."""
    model: str | None = None
    """Where the memory's model is now."""


def exact(memory: Memory, keys: str, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """f32[q, d] → (k-th best exact score f32[q], ids of the k best i64[q, k]) over every row that has this side."""
    folder = {"image": "img_emb", "text": "text_emb"}[keys]
    scores, ids = [], []
    for ordinal in memory.commits:
        vectors = np.load(memory.store.fetch(f"{folder}/{folder}_{ordinal:05d}.npy")).astype(np.float32)
        block = queries @ vectors.T
        block[:, ~vectors.any(axis=1)] = -np.inf
        best = np.argpartition(-block, min(k, block.shape[1] - 1), axis=1)[:, :k]
        scores.append(np.take_along_axis(block, best, 1))
        ids.append((ordinal << 32) + best)
    all_scores, all_ids = np.hstack(scores), np.hstack(ids)
    order = np.argsort(-all_scores, axis=1)[:, :k]
    return np.take_along_axis(all_scores, order, 1)[:, -1], np.take_along_axis(all_ids, order, 1)


def main(config: Recall) -> None:
    """Print a line for each query kind and key modality."""
    memory = Memory.open(config.memory, encoder=EncoderConfig(model=config.model) if config.model else None)
    pairs = [pair for pair in read_pairs(config.queries) if isinstance(pair, Pair)]
    pairs = pairs[:: max(1, len(pairs) // config.n)][: config.n]
    texts = [pair.caption or "" for pair in pairs]
    pictures = [pair.image or b"" for pair in pairs]
    pixels = np.stack([memory.encoder.preprocess(decode_image(picture)) for picture in pictures])
    asked = {
        "text": (texts, memory.encoder.encode_texts(texts).astype(np.float32)),
        "image": (pictures, memory.encoder.encode_images(pixels).astype(np.float32)),
    }
    print("keys   query  index                              recall@10  strict   95 % interval  n")
    for keys in memory.snapshot.indexes:
        key = json.loads(memory.store.read(f"{memory.snapshot.indexes[keys].index}/index.json"))["index_key"]
        for side, (given, vectors) in asked.items():
            hits = memory.search(**{side: given}, k=config.k, keys=keys)
            threshold, true_ids = exact(memory, keys, vectors, config.k)
            found = memory.vectors(hits.ids, keys).reshape(*hits.ids.shape, -1)
            scores = np.einsum("qd,qkd->qk", vectors, found)
            aware = ((scores >= threshold[:, None] - 1e-4) & (hits.ids >= 0)).mean(axis=1)
            strict = np.mean([np.isin(a, b).mean() for a, b in zip(hits.ids, true_ids, strict=True)])
            error = 1.96 * aware.std() / np.sqrt(len(aware))
            print(
                f"{keys:<6} {side:<6} {key:<34} {aware.mean():.4f}     {strict:.4f}   ± {error:.4f}       {len(aware)}"
            )


if __name__ == "__main__":
    main(tyro.cli(Recall))
