"""RECO's training: the fusions of images and of texts, from stored embeddings and neighbours, without the frozen CLIP.

Iscen et al., Retrieval-Enhanced Contrastive Vision-Text Models (ICLR 2024), section 3.3: refined images are aligned
with refined texts, and each with the unrefined embeddings of the other modality, so that either can be refined alone.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from memory_builder.base.prefetch import map_ahead
from trainer.loop.config import Positives
from trainer.loop.gradient_cache import Batch
from trainer.loop.losses import Gathered, clamp_logit_scale, info_nce
from trainer.loop.sampler import BatchIndices
from trainer.loop.train_state import Parameters
from trainer.reco.fusion import Reco, is_missing
from trainer.reco.neighbour_table import NeighbourTable

IMAGE, TEXT, REFINED_IMAGE, REFINED_TEXT = range(4)
TERMS = ((REFINED_IMAGE, REFINED_TEXT), (REFINED_IMAGE, TEXT), (IMAGE, REFINED_TEXT))
"""Pairs of embeddings that the loss aligns."""
AHEAD = 2
"""Batches read ahead."""


class RecoLearner:
    """A ``trainer.loop.gradient_cache.Learner`` of batches ``vectors``: f16[b, 2 + 2 k, d], see ``vectors_path``."""

    def __init__(self, reco: Reco) -> None:
        self.reco = reco
        self.parameters: Parameters = dict(reco.named_parameters())

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """(images, texts, refined images, refined texts), unit rows."""
        vectors = batch["vectors"].to(self.reco.logit_scale.dtype)
        k, stored = self.reco.config.k, vectors.shape[1] // 2 - 1
        image, text = normalize(vectors[:, 0], dim=-1), normalize(vectors[:, 1], dim=-1)
        of_image, of_text = vectors[:, 2 : 2 + k], vectors[:, 2 + stored : 2 + stored + k]
        return (
            image,
            text,
            self.reco.image(image, of_image, is_missing(of_image)),
            self.reco.text(text, of_text, is_missing(of_text)),
        )

    def loss(self, gathered: Gathered) -> Tensor:
        """The sum of three symmetric InfoNCE losses with one temperature."""
        scale = self.reco.logit_scale.exp()
        return torch.stack([info_nce(gathered, a, b, scale) for a, b in TERMS]).sum()

    def after_step(self) -> None:
        """Clamp the temperature."""
        clamp_logit_scale(self.reco.logit_scale)

    def metrics(self) -> dict[str, float]:
        """The temperature."""
        return {"logit_scale": float(self.reco.logit_scale.detach().exp())}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSource:
    """A ``trainer.loop.loop.BatchSource`` of stored neighbours."""

    table: NeighbourTable
    positives: Positives

    @property
    def n_pairs(self) -> int:
        return len(self.table)

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """Yield batches with ``vectors`` and, if equal captions are positives of each other, ``group``."""
        with ThreadPoolExecutor(AHEAD) as threads:
            yield from map_ahead(partial(_read, self), indices, threads, AHEAD)


def _read(source: TableSource, current: BatchIndices) -> Batch:
    batch = {"vectors": torch.from_numpy(source.table.read(current.pairs))}
    if source.positives == "caption":
        batch["group"] = torch.from_numpy(source.table.captions[current.pairs])
    return batch
