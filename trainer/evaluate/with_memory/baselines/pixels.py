"""Pixel nearest neighbour: label a picture like the memory's most similar one, without any model.

A control for copies: its accuracy shows how much of a benchmark is artwork that the memory holds.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from memory_builder.base.prefetch import map_ahead
from memory_builder.base.runner import available_threads
from memory_builder.memory import Memory
from memory_builder.model.images import BadImageError, decode_image
from memory_builder.readers.read import Pair, read_pairs
from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.sets.datasets import Dataset
from trainer.evaluate.with_memory.label_counts import LabelCounts

SIDE = 16
BLOCK = 4_096
"""Pictures of the memory compared at a time."""
NO_PICTURE = -np.inf
"""Correlation of a class without pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearestPictures:
    """The correlation of every picture with the most similar one of each class."""

    best: Floats
    """f32[n, c] largest correlation with a picture of the class; -inf without any."""
    n_read: int
    """Pictures of the memory that could be read and compared."""


def nearest_pixels(memory: Memory, dataset: Dataset, label_counts: LabelCounts, n_classes: int) -> NearestPictures:
    """Compare a set with all rows of the memory whose captions name one of its classes.

    Raises:
        SourceError: a source shard of the memory is missing.
    """
    queries = np.stack([_of_example(example.image) for example in dataset.examples()])  # f32[n, p]
    best = np.full((len(queries), n_classes), NO_PICTURE, np.float32)
    rows: list[Floats] = []
    labels: list[int] = []
    n_read = 0
    for pixels, label in _named_pictures(memory, label_counts):
        n_read += 1
        rows.append(pixels)
        labels.append(label)
        if len(rows) == BLOCK:
            _compare(queries, rows, labels, best)
            rows, labels = [], []
    if rows:
        _compare(queries, rows, labels, best)
    return NearestPictures(best=best, n_read=n_read)


def _compare(queries: Floats, rows: list[Floats], labels: list[int], best: Floats) -> None:
    """Update ``best`` with the correlations of these rows."""
    correlation, of_rows = queries @ np.stack(rows).T, np.array(labels)  # f32[n, r]
    for label in np.unique(of_rows):
        best[:, label] = np.maximum(best[:, label], correlation[:, of_rows == label].max(axis=1))


def _named_pictures(memory: Memory, label_counts: LabelCounts) -> Iterator[tuple[Floats, int]]:
    """(pixels, class) of the memory's rows whose captions name a class, shard by shard."""
    keys = memory.rows(label_counts.ids, ["key"])["key"].to_pylist()
    wanted: dict[str, dict[str, int]] = {}
    for row_id, key, label in zip(label_counts.ids.tolist(), keys, label_counts.labels.tolist(), strict=True):
        wanted.setdefault(memory.source(row_id), {})[key] = label
    with ThreadPoolExecutor(available_threads()) as threads:
        for uri, by_key in wanted.items():
            read = read_pairs(uri, require="image", image_key=memory.image_key)
            pairs = (pair for pair in read if isinstance(pair, Pair) and pair.key in by_key)
            for key, pixels in map_ahead(_of_pair, pairs, threads, 64):
                if pixels is not None:
                    yield pixels, by_key[key]


def _of_pair(pair: Pair) -> tuple[str, Floats | None]:
    try:
        return pair.key, _of_example(pair.image or b"")
    except BadImageError:  # changed since it was embedded
        return pair.key, None


def _of_example(image: bytes) -> Floats:
    """f32[p] a 16 × 16 thumbnail without its mean, at unit length: inner products are correlations."""
    small = decode_image(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32).ravel()
    pixels = pixels - pixels.mean()
    unit: Floats = pixels / np.float32(max(float(np.linalg.norm(pixels)), 1e-6))
    return unit
