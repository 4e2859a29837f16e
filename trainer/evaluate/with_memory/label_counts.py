"""Every row of a memory whose caption names a class: how many there are of each, their mean image, and which they are.

Reads all captions of the memory once.
"""

from dataclasses import dataclass

import numpy as np

from memory_builder.base.types import Ids, unit_rows
from memory_builder.memory import Memory
from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.with_memory.names import NO_CLASS, Names

BLOCK = 100_000
"""Rows looked through at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """What a memory holds of each class by name."""

    counts: Labels
    """i64[c] rows."""
    centroids: Floats
    """f32[c, d] unit mean of their images; zero where there is none."""
    ids: Ids
    """i64[m] the rows."""
    labels: Labels
    """i64[m] their classes."""


def take_census(memory: Memory, names: Names, n_classes: int) -> Census:
    """Look through the whole memory."""
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
    return Census(
        counts=np.bincount(labels, minlength=n_classes),
        centroids=unit_rows(sums),
        ids=np.concatenate(all_ids),
        labels=labels,
    )
