"""REACT's second stage: training gated blocks in a frozen CLIP, or one or both of its towers, on retrieved pairs.

Liu et al., Learning Customized Visual Models with Retrieval-Augmented Knowledge (CVPR 2023), section 3.2. Four modes:
``gated-image`` (gated blocks in a frozen image tower), ``locked-text`` (the image tower), ``locked-image`` (the text
tower, as in LiT), ``full`` (both). The logit scale is trained in all of them unless it is frozen.
"""

from collections.abc import Callable
from typing import Any

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn.functional import normalize

from memory_builder.errors import EncoderError
from memory_builder.model.unpadded_text import trimming
from trainer.loop.gradient_cache import Batch
from trainer.loop.losses import Gathered, clamp_logit_scale, info_nce
from trainer.loop.train_state import Parameters
from trainer.react.config import ReactConfig
from trainer.react.gated import GATES, NAME, gates, insert_gated_blocks
from trainer.react.towers import ImageTower, freeze_but, open_tower

CHECKPOINTING = "leave out --activation-checkpointing"
"""Advice for a tower without blocks to recompute."""


class ReactLearner:
    """A ``trainer.loop.gradient_cache.Learner`` of an open_clip model, which is changed in place.

    Args:
        model: an open_clip model.
        config: the parameters to train.
        name: name of the model, for errors.

    Raises:
        EncoderError: ``gated-image`` and the image tower is no ViT; a tower cannot be checkpointed.
        UsageError: the image tower has fewer blocks than ``last_k``.
    """

    def __init__(self, model: Any, config: ReactConfig, name: str = "the model") -> None:
        self.model, self.config = model, config
        settings = open_clip.get_model_preprocess_cfg(model)
        like = model.logit_scale
        self._mean, self._std = (like.new_tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.tower: ImageTower | None = None
        self.first = 0
        """Number of frozen blocks below the first trained one; their outputs never change."""
        if config.mode == "gated-image":
            self.tower = insert_gated_blocks(model, config.gated, name)
            self.first = config.gated.first(len(self.tower.blocks))
        elif config.activation_checkpointing and config.trains_images:
            self.tower = _checkpointed_images(model.visual, name)
        freeze_but(model, _trained_names(model, config))
        if config.activation_checkpointing and config.trains_texts:
            _checkpoint_texts(model, name)
        self.parameters: Parameters = {
            name: own for name, own in model.named_parameters() if own.requires_grad or f".{NAME}." in name
        }
        """Trained parameters, and with ``gates_only`` the rest of the gated blocks."""
        self._from_pixels, self._from_tokens = self._whole_image, self._upper
        self._from_text: Callable[[Tensor], Tensor] = trimming(model) or model.encode_text
        if config.compile:
            self._from_text = torch.compile(self._from_text, dynamic=True)
            self._from_pixels = torch.compile(self._whole_image)
            self._from_tokens = torch.compile(self._upper)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """(images, texts), unit rows. The keys of the batch say what it holds: ``ImageInput`` and ``TextInput``.

        Float32 whatever autocast computed, or float64 for a float64 model.
        """
        dtype = self.model.logit_scale.dtype
        if "pixels" in batch:
            images = self._from_pixels(self._normalised(batch["pixels"]))
        elif "normalised_pixels" in batch:
            images = self._from_pixels(batch["normalised_pixels"].to(dtype))
        elif "image_tokens" in batch:
            images = self._from_tokens(batch["image_tokens"].to(dtype))
        else:
            images = batch["image_embeddings"]
        texts = batch["text_embeddings"] if "text_embeddings" in batch else self._from_text(batch["text_tokens"])
        return normalize(images.to(dtype), dim=-1), normalize(texts.to(dtype), dim=-1)

    def frozen_outputs(self, pixels: Tensor) -> Tensor:
        """u8[b, h, w, 3] → outputs of the frozen layers: [b, tokens, width], or [b, d] of a frozen image tower."""
        with torch.no_grad():
            if not self.config.trains_images:
                return self.model.encode_image(self._normalised(pixels))  # type: ignore[no-any-return]
            if self.tower is None:
                raise ValueError(f"mode {self.config.mode} has no frozen layer in the image tower")
            return self.tower.lower(self._normalised(pixels), self.first)

    def loss(self, gathered: Gathered) -> Tensor:
        """Symmetric InfoNCE. A SigLIP's logit bias has no effect on a softmax, and no part here."""
        return info_nce(gathered, 0, 1, self.model.logit_scale.exp())

    def after_step(self) -> None:
        """Clamp the temperature."""
        if self.config.logit_scale == "trainable":
            clamp_logit_scale(self.model.logit_scale)

    def metrics(self) -> dict[str, float]:
        """The temperature, and the mean of |tanh| of the gates."""
        scale = {"logit_scale": float(self.model.logit_scale.detach().exp())}
        opened = [abs(gate) for gate in gates(self.model).values()]
        return scale | ({"gates": sum(opened) / len(opened)} if opened else {})

    def _whole_image(self, pixels: Tensor) -> Tensor:
        if self.tower is None:
            return self.model.encode_image(pixels)  # type: ignore[no-any-return]
        return self._upper(self.tower.lower(pixels, self.first))

    def _upper(self, x: Tensor) -> Tensor:
        """The trained half of the image tower; its gated blocks run in hooks, see ``ImageTower.upper``."""
        assert self.tower is not None
        return self.tower.upper(x, self.first, self.config.activation_checkpointing)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """u8[b, h, w, 3] → [b, 3, h, w] in the model's type."""
        batch = pixels.permute(0, 3, 1, 2).contiguous().to(self.model.logit_scale.dtype).div_(255)
        return batch.sub_(self._mean).div_(self._std)


def _checkpointed_images(visual: Any, name: str) -> ImageTower:
    """Open the image tower as blocks, each of which is recomputed in the backward pass."""
    try:
        return open_tower(visual, name)
    except EncoderError:
        raise EncoderError(f"the image tower of {name} cannot be checkpointed: {CHECKPOINTING}") from None


def _checkpoint_texts(model: Any, name: str) -> None:
    """Recompute the blocks of the text tower in the backward pass."""
    transformer = getattr(model, "text", model).transformer
    if not all(type(block) is ResidualAttentionBlock for block in getattr(transformer, "resblocks", [None])):
        raise EncoderError(f"the text tower of {name} cannot be checkpointed: {CHECKPOINTING}")
    transformer.grad_checkpointing = True


def _trained_names(model: Any, config: ReactConfig) -> set[str]:
    """Names of the trained parameters: those of the mode, without those that no embedding depends on."""
    names = _names_of_mode(model, config)
    freeze_but(model, names)
    return names if config.mode == "gated-image" else names - _unused(model, config)


@torch.enable_grad()
def _unused(model: Any, config: ReactConfig) -> set[str]:
    """Parameters that require a gradient and that no embedding depends on, such as a CoCa's decoder of captions.

    They would get no gradient and decay towards zero. A blank picture and caption show them, alike on every worker.
    """
    embeddings = []
    if config.trains_images:
        size = model.visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        embeddings.append(model.encode_image(model.logit_scale.new_zeros(1, 3, height, width)))
    if config.trains_texts:
        tower = getattr(model, "text", model)
        # a tower of transformers takes any length, but not always the one it names
        n_tokens = tower.context_length if hasattr(tower, "positional_embedding") else 8
        embeddings.append(
            model.encode_text(torch.zeros(1, n_tokens, dtype=torch.int64, device=model.logit_scale.device))
        )
    trained = {name: own for name, own in model.named_parameters() if own.requires_grad and name != "logit_scale"}
    gradients = torch.autograd.grad([rows.sum() for rows in embeddings], list(trained.values()), allow_unused=True)
    return {name for name, gradient in zip(trained, gradients, strict=True) if gradient is None}


def _names_of_mode(model: Any, config: ReactConfig) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    visual = {name for name in names if name.startswith("visual.")}
    scalars = {"logit_scale", "logit_bias"}
    trained: set[str] = set()
    if config.mode == "gated-image":
        trained = {name for name in names if f".{NAME}." in name}
        if config.gates_only:
            trained = {name for name in trained if name.rsplit(".", 1)[1] in GATES}
    elif config.trains_images:
        trained = visual
    if config.trains_texts:
        trained = trained | (set(names) - visual - scalars)
    return trained | ({"logit_scale"} if config.logit_scale == "trainable" else set())
