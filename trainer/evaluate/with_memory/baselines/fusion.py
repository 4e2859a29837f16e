"""Mean fusion: interpolate a picture's embedding with the mean of its neighbours' captions, then classify by names.

The control of Iscen et al., Retrieval-Enhanced Contrastive Vision-Text Models (2024), for a trained fusion.
"""

from dataclasses import dataclass

import numpy as np

from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import Score, linear
from trainer.evaluate.with_memory.baselines.classes import interpolate
from trainer.evaluate.with_memory.retrieved_context import RetrievedContext


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanFusion:
    """query = unit((1 - share) · image + share · mean of k captions)."""

    k: int = 10
    share: float = 0.5
    """Interpolation weight of the captions; results hold it under this name."""

    def score(self, retrieved: RetrievedContext) -> Score:
        def logits(part: slice) -> Floats:
            known = retrieved.known[part, : self.k, None]
            captions = retrieved.caption_vectors[retrieved.index[part, : self.k]] * known  # f32[b, k, d]
            means = captions.sum(axis=1) / np.maximum(known.sum(axis=1), 1).astype(np.float32)
            refined = interpolate(retrieved.images[part], means, self.share)
            return linear(refined, retrieved.classifier)(slice(None))

        return logits


GRID = tuple(MeanFusion(k=k, share=share) for k in (10, 1, 5, 20, 50) for share in (0.5, 0.1, 0.25, 0.75))
