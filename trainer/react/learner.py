"""REACT's second stage: a frozen CLIP learns from retrieved pairs through gated blocks, or one of its towers does.

Liu et al., Learning Customized Visual Models with Retrieval-Augmented Knowledge (CVPR 2023), section 3.2. Four modes:
``gated-image`` (gated blocks learn, both towers stay), ``locked-text`` (the image tower learns), ``locked-image`` (the
text tower learns, as in LiT), ``full``. The logit scale learns in all of them unless it is frozen.
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
from trainer.loop.optimizer import Parameters
from trainer.react.config import ReactConfig
from trainer.react.gated import GATES, NAME, gates, insert_gated_blocks
from trainer.react.towers import ImageTower, freeze_but, open_tower

CHECKPOINTING = "leave out --activation-checkpointing"
"""What helps where a tower is not made of blocks that can be computed twice."""


class ReactLearner:
    """A ``trainer.loop.gradient_cache.Learner``: an open_clip model, changed in place so that some of it learns.

    Args:
        model: an open_clip model.
        config: what learns.
        name: of the model, for errors.

    Raises:
        EncoderError: ``gated-image`` and the image tower is no ViT; a tower cannot be checkpointed.
        UsageError: it has fewer blocks than are to be gated.
    """

    def __init__(self, model: Any, config: ReactConfig, name: str = "the model") -> None:
        self.model, self.config = model, config
        settings = open_clip.get_model_preprocess_cfg(model)
        like = model.logit_scale
        self._mean, self._std = (like.new_tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))
        self.tower: ImageTower | None = None
        self.first = 0
        """Blocks below the first that learns; what they make of a picture never changes."""
        if config.mode == "gated-image":
            self.tower = insert_gated_blocks(model, config.gated, name)
            self.first = config.gated.first(len(self.tower.blocks))
        elif config.activation_checkpointing and config.learns_images:
            self.tower = _checkpointed_images(model.visual, name)
        freeze_but(model, _learning(model, config))
        if config.activation_checkpointing and config.learns_texts:
            _checkpoint_texts(model, name)
        self.parameters: Parameters = {
            name: some for name, some in model.named_parameters() if some.requires_grad or f".{NAME}." in name
        }
        """What learns, and the rest of the gated blocks where the gates alone do."""
        self._from_pixels, self._from_features = self._whole_image, self._upper
        self._from_tokens: Callable[[Tensor], Tensor] = trimming(model) or model.encode_text
        if config.compile:
            self._from_tokens = torch.compile(self._from_tokens, dynamic=True)
            self._from_pixels = torch.compile(self._whole_image)
            self._from_features = torch.compile(self._upper)

    def embed(self, batch: Batch) -> tuple[Tensor, ...]:
        """(images, texts), unit rows.

        ``image`` is u8[b, h, w, 3], f32[b, 3, h, w] normalised, or what ``frozen_images`` gave; ``text`` is i64[b, n]
        tokens, or embeddings.
        """
        image, text = batch["image"], batch["text"]
        images = self._images(image)
        texts = text if text.is_floating_point() else self._from_tokens(text)
        return _unit(images, self._dtype), _unit(texts, self._dtype)

    def frozen_images(self, pixels: Tensor) -> Tensor:
        """u8[b, h, w, 3] → what the layers that do not learn make of it: [b, tokens, width], or [b, d] embeddings."""
        with torch.no_grad():
            if not self.config.learns_images:
                return self.model.encode_image(self._normalised(pixels))  # type: ignore[no-any-return]
            if self.tower is None:
                raise ValueError(f"all of the image tower learns in mode {self.config.mode}")
            return self.tower.lower(self._normalised(pixels), self.first)

    def loss(self, gathered: Gathered) -> Tensor:
        """Symmetric InfoNCE. A SigLIP's logit bias plays no part: a softmax does not see it."""
        return info_nce(gathered, 0, 1, self.model.logit_scale.exp())

    def after_step(self) -> None:
        """Keep the temperature in its bounds."""
        if self.config.logit_scale == "trainable":
            clamp_logit_scale(self.model.logit_scale)

    def figures(self) -> dict[str, float]:
        """The temperature, and how far the gates are open on the mean."""
        found = {"logit_scale": float(self.model.logit_scale.detach().exp())}
        opened = [abs(gate) for gate in gates(self.model).values()]
        return found | ({"gates": sum(opened) / len(opened)} if opened else {})

    @property
    def _dtype(self) -> torch.dtype:
        """Of embeddings in the loss: float32 whatever autocast made of them, but for a float64 model."""
        dtype: torch.dtype = self.model.logit_scale.dtype
        return dtype

    def _images(self, image: Tensor) -> Tensor:
        if image.dtype == torch.uint8:
            return self._from_pixels(self._normalised(image))
        if image.ndim == 4:
            return self._from_pixels(image.to(self._dtype))
        return self._from_features(image.to(self._dtype)) if image.ndim == 3 else image

    def _whole_image(self, pixels: Tensor) -> Tensor:
        if self.tower is None:
            return self.model.encode_image(pixels)  # type: ignore[no-any-return]
        return self._upper(self.tower.lower(pixels, self.first))

    def _upper(self, x: Tensor) -> Tensor:
        assert self.tower is not None
        return self.tower.upper(x, self.first, self.config.activation_checkpointing)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """u8[b, h, w, 3] → [b, 3, h, w] in the model's type."""
        batch = pixels.permute(0, 3, 1, 2).contiguous().to(self._dtype).div_(255)
        return batch.sub_(self._mean).div_(self._std)


