"""Recall of a memory's search, measured from outside: queries it has never seen, truth by brute force in numpy.

    uv run python benchmarks/recall.py MEMORY --queries OTHER_SHARD.tar [--n 1000]
    uv run python benchmarks/recall.py MEMORY --made-up         # of a memory made by synthetic.py
    uv run python benchmarks/recall.py MEMORY --held-out        # the rows its own curve was measured with

Texts and pictures of a shard that is not in the memory, or made-up vectors of the same shape, or the rows that were set
aside before training, are asked through ``Memory.search`` at every setting that the stored curve says no other beats,
and compared with the exact answer over all stored vectors. Nothing here uses the package's own measuring code. The
tuned setting is marked; the last line is the greatest difference between what the memory states and what was found.
Other queries than the rows set aside may be easier or harder than those.
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
from memory_builder.indexing.curve import read_curves
from memory_builder.model.images import decode_image
from memory_builder.readers.read import Pair, read_pairs


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What is asked, and of what."""

    memory: tyro.conf.Positional[str]
    """Folder of the memory."""
    queries: str | None = None
    """Shard whose pairs are the queries; not in the memory."""
    made_up: bool = False
    """Ask made-up vectors instead."""
    held_out: bool = False
    """Ask all rows that were set aside, each without itself among the answers."""
    n: int = 1000
    """Queries of each kind, of the other two."""
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Rows asked for."""
    model: str | None = None
    """Where the memory's model is now."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Queries of one kind, and what each must not find."""

    vectors: np.ndarray
    """f32[q, d] unit rows."""
    own: np.ndarray
    """i64[q] the row each of them is; -1 where it is none."""


def from_outside(config: Recall, memory: Memory) -> dict[str, Asked]:
    """Query modality → queries that are no rows of the memory."""
    if config.made_up:
        images, texts = made_up_queries(Shape(d=memory.description.d), config.n)
        return {"text": no_rows(texts), "image": no_rows(images)}
    pairs = [pair for pair in read_pairs(str(config.queries)) if isinstance(pair, Pair)]
    pairs = pairs[:: max(1, len(pairs) // config.n)][: config.n]
    pixels = np.stack([memory.encoder.preprocess(decode_image(pair.image or b"")) for pair in pairs])
    found = {
        "text": memory.encoder.encode_texts([pair.caption or "" for pair in pairs]),
        "image": memory.encoder.encode_images(pixels),
    }
    return {side: no_rows(vectors.astype(np.float32)) for side, vectors in found.items()}


def no_rows(vectors: np.ndarray) -> Asked:
    """Queries that need not be kept from finding themselves."""
    return Asked(vectors=vectors, own=np.full(len(vectors), -1))


def set_aside(memory: Memory, keys: str) -> dict[str, Asked]:
    """Query modality → the rows that the index of these keys was measured with."""
    held = np.load(memory.store.fetch(f"{memory.snapshot.indexes[keys].index}/held_out.npy"))
    found = {}
    for side in ("text", "image"):
        vectors = memory.vectors(held, side)
        there = vectors.any(axis=1)
        units = vectors[there] / np.linalg.norm(vectors[there], axis=1, keepdims=True)
        found[side] = Asked(vectors=units, own=held[there])
    return found


def exact(memory: Memory, keys: str, asked: Asked, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(k-th best exact score f32[q], the k best i64[q, k]) over every row that has this side, but for its own."""
    queries = asked.vectors
    folder = {"image": "img_emb", "text": "text_emb"}[keys]
    scores, ids = [], []
    for ordinal in memory.commits:
        vectors = np.load(memory.store.fetch(f"{folder}/{folder}_{ordinal:05d}.npy")).astype(np.float32)
        block = queries @ vectors.T
        block[:, ~vectors.any(axis=1)] = -np.inf
        ours = np.flatnonzero(asked.own >> 32 == ordinal)
        block[ours, asked.own[ours] & 0xFFFFFFFF] = -np.inf
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


def search(memory: Memory, asked: Asked, keys: str, k: int, nprobe: int, refine: int) -> np.ndarray:
    """i64[q, k] the rows found, without each query's own."""
    ids = memory.search(vectors=asked.vectors, k=k + 1, keys=keys, nprobe=nprobe, refine=refine).ids
    order = np.argsort(ids == asked.own[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(np.where(ids == asked.own[:, None], -1, ids), order, 1)


def main(config: Recall) -> None:
    """Print a line for each setting, query kind and key modality."""
    if (config.queries is not None) + config.made_up + config.held_out != 1:
        raise SystemExit("name a shard with --queries, or ask --made-up vectors, or the rows --held-out")
    memory = Memory.open(config.memory, encoder=EncoderConfig(model=config.model) if config.model else None)
    all_asked, truths, worst = {}, {}, 0.0
    for keys in memory.snapshot.modalities:
        key = json.loads(memory.store.read(f"{memory.snapshot.indexes[keys].index}/index.json"))["index_key"]
        print(f"{keys} keys: {key}")
        asked = set_aside(memory, keys) if config.held_out else from_outside(config, memory)
        all_asked |= {(keys, side): queries for side, queries in asked.items()}
        truths |= {(keys, side): exact(memory, keys, queries, config.k) for side, queries in asked.items()}
    print("keys   query  nprobe refine  stated  found   strict   95 % interval  difference")
    for keys, side, nprobe, refine, stated, in_use in points(memory):
        queries, (threshold, true_ids) = all_asked[keys, side], truths[keys, side]
        ids = search(memory, queries, keys, config.k, nprobe, refine)
        found = memory.vectors(ids, keys).reshape(*ids.shape, -1)
        scores = np.einsum("qd,qkd->qk", queries.vectors, found)
        aware = ((scores >= threshold[:, None] - 1e-4) & (ids >= 0)).mean(axis=1)
        by_id = np.array([np.isin(a, b).mean() for a, b in zip(ids, true_ids, strict=True)])
        # Of the rows set aside every other one made the curve; the setting that came of it is told by the rest.
        told = slice(int(in_use), None, 2) if config.held_out else slice(None)
        aware, strict = aware[told], by_id[told].mean()
        error = 1.96 * aware.std() / np.sqrt(len(aware))
        worst = max(worst, abs(aware.mean() - stated))
        print(
            f"{keys:<6} {side:<6} {nprobe:>6} {refine:>6}  {stated:.4f}  {aware.mean():.4f}  {strict:.4f}   "
            f"± {error:.4f}        {aware.mean() - stated:+.4f}{'  ◀ in use' if in_use else ''}"
        )
    print(f"greatest difference between stated and found: {worst:.4f} (≤ 0.01)")


if __name__ == "__main__":
    main(tyro.cli(Recall))
