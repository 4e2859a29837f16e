"""The rows of a memory whose captions name a class: their number and mean image by class.

Reads all captions of the memory once.
"""

from dataclasses import dataclass

import numpy as np

from memory_builder.base.types import Ids, unit_rows
from memory_builder.memory import Memory
from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.with_memory.names import NO_CLASS, ClassNames

BLOCK = 100_000
"""Rows read at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCounts:
    """Rows of a memory whose captions name a class."""

    counts: Labels
    """i64[c] number of rows."""
    centroids: Floats
    """f32[c, d] normalised mean of their images; zero without rows."""
    ids: Ids
    """i64[m] row ids."""
    labels: Labels
    """i64[m] their classes."""


def count_labels(memory: Memory, names: ClassNames, n_classes: int) -> LabelCounts:
    """Find the class named by the caption of every row of a memory."""
    sums = np.zeros((n_classes, memory.description.d), np.float64)
    all_ids, all_labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for ordinal in memory.commits:
        in_shard = memory.row_ids(ordinal)
        for start in range(0, len(in_shard), BLOCK):
            ids = in_shard[start : start + BLOCK]
            captions = memory.rows(ids, ["caption"])["caption"].to_pylist()
            labels = np.array([names.label(caption or "") for caption in captions], np.int64)
            named = labels != NO_CLASS
            np.add.at(sums, labels[named], memory.vectors(ids[named], "image"))
            all_ids.append(ids[named])
            all_labels.append(labels[named])
    labels = np.concatenate(all_labels)
    return LabelCounts(
        counts=np.bincount(labels, minlength=n_classes),
        centroids=unit_rows(sums),
        ids=np.concatenate(all_ids),
        labels=labels,
    )
