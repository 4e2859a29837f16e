"""Image and text tower of a model in fp32, as CLIP_benchmark runs them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn.functional import normalize

from memory_builder.base.types import Pixels
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.images import decode_image
from memory_builder.model.templates import fill
from trainer.evaluate.numbers.arrays import Floats, finite
from trainer.react.load import CheckpointRef, load_run

PROMPTS = 128
"""Prompts of a forward pass. Those of a class stay together; 65 or more are one pass, as in CLIP_benchmark."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Towers:
    """A loaded model whose embeddings are f32 unit rows. Use ``load_towers``."""

    model: Any
    """open_clip's own module."""
    name: str
    fingerprint: str
    d: int
    device: torch.device
    resize: Any
    tokenizer: Any
    mean: torch.Tensor
    std: torch.Tensor

    def pixels(self, image: bytes) -> Pixels:
        """An encoded picture → u8[h, w, 3] in the model's input size.

        Raises:
            BadImageError: the picture cannot be decoded.
        """
        pixels: Pixels = self.resize(decode_image(image))
        return pixels

    def normalised(self, pixels: Pixels) -> torch.Tensor:
        """u8[n, h, w, 3] → f32[n, 3, h, w] on the model's device."""
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).contiguous().float().div_(255)
        return batch.sub_(self.mean).div_(self.std)

    def encode_images(self, pixels: Pixels) -> Floats:
        """u8[n, h, w, 3] → f32[n, d] unit rows. Raises EncoderError if they are not finite, as do the methods below."""
        with torch.inference_mode():
            rows = normalize(self.model.encode_image(self.normalised(pixels)), dim=-1)
        return finite(_array(rows), self.name, "pictures")

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """n texts → f32[n, d] unit rows, in one forward pass."""
        return finite(self._text_rows(texts), self.name, "texts")

    def prompts(self, classes: Sequence[str], templates: Sequence[str]) -> Iterator[tuple[slice, Floats]]:
        """Blocks of classes with the unit rows of their prompts, f32[b, t, d]."""
        step, t = max(1, PROMPTS // len(templates)), len(templates)
        for at in range(0, len(classes), step):
            names = classes[at : at + step]
            rows = self._text_rows([fill(template, name) for name in names for template in templates])
            yield slice(at, at + len(names)), finite(rows, self.name, "prompts of class names").reshape(-1, t, self.d)

    def classifier(self, classes: Sequence[str], templates: Sequence[str]) -> Floats:
        """f32[c, d]: for each class the normalised mean of its prompts' unit embeddings, as in CLIP."""
        rows = np.empty((len(classes), self.d), np.float32)
        for block, prompts in self.prompts(classes, templates):
            rows[block] = mean_prompts(prompts)
        return rows

    def _text_rows(self, texts: Sequence[str]) -> Floats:
        with torch.inference_mode():
            return _array(normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)), dim=-1))


def mean_prompts(prompts: Floats) -> Floats:
    """f32[c, t, d] unit rows → f32[c, d], the normalised mean of each class."""
    means = torch.from_numpy(prompts).mean(dim=1)
    return _array(means / means.norm(dim=1, keepdim=True))


def load_towers(config: EncoderConfig | CheckpointRef) -> Towers:
    """Load a model, or the customised model of a run, for evaluation.

    Raises:
        EncoderError: the name, tag, folder or weights file is unknown or unusable.
        UsageError, CorruptMemoryError: see ``load_run``.
    """
    if isinstance(config, CheckpointRef):
        loaded = load_run(config)
        average = "moving average, " if config.ema else ""
        state = f"step {loaded.step}, {average}share {config.wise_alpha:g}"  # as older results have it
        return _towers(loaded.encoder, f"{loaded.encoder.config.model} + {config.run} ({state})", loaded.fingerprint)
    encoder = load_encoder(config)
    return _towers(encoder, config.model, encoder.fingerprint)


def _towers(encoder: Encoder, name: str, fingerprint: str) -> Towers:
    settings = open_clip.get_model_preprocess_cfg(encoder.model)
    mean, std = (torch.tensor(settings[name], device=encoder.device).view(3, 1, 1) for name in ("mean", "std"))
    return Towers(
        model=encoder.model,
        name=name,
        fingerprint=fingerprint,
        d=encoder.d,
        device=encoder.device,
        resize=encoder.preprocess,
        tokenizer=encoder.tokenizer,
        mean=mean,
        std=std,
    )


def _array(rows: torch.Tensor) -> Floats:
    array: Floats = rows.float().cpu().numpy()
    return array
