"""A frozen CLIP with the fusions of a run of ``train reco``; each call may name another memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from memory_builder.base.types import Ids, Modality, Scores, unit_rows
from memory_builder.catalog.trusted_sources import trusted_encoder
from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.templates import fill
from memory_builder.search.queries import Picture, query_vectors
from memory_builder.search.searchable import Searchable
from memory_builder.storage.records import decode_value
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import AVERAGE, TRAINABLE, assign, find_checkpoint, read_tensors
from trainer.loop.run_config import read_run, reading_settings
from trainer.reco.config import FusionConfig, LookupConfig
from trainer.reco.fusion import Reco, is_missing
from trainer.reco.lookup import Neighbours, look_up

BATCH = 1_024
"""Queries searched and fused at a time: their neighbours take k times as much memory."""
PromptOrder = Literal["average-then-refine", "refine-then-average"]
"""Refine the mean of a class's prompts with one search, or each prompt with its own and then average."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RecoModel:
    """A trained RECO model. Use ``RecoModel.load``."""

    reco: Reco
    lookup: LookupConfig
    encoder_config: Callable[[], EncoderConfig]
    """Where the frozen model is; called when a picture or text is encoded."""
    fingerprint: str
    """Fingerprint of the frozen model."""
    name: str
    """Run and step, for errors and results."""
    k: int
    """Number of neighbours."""

    @staticmethod
    def load(
        run: str,
        *,
        encoder: EncoderConfig | None = None,
        step: int | None = None,
        ema: bool = False,
        k: int | None = None,
    ) -> "RecoModel":
        """Load a run of ``train reco``.

        Args:
            run: folder of the run.
            encoder: where its frozen model is now (default: as recorded); the weights must be the same.
            step: step of the checkpoint (default: the newest).
            ema: load the moving average instead of the parameters.
            k: number of neighbours (default: as in training).

        Raises:
            UsageError: no such run, checkpoint or average; or a ``k`` for which no rank embeddings were trained.
            CorruptMemoryError: a checkpoint is damaged.
        """
        store = Store(run)
        record = read_run(store, "reco")
        checkpoint = find_checkpoint(store, step)
        with reading_settings(store):
            config, lookup = FusionConfig(**record["fusion"]), LookupConfig(**record["neighbours"]["lookup"])
            frozen, d = EncoderConfig(**record["encoder"]), decode_value(int, record["d"], where=store.root)
        if k is not None and (k < 1 or not config.k or (config.rank_embeddings and k > config.k)):
            raise UsageError(f"k {k}: {store.root} was trained with {config.k} neighbours, and cannot take {k}")
        reco = Reco(config, d)
        tensors = read_tensors(store, checkpoint, AVERAGE if ema else TRAINABLE)
        assign(dict(reco.named_parameters()), tensors, store.root)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return RecoModel(
            reco=reco.eval().requires_grad_(False).to(device),
            lookup=lookup,
            encoder_config=lambda: encoder or trusted_encoder(frozen, store.root),
            fingerprint=record["fingerprint"],
            name=f"{store.root} (step {checkpoint.step})",
            k=config.k if k is None else k,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen model.

        Raises:
            EncoderError: it cannot be loaded, or has other weights than in training.
        """
        encoder = load_encoder(self.encoder_config())
        if encoder.fingerprint != self.fingerprint:
            raise EncoderError(
                f"{self.name} refines a model with fingerprint {self.fingerprint[:12]}, {encoder.config.model} is "
                f"{encoder.fingerprint[:12]}: name the same weights"
            )
        return encoder

    def encode_image(self, images: Picture | Sequence[Picture], memory: Searchable | None = None) -> Scores:
        """One picture or several → f32[n, d] unit rows, refined with a memory, or the frozen model's without one."""
        _, vectors = query_vectors(None, images, None, encoder=lambda: self.encoder, d=self.reco.d)
        return vectors if memory is None else self.refine(vectors, "image", memory)

    def encode_text(self, texts: str | Sequence[str], memory: Searchable | None = None) -> Scores:
        """One text or several → f32[n, d] unit rows, refined with a memory, or the frozen model's without one."""
        _, vectors = query_vectors(texts, None, None, encoder=lambda: self.encoder, d=self.reco.d)
        return vectors if memory is None else self.refine(vectors, "text", memory)

    def refine(self, vectors: Scores, query_modality: Modality, memory: Searchable) -> Scores:
        """Search the neighbours of f32[n, d] unit rows and fuse them → f32[n, d] unit rows.

        Raises:
            EncoderError: the memory was built with another model.
            UsageError, IndexBuildError: the memory has no index of the modality to search.
        """
        self.check(memory)
        refined = np.empty((len(vectors), self.reco.d), np.float32)
        for block in _blocks(len(vectors)):
            neighbours = self._look_up(vectors[block], query_modality, memory)
            refined[block] = self._fuse(vectors[block], neighbours.vectors, query_modality)
        return refined

    def check(self, memory: Searchable) -> None:
        """Refuse a memory that was built with another model.

        Raises:
            EncoderError: the fingerprints differ.
        """
        if memory.description.fingerprint != self.fingerprint:
            raise EncoderError(
                f"{self.name} refines a model with fingerprint {self.fingerprint[:12]}, the memory was built with "
                f"{memory.description.model} ({memory.description.fingerprint[:12]}): build it with the same model"
            )

    def find(self, vectors: Scores, query_modality: Modality, memory: Searchable) -> Neighbours:
        """Search the neighbours of f32[n, d] unit rows."""
        n, k = len(vectors), self.k
        result = Neighbours(ids=np.empty((n, k), np.int64), vectors=np.empty((n, k, self.reco.d), np.float16))
        for block in _blocks(n):
            neighbours = self._look_up(vectors[block], query_modality, memory)
            result.ids[block], result.vectors[block] = neighbours.ids, neighbours.vectors
        return result

    def fuse(self, vectors: Scores, neighbours: npt.NDArray[np.float16], query_modality: Modality) -> Scores:
        """Fuse f32[n, d] unit rows with f16[n, k, d] neighbours, padded with zeros → f32[n, d] unit rows."""
        refined = np.empty((len(vectors), self.reco.d), np.float32)
        for block in _blocks(len(vectors)):
            refined[block] = self._fuse(vectors[block], neighbours[block], query_modality)
        return refined

    def _look_up(self, vectors: Scores, query_modality: Modality, memory: Searchable) -> Neighbours:
        """Search the neighbours of one block."""
        if self.k:
            return look_up(memory, vectors, query_modality, self.lookup, self.k)
        n, d = vectors.shape  # the control without retrieval
        return Neighbours(ids=np.empty((n, 0), np.int64), vectors=np.empty((n, 0, d), np.float16))

    def _fuse(self, vectors: Scores, neighbours: npt.NDArray[np.float16], query_modality: Modality) -> Scores:
        """Fuse one block."""
        with torch.inference_mode():
            query, context = (torch.from_numpy(rows).to(self.reco.logit_scale) for rows in (vectors, neighbours))
            refined: Scores = self.reco.of(query_modality)(query, context, is_missing(context)).cpu().numpy()
        return refined

    def classifier(
        self,
        classes: Sequence[str],
        templates: Sequence[str],
        memory: Searchable | None = None,
        order: PromptOrder = "average-then-refine",
    ) -> Scores:
        """Encode class names as the head of a cosine classifier, f32[c, d] unit rows. Every call searches the memory.

        The paper does not say which ``order`` it takes.

        Raises:
            UsageError: a template has no ``{c}`` or ``{}`` for the name; or see ``refine``.
            EncoderError: see ``refine``.
        """
        prompts = [fill(template, name) for name in classes for template in templates]
        rows = self.encode_text(prompts).reshape(len(classes), len(templates), -1)
        if memory is None:
            return unit_rows(rows.mean(axis=1))
        return refined_heads(rows, order, lambda texts, _: self.refine(texts, "text", memory))


def refined_heads(
    prompts: Scores, order: PromptOrder, refine: Callable[[Scores, Scores], Scores], permutation: Ids | None = None
) -> Scores:
    """f32[c, t, d] unit rows of prompts → f32[c, d] unit rows, some classes at a time.

    Args:
        prompts: prompts of each class.
        order: see ``PromptOrder``.
        refine: (f32[n, d] texts to refine, f32[n, d] queries to search for each) → f32[n, d].
        permutation: i64[c] the class whose prompts are refined for each class (default: its own). Queries are always
            its own prompts.
    """
    if order not in ("average-then-refine", "refine-then-average"):
        raise UsageError(f"order {order}: average-then-refine or refine-then-average")
    c, t, d = prompts.shape
    heads = np.empty((c, d), np.float32)
    step = BATCH if order == "average-then-refine" else max(1, BATCH // t)
    for at in range(0, c, step):
        block = slice(at, at + step)
        texts, queries = prompts[block if permutation is None else permutation[block]], prompts[block]
        if order == "average-then-refine":
            heads[block] = refine(unit_rows(texts.mean(axis=1)), unit_rows(queries.mean(axis=1)))
        else:
            refined = refine(texts.reshape(-1, d), queries.reshape(-1, d))
            heads[block] = unit_rows(refined.reshape(-1, t, d).mean(axis=1))
    return heads


def _blocks(n: int) -> Iterator[slice]:
    return (slice(at, at + BATCH) for at in range(0, n, BATCH))
