"""Tip-Adapter's cache, filled by retrieval: logits of the class names plus affinities to the rows retrieved for each.

Zhang et al., Tip-Adapter: Training-free Adaption of CLIP (2022), with its alpha and beta as defaults.
"""

from dataclasses import dataclass

import numpy as np

from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import Score, linear
from trainer.evaluate.with_memory.retrieved_context import RetrievedContext


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """logits = 100 · cosine to the name + alpha · Σ over the class's rows of exp(-beta · (1 - cosine to the row))."""

    alpha: float = 1.0
    beta: float = 5.5
    per_class: int = 16

    def score(self, retrieved: RetrievedContext) -> Score:
        by_name = linear(retrieved.images, retrieved.classifier)
        rows = retrieved.class_vectors[:, : self.per_class]  # f32[c, j, d]
        present = np.abs(rows).max(axis=2) > 0

        def logits(part: slice) -> Floats:
            total = by_name(part)
            for column in range(rows.shape[1]):  # f32[b, c] at a time
                cosine = retrieved.images[part] @ rows[:, column].T
                total += self.alpha * np.exp(self.beta * (cosine - 1)) * present[:, column]
            return total

        return logits


GRID = tuple(
    Cache(alpha=alpha, beta=beta, per_class=per_class)
    for per_class in (16, 4)
    for alpha in (1.0, 0.3, 3.0, 10.0)
    for beta in (5.5, 2.0, 15.0)
)
