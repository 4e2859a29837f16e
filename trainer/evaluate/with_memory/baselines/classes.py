"""Class embeddings made of text and retrieved images."""

import numpy as np

from memory_builder.base.types import unit_rows
from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.with_memory.retrieved_context import Evidence


def retrieved_centroids(evidence: Evidence, per_class: int) -> Floats:
    """f32[c, d] unit mean of the first rows that each class finds; zero where there is none."""
    return unit_rows(evidence.class_vectors[:, :per_class].sum(axis=1))


def mixed(texts: Floats, others: Floats, share: float) -> Floats:
    """f32[c, d] unit rows: ``share`` of others; a class whose other row is zero keeps its text."""
    mixture = unit_rows((1 - share) * texts + share * others)
    return np.where(others.any(axis=1, keepdims=True), mixture, texts)
