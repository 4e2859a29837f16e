"""A CLIP that looks things up: a frozen model, what ``train reco`` learnt, and a memory, now this and now that one."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from memory_builder.base.types import Modality, Scores, unit_rows
from memory_builder.catalog.trusted import trusted_encoder
from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.templates import fill
from memory_builder.search.queries import Picture, query_vectors
from memory_builder.search.searchable import Searchable
from memory_builder.storage.records import decode_value
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import AVERAGE, TRAINABLE, assign, chosen_state, read_tensors
from trainer.loop.run_config import read_run, reading_settings
from trainer.reco.config import FusionConfig, LookupConfig
from trainer.reco.fusion import Reco, is_missing
from trainer.reco.lookup import Found, look_up

BATCH = 1_024
"""Queries looked up and refined at a time."""
HEADS_KEPT = 8

Order = Literal["average-then-refine", "refine-then-average"]
"""Of a class's prompts: one look-up with their mean, or one with each."""


class RecoModel:
    """Use ``RecoModel.load``."""

    def __init__(
        self,
        reco: Reco,
        lookup: LookupConfig,
        encoder: Callable[[], EncoderConfig],
        fingerprint: str,
        name: str,
        k: int,
    ) -> None:
        self.reco, self.lookup, self.fingerprint, self.name, self.k = reco, lookup, fingerprint, name, k
        self._encoder_of_run = encoder
        self._heads: dict[str, Scores] = {}

    @staticmethod
    def load(
        run: str,
        *,
        encoder: EncoderConfig | None = None,
        step: int | None = None,
        ema: bool = False,
        k: int | None = None,
    ) -> "RecoModel":
        """A run of ``train reco``.

        Args:
            run: its folder.
            encoder: where its frozen model is now, if not where it was; weights must be the same.
            step: a checkpoint's step; the newest unless given.
            ema: the moving average instead of the parameters themselves.
            k: neighbours to look up, if not as many as in training.

        Raises:
            UsageError: there is no such run, checkpoint or average; or another k where ranks were learnt.
            CorruptMemoryError: a checkpoint is damaged.
        """
        store = Store(run)
        record = read_run(store, "reco")
        state = chosen_state(store, step)
        with reading_settings(store):
            config, lookup = FusionConfig(**record["fusion"]), LookupConfig(**record["neighbours"]["lookup"])
            frozen, d = EncoderConfig(**record["encoder"]), decode_value(int, record["d"], where=store.root)
        if k is not None and (k < 1 or not config.k or (config.rank_embeddings and k > config.k)):
            raise UsageError(f"k {k}: {store.root} was trained with {config.k}, and cannot be asked with that many")
        reco = Reco(config, d)
        assign(dict(reco.named_parameters()), read_tensors(store, state, AVERAGE if ema else TRAINABLE), store.root)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return RecoModel(
            reco.eval().requires_grad_(False).to(device),
            lookup,
            lambda: encoder or trusted_encoder(frozen, store.root),
            record["fingerprint"],
            f"{store.root} (step {state.step})",
            config.k if k is None else k,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen model.

        Raises:
            EncoderError: it cannot be loaded, or is not the one that was refined.
        """
        encoder = load_encoder(self._encoder_of_run())
        if encoder.fingerprint != self.fingerprint:
            raise EncoderError(
                f"{self.name} refines a model with fingerprint {self.fingerprint[:12]}, {encoder.config.model} is "
                f"{encoder.fingerprint[:12]}: name the same weights"
            )
        return encoder

    def encode_image(self, images: Picture | Sequence[Picture], memory: Searchable | None = None) -> Scores:
        """One picture or several → f32[n, d] unit rows, refined if there is a memory, else the frozen model's own."""
        _, vectors = query_vectors(None, images, None, encoder=lambda: self.encoder, d=self.reco.d)
        return vectors if memory is None else self.refine(vectors, "image", memory)

    def encode_text(self, texts: str | Sequence[str], memory: Searchable | None = None) -> Scores:
        """One text or several → f32[n, d] unit rows, likewise."""
        _, vectors = query_vectors(texts, None, None, encoder=lambda: self.encoder, d=self.reco.d)
        return vectors if memory is None else self.refine(vectors, "text", memory)

    def refine(self, vectors: Scores, side: Modality, memory: Searchable) -> Scores:
        """f32[n, d] unit rows of the frozen model → f32[n, d] unit rows.

        Raises:
            EncoderError: the memory was built with another model.
            UsageError, IndexBuildError: the memory has no index of what this side searches.
        """
        self.check(memory)
        refined = np.empty((len(vectors), self.reco.d), np.float32)
        for at in range(0, len(vectors), BATCH):  # neighbours are k times what they refine: they come and go
            some = vectors[at : at + BATCH]
            refined[at : at + BATCH] = self.fuse(some, self.find(some, side, memory).vectors, side)
        return refined

    def check(self, memory: Searchable) -> None:
        """Refuse a memory whose vectors are not those of the model that is refined.

        Raises:
            EncoderError
        """
        if memory.description.fingerprint != self.fingerprint:
            raise EncoderError(
                f"{self.name} refines a model with fingerprint {self.fingerprint[:12]}, the memory was built with "
                f"{memory.description.model} ({memory.description.fingerprint[:12]}): build it with the same model"
            )

    def find(self, vectors: Scores, side: Modality, memory: Searchable) -> Found:
        """What f32[n, d] unit rows are refined with."""
        n, k = len(vectors), self.k
        ids, found = np.zeros((n, k), np.int64), np.zeros((n, k, self.reco.d), np.float16)
        for at in range(0, n if k else 0, BATCH):  # k is 0 in the control without retrieval
            block = look_up(memory, vectors[at : at + BATCH], side, self.lookup, k)
            ids[at : at + BATCH], found[at : at + BATCH] = block.ids, block.vectors
        return Found(ids=ids, vectors=found)

    def fuse(self, vectors: Scores, found: npt.NDArray[np.float16], side: Modality) -> Scores:
        """f32[n, d] unit rows and f16[n, k, d] neighbours, zeros where too few → f32[n, d] unit rows."""
        fused = np.empty((len(vectors), self.reco.d), np.float32)
        with torch.inference_mode():
            for at in range(0, len(vectors), BATCH):
                some = slice(at, at + BATCH)
                query, neighbours = (
                    torch.from_numpy(rows[some]).to(self.reco.logit_scale) for rows in (vectors, found)
                )
                refined = self.reco.side(side)(query, neighbours, is_missing(neighbours))
                fused[some] = refined.cpu().numpy()
        return fused

    def classifier(
        self,
        classes: Sequence[str],
        templates: Sequence[str],
        memory: Searchable | None = None,
        order: Order = "average-then-refine",
    ) -> Scores:
        """f32[c, d] unit rows: a head for classification by cosine. Kept, and looked up once for each memory.

        The paper does not say which order it takes.

        Raises:
            UsageError: a template has no place, ``{c}`` or ``{}``, for the name; or see ``refine``.
            EncoderError: see ``refine``.
        """
        asked = None if memory is None else (memory.description, memory.snapshot)
        key = repr((tuple(classes), tuple(templates), order, asked))
        if key not in self._heads:
            prompts = [[fill(template, name) for template in templates] for name in classes]
            encoded = self.encode_text([prompt for some in prompts for prompt in some])
            rows = encoded.reshape(len(classes), len(templates), -1)
            if memory is None:
                head = unit_rows(rows.mean(axis=1))
            else:
                head = refined_heads(rows, rows, order, lambda some, _: self.refine(some, "text", memory))
            self._heads = dict(list(self._heads.items())[1 - HEADS_KEPT :]) | {key: head}
        return self._heads[key]


def refined_heads(
    prompts: Scores,
    askers: Scores,
    order: Order,
    refine: Callable[[Scores, Scores], Scores],
    named: npt.NDArray[np.int64] | None = None,
) -> Scores:
    """f32[c, t, d] unit rows of prompts → f32[c, d] unit rows, some classes at a time.

    Args:
        prompts: what is refined.
        askers: f32[c, t, d], what is looked up for it: the prompts themselves, but in controls.
        order: see there.
        refine: (f32[n, d] rows, f32[n, d] what is looked up for each) → f32[n, d].
        named: i64[c] by whose prompts each class goes; its own unless given.
    """
    if order not in ("average-then-refine", "refine-then-average"):
        raise UsageError(f"order {order}: average-then-refine or refine-then-average")
    c, t, d = prompts.shape
    heads = np.empty((c, d), np.float32)
    step = BATCH if order == "average-then-refine" else max(1, BATCH // t)
    for at in range(0, c, step):
        some = slice(at, at + step)
        texts, asked = prompts[some if named is None else named[some]], askers[some]
        if order == "average-then-refine":
            heads[some] = refine(unit_rows(texts.mean(axis=1)), unit_rows(asked.mean(axis=1)))
        else:
            refined = refine(texts.reshape(-1, d), asked.reshape(-1, d))
            heads[some] = unit_rows(refined.reshape(-1, t, d).mean(axis=1))
    return heads
