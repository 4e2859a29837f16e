"""Neural priming: a class is its name's embedding interpolated with the mean image retrieved for the name.

Wallingford et al., Neural Priming for Sample-Efficient Adaptation (2023).
"""

from dataclasses import dataclass

from trainer.evaluate.numbers.metrics import Score, linear
from trainer.evaluate.with_memory.baselines.classes import interpolate, retrieved_centroids
from trainer.evaluate.with_memory.retrieved_context import RetrievedContext


@dataclass(frozen=True, kw_only=True, slots=True)
class Priming:
    """classifier = unit(alpha · text + (1 - alpha) · centroid); a class without retrieved rows keeps its text."""

    alpha: float = 0.5
    per_class: int = 16

    def score(self, retrieved: RetrievedContext) -> Score:
        centroids = retrieved_centroids(retrieved, self.per_class)
        return linear(retrieved.images, interpolate(retrieved.classifier, centroids, 1 - self.alpha))


GRID = tuple(Priming(alpha=alpha, per_class=n) for n in (16, 4, 32) for alpha in (0.5, 0.3, 0.7, 0.8, 0.9))
