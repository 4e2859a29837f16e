"""The two towers of a model in full precision, as CLIP_benchmark runs them: the model is measured, not float16."""

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
from trainer.react.load import Choice, load_customised

PROMPTS = 128
"""Prompts in one pass. Those of a class stay together: from 65 on they go by themselves, as CLIP_benchmark's do."""


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
        """An encoded picture → u8[h, w, 3], as the model wants it.

        Raises:
            BadImageError: it cannot be decoded.
        """
        pixels: Pixels = self.resize(decode_image(image))
        return pixels

    def normalised(self, pixels: Pixels) -> torch.Tensor:
        """u8[n, h, w, 3] → f32[n, 3, h, w] on the model's device."""
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).contiguous().float().div_(255)
        return batch.sub_(self.mean).div_(self.std)

    def encode_images(self, pixels: Pixels) -> Floats:
        """u8[n, h, w, 3] → f32[n, d] unit rows. Raises EncoderError where they are not finite, as do those below."""
        with torch.inference_mode():
            rows = normalize(self.model.encode_image(self.normalised(pixels)), dim=-1)
        return finite(_array(rows), self.name, "pictures")

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """n texts → f32[n, d] unit rows, in one pass."""
        return finite(self._text_rows(texts), self.name, "texts")

    def prompts(self, classes: Sequence[str], templates: Sequence[str]) -> Iterator[tuple[slice, Floats]]:
        """Some of the classes at a time, and the unit rows of their prompts, f32[b, t, d]."""
        step, t = max(1, PROMPTS // len(templates)), len(templates)
        for at in range(0, len(classes), step):
            some = classes[at : at + step]
            rows = self._text_rows([fill(template, name) for name in some for template in templates])
            yield slice(at, at + len(some)), finite(rows, self.name, "prompts of class names").reshape(-1, t, self.d)

    def classifier(self, classes: Sequence[str], templates: Sequence[str]) -> Floats:
        """f32[c, d]: for each class the mean of its prompts' unit embeddings, scaled to unit length (CLIP's way)."""
        rows = np.empty((len(classes), self.d), np.float32)
        for some, prompts in self.prompts(classes, templates):
            rows[some] = centres(prompts)
        return rows

    def _text_rows(self, texts: Sequence[str]) -> Floats:
        with torch.inference_mode():
            return _array(normalize(self.model.encode_text(self.tokenizer(list(texts)).to(self.device)), dim=-1))


def centres(prompts: Floats) -> Floats:
    """f32[c, t, d] unit rows → f32[c, d] the mean of each class's, scaled to unit length."""
    means = torch.from_numpy(prompts).mean(dim=1)
    return _array(means / means.norm(dim=1, keepdim=True))


def load_towers(config: EncoderConfig | Choice) -> Towers:
    """Load a model, or the customised model of a run, for evaluation.

    Raises:
        EncoderError: the name, tag, folder or weights file is not known or not usable.
        UsageError, CorruptMemoryError: see ``load_customised``.
    """
    if isinstance(config, Choice):
        customised = load_customised(config)
        name = f"{customised.encoder.config.model} + {config.run} (step {customised.step}, {_state(config)})"
        return _towers(customised.encoder, name, customised.fingerprint)
    encoder = load_encoder(config)
    return _towers(encoder, config.model, encoder.fingerprint)


def _state(choice: Choice) -> str:
    average = "moving average, " if choice.ema else ""
    return f"{average}share {choice.share:g}"


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
