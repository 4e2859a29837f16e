"""kNN: the nearest rows of a picture vote for the classes of their captions."""

from dataclasses import dataclass

import numpy as np

from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import SCALE, Score
from trainer.evaluate.with_memory.names import NO_CLASS
from trainer.evaluate.with_memory.retrieved_context import RetrievedContext


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionVote:
    """A caption votes for every class, by a softmax over the similarity to its name."""

    k: int = 10
    sharpness: float = 20.0
    """Weight of a neighbour of cosine s: exp(sharpness · (s - 1))."""

    def score(self, retrieved: RetrievedContext) -> Score:
        def votes(part: slice) -> Floats:
            index, weight = retrieved.index[part, : self.k], _weights(retrieved, part, self.k, self.sharpness)
            total = np.zeros((len(index), len(retrieved.classifier)), np.float32)
            for column in range(index.shape[1]):  # f32[b, c] at a time
                logits = SCALE * retrieved.caption_vectors[index[:, column]] @ retrieved.classifier.T
                odds = np.exp(logits - logits.max(axis=1, keepdims=True))
                total += weight[:, column, None] * odds / odds.sum(axis=1, keepdims=True)
            total[(weight == 0).all(axis=1)] = -np.inf  # abstain without a vote
            return total

        return votes


@dataclass(frozen=True, kw_only=True, slots=True)
class NameVote:
    """A caption votes for the class that it names: kNN with class names as labels."""

    k: int = 10
    sharpness: float = 20.0

    def score(self, retrieved: RetrievedContext) -> Score:
        def votes(part: slice) -> Floats:
            named = retrieved.caption_class[retrieved.index[part, : self.k]]  # i64[b, k]
            weight = _weights(retrieved, part, self.k, self.sharpness) * (named != NO_CLASS)
            total = np.zeros((len(named), len(retrieved.classifier)), np.float32)
            np.add.at(total, (np.arange(len(named))[:, None], named), weight)
            total[total == 0] = -np.inf  # abstain from a class without a vote
            return total

        return votes


CAPTION_GRID = tuple(CaptionVote(k=k, sharpness=s) for k in (10, 1, 5, 20, 50) for s in (20.0, 5.0, 80.0))
NAME_GRID = tuple(NameVote(k=k, sharpness=s) for k in (10, 1, 5, 20, 50) for s in (20.0, 5.0, 80.0))


def _weights(retrieved: RetrievedContext, part: slice, k: int, sharpness: float) -> Floats:
    """f32[b, k] weights of the neighbours; 0 for a missing one, or one without caption."""
    weights: Floats = np.exp(sharpness * (retrieved.similarity[part, :k] - 1)) * retrieved.known[part, :k]
    return weights