def _unit(embeddings: Tensor, dtype: torch.dtype) -> Tensor:
    return normalize(embeddings.to(dtype), dim=-1)


def _checkpointed_images(visual: Any, name: str) -> ImageTower:
    """The image tower in blocks, each of which can be computed twice."""
    try:
        return open_tower(visual, name)
    except EncoderError:
        raise EncoderError(f"the image tower of {name} cannot be checkpointed: {CHECKPOINTING}") from None


def _checkpoint_texts(model: Any, name: str) -> None:
    """Compute the blocks of the text tower twice instead of keeping what they computed."""
    transformer = getattr(model, "text", model).transformer
    if not all(type(block) is ResidualAttentionBlock for block in getattr(transformer, "resblocks", [None])):
        raise EncoderError(f"the text tower of {name} cannot be checkpointed: {CHECKPOINTING}")
    transformer.grad_checkpointing = True


def _learning(model: Any, config: ReactConfig) -> set[str]:
    """Names of the parameters that learn: those of the mode, but for those on which no embedding depends."""
    learns = _of_mode(model, config)
    freeze_but(model, learns)
    return learns if config.mode == "gated-image" else learns - _unused(model, config)


@torch.enable_grad()
def _unused(model: Any, config: ReactConfig) -> set[str]:
    """Of what requires a gradient, what has no part in the towers' embeddings, such as a CoCa's decoder of captions.

    It would get no gradient and decay towards zero. A blank picture and caption tell, whatever the worker.
    """
    ends = []
    if config.learns_images:
        size = model.visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        ends.append(model.encode_image(model.logit_scale.new_zeros(1, 3, height, width)))
    if config.learns_texts:
        tower = getattr(model, "text", model)
        # a tower of transformers reads any length, and not always the one it names
        n_tokens = tower.context_length if hasattr(tower, "positional_embedding") else 8
        ends.append(model.encode_text(torch.zeros(1, n_tokens, dtype=torch.int64, device=model.logit_scale.device)))
    asked = {name: some for name, some in model.named_parameters() if some.requires_grad and name != "logit_scale"}
    found = torch.autograd.grad([end.sum() for end in ends], list(asked.values()), allow_unused=True)
    return {name for name, gradient in zip(asked, found, strict=True) if gradient is None}


def _of_mode(model: Any, config: ReactConfig) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    visual = {name for name in names if name.startswith("visual.")}
    scalars = {"logit_scale", "logit_bias"}
    learns: set[str] = set()
    if config.mode == "gated-image":
        learns = {name for name in names if f".{NAME}." in name}
        if config.gates_only:
            learns = {name for name in learns if name.rsplit(".", 1)[1] in GATES}
    elif config.learns_images:
        learns = visual
    if config.learns_texts:
        learns = learns | (set(names) - visual - scalars)
    return learns | ({"logit_scale"} if config.logit_scale == "trainable" else set())
