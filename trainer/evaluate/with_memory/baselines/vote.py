"""kNN: a picture's nearest rows vote for the classes that their captions speak of."""

from dataclasses import dataclass

import numpy as np

from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import SCALE, Score
from trainer.evaluate.with_memory.names import NO_CLASS
from trainer.evaluate.with_memory.retrieved_context import Evidence


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionVote:
    """A caption votes for each class as much as its embedding is like that of the class's name."""

    k: int = 10
    sharpness: float = 20.0
    """A neighbour whose cosine is s weighs exp(sharpness · (s - 1))."""

    def score(self, evidence: Evidence) -> Score:
        def votes(part: slice) -> Floats:
            place, weight = evidence.place[part, : self.k], _weights(evidence, part, self.k, self.sharpness)
            total = np.zeros((len(place), len(evidence.classifier)), np.float32)
            for column in range(place.shape[1]):  # f32[b, c] at a time
                logits = SCALE * evidence.caption_vectors[place[:, column]] @ evidence.classifier.T
                share = np.exp(logits - logits.max(axis=1, keepdims=True))
                total += weight[:, column, None] * share / share.sum(axis=1, keepdims=True)
            total[(weight == 0).all(axis=1)] = -np.inf  # with no vote there is no answer
            return total

        return votes


@dataclass(frozen=True, kw_only=True, slots=True)
class NameVote:
    """A caption votes for the class whose very name stands in it: frozen-feature kNN with names as labels."""

    k: int = 10
    sharpness: float = 20.0

    def score(self, evidence: Evidence) -> Score:
        def votes(part: slice) -> Floats:
            named = evidence.caption_class[evidence.place[part, : self.k]]  # i64[b, k]
            weight = _weights(evidence, part, self.k, self.sharpness) * (named != NO_CLASS)
            total = np.zeros((len(named), len(evidence.classifier)), np.float32)
            np.add.at(total, (np.arange(len(named))[:, None], named), weight)
            total[total == 0] = -np.inf  # a class without a vote is no answer
            return total

        return votes


CAPTION_GRID = tuple(
    CaptionVote(k=k, sharpness=sharpness) for k in (10, 1, 5, 20, 50) for sharpness in (20.0, 5.0, 80.0)
)
NAME_GRID = tuple(NameVote(k=k, sharpness=sharpness) for k in (10, 1, 5, 20, 50) for sharpness in (20.0, 5.0, 80.0))


def _weights(evidence: Evidence, part: slice, k: int, sharpness: float) -> Floats:
    """f32[b, k]; 0 for a neighbour that is not there or says nothing."""
    weights: Floats = np.exp(sharpness * (evidence.similarity[part, :k] - 1)) * evidence.known[part, :k]
    return weights
