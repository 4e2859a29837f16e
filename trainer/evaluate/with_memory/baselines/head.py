"""A linear head trained on retrieved pictures, interpolated with the class names that initialise it.

REAL-Linear: Parashar et al., The Neglected Tails in Vision-Language Models (2024). The interpolation is WiSE-FT's:
Wortsman et al., Robust fine-tuning of zero-shot models (2022).
"""

from dataclasses import dataclass

import numpy as np

from memory_builder.base.types import NO_ROW
from trainer.evaluate.numbers.metrics import Score, linear
from trainer.evaluate.tasks.heads import HeadParams, train_head
from trainer.evaluate.with_memory.baselines.classes import interpolate
from trainer.evaluate.with_memory.retrieved_context import RetrievedContext


@dataclass(frozen=True, kw_only=True, slots=True)
class WiseHead:
    """classifier = unit((1 - alpha) · text + alpha · head)."""

    learning_rate: float = 1e-4
    alpha: float = 0.5
    per_class: int = 16

    def score(self, retrieved: RetrievedContext) -> Score:
        present = retrieved.class_ids[:, : self.per_class] != NO_ROW  # bool[c, j]
        labels = np.repeat(np.arange(len(present)), present.sum(axis=1))
        features = retrieved.class_vectors[:, : self.per_class][present]
        params = HeadParams(learning_rate=self.learning_rate)
        head = train_head(features, labels, retrieved.classifier, params, seed=0)
        return linear(retrieved.images, interpolate(retrieved.classifier, head, self.alpha))


GRID = tuple(WiseHead(learning_rate=lr, alpha=alpha) for lr in (1e-4, 1e-3) for alpha in (0.5, 0.25, 0.75, 1.0))
