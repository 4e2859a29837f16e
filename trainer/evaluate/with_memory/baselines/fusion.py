"""Mean fusion: a picture's embedding is moved towards the mean of its neighbours' captions, then classified by names.

The control of Iscen et al., Retrieval-Enhanced Contrastive Vision-Text Models (2024), for a fusion that is learnt.
"""

from dataclasses import dataclass

import numpy as np

from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import Score, linear
from trainer.evaluate.with_memory.baselines.classes import mixed
from trainer.evaluate.with_memory.retrieved_context import Evidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Fusion:
    """query = unit((1 - share) · image + share · mean of k captions)."""

    k: int = 10
    share: float = 0.5

    def score(self, evidence: Evidence) -> Score:
        def logits(part: slice) -> Floats:
            known = evidence.known[part, : self.k, None]
            captions = evidence.caption_vectors[evidence.place[part, : self.k]] * known  # f32[b, k, d]
            means = captions.sum(axis=1) / np.maximum(known.sum(axis=1), 1).astype(np.float32)
            refined = mixed(evidence.images[part], means, self.share)
            return linear(refined, evidence.classifier)(slice(None))

        return logits


GRID = tuple(Fusion(k=k, share=share) for k in (10, 1, 5, 20, 50) for share in (0.5, 0.1, 0.25, 0.75))
