"""Class embeddings from texts and retrieved images."""

import numpy as np

from memory_builder.base.types import unit_rows
from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.with_memory.retrieved_context import RetrievedContext


def retrieved_centroids(retrieved: RetrievedContext, per_class: int) -> Floats:
    """f32[c, d] normalised mean of the first images retrieved for each class; zero without any."""
    return unit_rows(retrieved.class_vectors[:, :per_class].sum(axis=1))


def interpolate(texts: Floats, others: Floats, weight: float) -> Floats:
    """Interpolate f32[c, d] rows with ``weight`` on ``others`` → unit rows; a zero row of others keeps the text."""
    interpolated = unit_rows((1 - weight) * texts + weight * others)
    return np.where(others.any(axis=1, keepdims=True), interpolated, texts)
