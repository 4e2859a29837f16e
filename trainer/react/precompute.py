"""Outputs of the frozen layers for a subset, computed once: caption embeddings, and image tokens or embeddings."""

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

from memory_builder.base.log import logger
from memory_builder.base.types import Ids
from memory_builder.errors import UsageError
from memory_builder.model.encoder import Encoder
from memory_builder.storage.store import Store, sha256
from trainer.loop.config import NO_GROUP, LoopConfig
from trainer.loop.distributed import world
from trainer.loop.loop import is_bf16
from trainer.react.array_cache import Array, ArrayCache
from trainer.react.augment import AugmentConfig
from trainer.react.batches import ImageInput, PairSource, Read, TextInput, augmented_images, plain_images
from trainer.react.config import DataConfig, SubsetPositives
from trainer.react.learner import ReactLearner
from trainer.react.subset import SubsetPairs

TEXTS_PER_PART = 65_536
PICTURES_PER_PART = 2_048
PICTURES_AT_A_TIME = 64
CAPTIONS_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Precompute:
    """A model, the subset it is trained on, and the store that caches the outputs of its frozen layers."""

    encoder: Encoder
    learner: ReactLearner
    pairs: SubsetPairs
    cache: Store
    data: DataConfig
    loop: LoopConfig

    def source(self) -> PairSource:
        """The training pairs as batches, once captions and frozen layers are computed.

        Raises:
            UsageError: no pair has a class, and --positives asks for it; a number is too large for the cache.
        """
        groups = _groups(self.pairs, self.data.positives)  # refused here, not after hours of computing
        image_input, read_images = self._images()
        text_input, texts = self._texts()
        return PairSource(
            n_pairs=len(self.pairs),
            image_input=image_input,
            read_images=read_images,
            text_input=text_input,
            texts=texts,
            groups=groups,
            augmentation=self.data.augmentation,
            n_readers=self.data.readers,
        )

    def _texts(self) -> tuple[TextInput, Callable[[Ids], Tensor]]:
        """Captions as tokens if the text tower is trained, else as float16 embeddings, as a memory stores them."""
        number, captions = self.pairs.distinct("caption")
        if self.learner.config.trains_texts:
            tokenizer = self.encoder.tokenizer
            return "text_tokens", lambda pairs: tokenizer([captions[i] for i in number[pairs]])
        cache = self._array_cache("texts", len(captions), TEXTS_PER_PART, {})

        def embed(numbers: Ids) -> Array:
            chunks = (numbers[at : at + CAPTIONS_AT_A_TIME] for at in range(0, len(numbers), CAPTIONS_AT_A_TIME))
            return np.concatenate([self.encoder.encode_texts([captions[i] for i in chunk]) for chunk in chunks])

        cache.fill("captions", embed)
        return "text_embeddings", lambda pairs: torch.from_numpy(cache.read(number[pairs]))

    def _images(self) -> tuple[ImageInput, Callable[[int, Ids], Read]]:
        """Pictures, augmented or not, or the outputs of the frozen layers."""
        if self.data.augmentation == "react":
            augment = _augment_config(self.encoder, self.loop.seed)
            locations = self.pairs.locations
            return "normalised_pixels", lambda epoch, pairs: partial(augmented_images, locations(pairs), augment, epoch)
        config = self.learner.config
        if not self.data.cache_layers or config.mode in ("locked-text", "full"):
            return "pixels", lambda _, pairs: partial(self._pixels, pairs)
        decisive = {"first": self.learner.first if config.trains_images else "all", "dtype": self.data.cache_dtype}
        bf16 = is_bf16(self.loop, self.encoder.device)
        cache = self._array_cache("images", len(self.pairs), PICTURES_PER_PART, decisive | {"bf16": bf16})
        cache.fill("frozen layers", self._frozen_outputs)
        image_input: ImageInput = "image_tokens" if config.trains_images else "image_embeddings"
        return image_input, lambda _, pairs: partial(cache.read, pairs)

    def _pixels(self, pairs: Ids) -> Array:
        return plain_images(self.pairs.locations(pairs), self.encoder.preprocess)

    def _frozen_outputs(self, pairs: Ids) -> Array:
        """Outputs of the frozen layers: [m, tokens, width], or [m, d] of a frozen tower."""
        device, outputs = self.encoder.device, []
        for at in range(0, len(pairs), PICTURES_AT_A_TIME):
            pixels = torch.from_numpy(self._pixels(pairs[at : at + PICTURES_AT_A_TIME])).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16(self.loop, device)):
                outputs.append(_cast(self.learner.frozen_outputs(pixels).float().cpu().numpy(), self.data.cache_dtype))
        return np.concatenate(outputs)

    def _array_cache(self, what: str, n: int, rows: int, decisive: dict[str, Any]) -> ArrayCache:
        """A folder of the cache, named by a hash of all settings that its rows depend on."""
        decisive = decisive | {"fingerprint": self.encoder.fingerprint, "subset": self.pairs.subset.digest}
        if self.loop.precision == "fp64":  # ``bf16`` covers the other precisions; captions are computed in fp32
            decisive |= {"fp64": True}
        folder = f"{what}/{sha256(json.dumps(decisive, sort_keys=True).encode())[:16]}"
        return ArrayCache(self.cache, folder, n, rows)


def _augment_config(encoder: Encoder, seed: int) -> AugmentConfig:
    settings = open_clip.get_model_preprocess_cfg(encoder.model)
    return AugmentConfig(size=encoder.image_size, mean=tuple(settings["mean"]), std=tuple(settings["std"]), seed=seed)


def _groups(pairs: SubsetPairs, positives: SubsetPositives) -> Ids | None:
    """i64[n] groups of positives; −1: the pair alone."""
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
        logger.info(
            f"--positives {positives}: {n_without:,} of {len(pairs):,} pairs have no {positives}; their only positive "
            "is their own caption"
        )
    return numbers


def _cast(array: npt.NDArray[np.float32], dtype: str) -> Array:
    """Convert to another number format. Raises UsageError if a number is too large for it."""
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    too_large = np.isinf(cast) & np.isfinite(array)
    if too_large.any():
        raise UsageError(
            f"an output of the frozen layers reaches {np.abs(array[too_large]).max():,.0f}, more than {dtype} "
            f"holds ({np.finfo(dtype).max:,.0f}): train with --cache-dtype float32, or --no-cache-layers"
        )
    return cast
