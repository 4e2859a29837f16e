"""Recall of a memory's search, measured from outside: queries it has never seen, truth by brute force in numpy.

    uv run python benchmarks/recall.py MEMORY --queries OTHER_SHARD.tar [--n 1000]
    uv run python benchmarks/recall.py MEMORY --made-up         # of a memory made by synthetic.py

Texts and pictures of a shard that is not in the memory, or made-up vectors of the same shape, are asked through
``Memory.search`` at every setting that the stored curve says no other beats, and compared with the exact answer over
all stored vectors. Nothing here uses the package's own measuring code. The tuned setting is marked; the last line is
the greatest difference between what the memory states and what was found.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro
from synthetic import Shape
from synthetic import queries as made_up_queries

from memory_builder import EncoderConfig, Memory
from memory_builder.curve import read_curves
from memory_builder.images import decode_image
from memory_builder.shards import Pair, read_pairs


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What is asked, and of what."""

    memory: tyro.conf.Positional[str]
    """Folder of the memory."""
    queries: str | None = None
    """Shard whose pairs are the queries; not in the memory."""
    made_up: bool = False
    """Ask made-up vectors instead."""
    n: int = 1000
    """Queries of each kind."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Rows asked for."""
    model: str | None = None
    """Where the memory's model is now."""


def asked(config: Recall, memory: Memory) -> dict[str, np.ndarray]:
    """Query modality → f32[n, d] unit rows."""
    if config.made_up:
        images, texts = made_up_queries(Shape(d=memory.description.d), config.n)
        return {"text": texts, "image": images}
    pairs = [pair for pair in read_pairs(str(config.queries)) if isinstance(pair, Pair)]
    pairs = pairs[:: max(1, len(pairs) // config.n)][: config.n]
    pixels = np.stack([memory.encoder.preprocess(decode_image(pair.image or b"")) for pair in pairs])
    found = {
        "text": memory.encoder.encode_texts([pair.caption or "" for pair in pairs]),
        "image": memory.encoder.encode_images(pixels),
    }
    return {side: vectors.astype(np.float32) for side, vectors in found.items()}


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


def points(memory: Memory) -> Iterator[tuple[str, str, int, int, float, bool]]:
    """(keys, side, nprobe, refine, stated recall@10, whether searches use it) of the stored curves."""
    for curve in read_curves(memory.store):
        tuned = memory.tuning(curve.keys)["sides"][curve.side]
        in_use = (tuned["nprobe"], tuned["refine"])
        for point in curve.points:
            if (point.nprobe, point.refine) != in_use:
                yield curve.keys, curve.side, point.nprobe, point.refine, point.recall["10"], False
        yield curve.keys, curve.side, *in_use, tuned["recall@10"], True


def main(config: Recall) -> None:
    """Print a line for each setting, query kind and key modality."""
    if (config.queries is None) != config.made_up:
        raise SystemExit("name a shard with --queries, or ask --made-up vectors")
    memory = Memory.open(config.memory, encoder=EncoderConfig(model=config.model) if config.model else None)
    vectors, truths, worst = asked(config, memory), {}, 0.0
    for keys in memory.snapshot.modalities:
        key = json.loads(memory.store.read(f"{memory.snapshot.indexes[keys].index}/index.json"))["index_key"]
        print(f"{keys} keys: {key}")
        truths |= {(keys, side): exact(memory, keys, queries, config.k) for side, queries in vectors.items()}
    print("keys   query  nprobe refine  stated  found   strict   95 % interval  difference")
    for keys, side, nprobe, refine, stated, in_use in points(memory):
        threshold, true_ids = truths[keys, side]
        hits = memory.search(vectors=vectors[side], k=config.k, keys=keys, nprobe=nprobe, refine=refine)
        found = memory.vectors(hits.ids, keys).reshape(*hits.ids.shape, -1)
        scores = np.einsum("qd,qkd->qk", vectors[side], found)
        aware = ((scores >= threshold[:, None] - 1e-4) & (hits.ids >= 0)).mean(axis=1)
        strict = np.mean([np.isin(a, b).mean() for a, b in zip(hits.ids, true_ids, strict=True)])
        error = 1.96 * aware.std() / np.sqrt(len(aware))
        worst = max(worst, abs(aware.mean() - stated))
        print(
            f"{keys:<6} {side:<6} {nprobe:>6} {refine:>6}  {stated:.4f}  {aware.mean():.4f}  {strict:.4f}   "
            f"± {error:.4f}        {aware.mean() - stated:+.4f}{'  ◀ in use' if in_use else ''}"
        )
    print(f"greatest difference between stated and found: {worst:.4f} (≤ 0.01)")


if __name__ == "__main__":
    main(tyro.cli(Recall))
