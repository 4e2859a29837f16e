"""What a frozen model makes of a subset, computed once: captions' embeddings, and pictures up to what learns."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from torch import Tensor

from memory_builder.base.progress import say
from memory_builder.base.types import Ids
from memory_builder.errors import UsageError
from memory_builder.model.encoder import Encoder
from memory_builder.storage.store import Store, sha256
from trainer.loop.config import NO_GROUP, LoopConfig
from trainer.loop.distributed import world
from trainer.loop.loop import autocast, is_bf16
from trainer.react.array_cache import Array, KeptRows
from trainer.react.augment import Look
from trainer.react.batches import PairSource, Read, plain_images, random_images
from trainer.react.config import DataConfig, Positives
from trainer.react.learner import ReactLearner
from trainer.react.subset import Pairs

TEXTS_PER_PART = 65_536
PICTURES_PER_PART = 2_048
PICTURES_AT_A_TIME = 64
CAPTIONS_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A model to be trained on a subset, and where what is computed once is kept."""

    encoder: Encoder
    learner: ReactLearner
    pairs: Pairs
    cache: Store
    data: DataConfig
    loop: LoopConfig

    def source(self) -> PairSource:
        """The subset's pairs as batches, after computing what can be computed once.

        Raises:
            UsageError: no pair has a class, and classes are asked for; a number is too large for the cache.
        """
        groups = _groups(self.pairs, self.data.positives)  # refused here, not after hours of computing
        return PairSource(
            n_pairs=len(self.pairs),
            images=self._images(),
            texts=self._texts(),
            groups=groups,
            augmentation=self.data.augmentation,
            n_readers=self.data.readers,
        )

    def _texts(self) -> Callable[[Ids], Tensor]:
        """Tokens where the text tower learns, else float16 embeddings, as a memory keeps them."""
        number, captions = self.pairs.distinct("caption")
        if self.learner.config.learns_texts:
            tokenizer = self.encoder.tokenizer
            return lambda pairs: tokenizer([captions[i] for i in number[pairs]])
        kept = self._kept("texts", len(captions), TEXTS_PER_PART, {})

        def embed(places: Ids) -> Array:
            chunks = (places[at : at + CAPTIONS_AT_A_TIME] for at in range(0, len(places), CAPTIONS_AT_A_TIME))
            return np.concatenate([self.encoder.encode_texts([captions[i] for i in chunk]) for chunk in chunks])

        kept.fill("captions", embed)
        return lambda pairs: torch.from_numpy(kept.read(number[pairs]))

    def _images(self) -> Callable[[int, Ids], Read]:
        if self.data.augmentation == "react":
            look = _look(self.encoder, self.loop.seed)
            return lambda epoch, pairs: partial(random_images, self.pairs.places(pairs), look, epoch)
        config = self.learner.config
        if not self.data.cache_layers or config.mode in ("locked-text", "full"):
            return lambda _, pairs: partial(self._plain, pairs)
        decisive = {"first": self.learner.first if config.learns_images else "all", "dtype": self.data.cache_dtype}
        bf16 = is_bf16(self.loop, self.encoder.device)
        kept = self._kept("images", len(self.pairs), PICTURES_PER_PART, decisive | {"bf16": bf16})
        kept.fill("frozen layers", self._frozen)
        return lambda _, pairs: partial(kept.read, pairs)

    def _plain(self, pairs: Ids) -> Array:
        return plain_images(self.pairs.places(pairs), self.encoder.preprocess)

    def _frozen(self, places: Ids) -> Array:
        device = self.encoder.device
        found = []
        for at in range(0, len(places), PICTURES_AT_A_TIME):
            pixels = torch.from_numpy(self._plain(places[at : at + PICTURES_AT_A_TIME])).to(device)
            with autocast(self.loop, device):
                found.append(_cast(self.learner.frozen_images(pixels).float().cpu().numpy(), self.data.cache_dtype))
        return np.concatenate(found)

    def _kept(self, what: str, n: int, rows: int, decisive: dict[str, Any]) -> KeptRows:
        """A folder of the cache, named after all that decides what is in it."""
        decisive = decisive | {"fingerprint": self.encoder.fingerprint, "subset": self.pairs.subset.digest}
        if self.loop.precision == "fp64":  # of others ``bf16`` tells the pictures, and captions are computed in fp32
            decisive |= {"fp64": True}
        folder = f"{what}/{sha256(json.dumps(decisive, sort_keys=True).encode())[:16]}"
        return KeptRows(self.cache, folder, n, rows)


def _look(encoder: Encoder, seed: int) -> Look:
    settings = open_clip.get_model_preprocess_cfg(encoder.model)
    return Look(size=encoder.image_size, mean=tuple(settings["mean"]), std=tuple(settings["std"]), seed=seed)


def _groups(pairs: Pairs, positives: Positives) -> Ids | None:
    """i64[n]: pairs of one number are right answers to each other; −1: only to themselves."""
    if positives == "own":
        return None
    numbers, values = pairs.distinct(positives)
    n_without = int((numbers == NO_GROUP).sum())
    if not values:
        raise UsageError(
            f"--positives {positives}: none of the {len(pairs):,} pairs of {pairs.subset.root} has a {positives}; "
            "name a subset that memory-builder retrieve wrote, or pairs whose .json has a class, or leave it out"
        )
    if n_without and world().is_first:
        say(f"--positives {positives}: {n_without:,} of {len(pairs):,} pairs have none, and answer to themselves alone")
    return numbers


def _cast(array: npt.NDArray[np.float32], dtype: str) -> Array:
    """The same numbers in another type. Raises UsageError where one is too large for it."""
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    too_large = np.isinf(cast) & np.isfinite(array)
    if too_large.any():
        raise UsageError(
            f"what frozen layers make of a picture reaches {np.abs(array[too_large]).max():,.0f}, more than {dtype} "
            f"holds ({np.finfo(dtype).max:,.0f}): say --cache-dtype float32, or --no-cache-layers"
        )
    return cast
