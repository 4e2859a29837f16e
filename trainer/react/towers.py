"""Image towers of open_clip as lists of blocks, freezing of parameters, and a digest of the frozen tensors.

Frozen and trained parts alike run in evaluation mode: no tower here needs dropout or batch statistics, and a frozen
part outside evaluation mode is not frozen. torch's attention takes another path (about 1e-6 away) if nothing needs a
gradient, so outputs are compared bit for bit within one mode only.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memory_builder.errors import EncoderError
from trainer.loop.train_state import Parameters


class ImageTower(Protocol):
    """A ViT in two halves: ``upper(lower(pixels, k), k)`` equals the tower's own output for every k."""

    @property
    def blocks(self) -> list[Any]:
        """The transformer's blocks in order."""
        ...

    def lower(self, pixels: Tensor, n_blocks: int) -> Tensor:
        """[b, 3, h, w] → [b, tokens, width]: patch embedding and the first ``n_blocks`` blocks."""
        ...

    def upper(self, x: Tensor, n_blocks: int, checkpointing: bool = False) -> Tensor:
        """[b, tokens, width] → [b, d]: the blocks after the first ``n_blocks``, pooling and projection.

        A gated block has no call here: it runs in a forward pre-hook of the frozen block that it precedes
        (``gated.insert_gated_blocks``).
        """
        ...


class OpenClipTower:
    """An open_clip ViT."""

    def __init__(self, visual: Any) -> None:
        self._visual = visual
        self.blocks = list(visual.transformer.resblocks)

    def lower(self, pixels: Tensor, n_blocks: int) -> Tensor:
        """See ``ImageTower``."""
        return _run_blocks(self.blocks[:n_blocks], self._visual._embeds(pixels), False)

    def upper(self, x: Tensor, n_blocks: int, checkpointing: bool = False) -> Tensor:
        """See ``ImageTower``."""
        pooled, _ = self._visual._pool(_run_blocks(self.blocks[n_blocks:], x, checkpointing))
        return pooled if self._visual.proj is None else pooled @ self._visual.proj  # type: ignore[no-any-return]


class TimmTower:
    """A timm ViT: SigLIP, MobileCLIP, ViTamin, …"""

    def __init__(self, visual: Any) -> None:
        self._visual, self._trunk = visual, visual.trunk
        self.blocks = list(self._trunk.blocks)

    def lower(self, pixels: Tensor, n_blocks: int) -> Tensor:
        """See ``ImageTower``."""
        x = self._trunk._pos_embed(self._trunk.patch_embed(pixels))
        return _run_blocks(self.blocks[:n_blocks], self._trunk.norm_pre(x), False)

    def upper(self, x: Tensor, n_blocks: int, checkpointing: bool = False) -> Tensor:
        """See ``ImageTower``."""
        x = self._trunk.norm(_run_blocks(self.blocks[n_blocks:], x, checkpointing))
        return self._visual.head(self._trunk.forward_head(x))  # type: ignore[no-any-return]


class EvaTower:
    """A timm EVA or Perception Encoder, whose blocks take rotary position embeddings."""

    def __init__(self, visual: Any) -> None:
        self._visual, self._trunk = visual, visual.trunk
        self.blocks = list(self._trunk.blocks)

    @cached_property
    def _rotary(self) -> list[Any]:
        """The rotary embedding of each block; it depends on the input size alone."""
        height, width = self._visual.image_size
        weight = next(self._trunk.patch_embed.parameters())
        blank = torch.zeros(1, 3, height, width, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            _, rope = self._trunk._pos_embed(self._trunk.patch_embed(blank))
        per_block = getattr(self._trunk, "rope_mixed", False) and rope is not None
        return [rope[i] if per_block else rope for i in range(len(self.blocks))]

    def lower(self, pixels: Tensor, n_blocks: int) -> Tensor:
        """See ``ImageTower``."""
        x, _ = self._trunk._pos_embed(self._trunk.patch_embed(pixels))
        x = self._trunk.norm_pre(x)
        for block, rope in zip(self.blocks[:n_blocks], self._rotary, strict=False):
            x = block(x, rope=rope)
        return x  # type: ignore[no-any-return]

    def upper(self, x: Tensor, n_blocks: int, checkpointing: bool = False) -> Tensor:
        """See ``ImageTower``."""
        for block, rope in zip(self.blocks[n_blocks:], self._rotary[n_blocks:], strict=True):
            x = checkpoint(block, x, rope=rope, use_reentrant=False) if checkpointing else block(x, rope=rope)
        return self._visual.head(self._trunk.forward_head(self._trunk.norm(x)))  # type: ignore[no-any-return]


def open_tower(visual: Any, name: str = "the model") -> ImageTower:
    """Open an image tower as blocks.

    Args:
        visual: open_clip's ``model.visual``.
        name: name of the model, for the error.

    Raises:
        EncoderError: the tower is no ViT, or a ViT with a ``forward`` of its own.
    """
    trunk = getattr(visual, "trunk", None)
    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(trunk, TimmVisionTransformer) and type(trunk).forward is TimmVisionTransformer.forward:
        return TimmTower(visual)
    if isinstance(trunk, Eva) and type(trunk).forward is Eva.forward:
        return EvaTower(visual)
    what = type(trunk or visual).__name__
    raise EncoderError(
        f"the image tower of {name} is a {what}: gated blocks go into ViTs (open_clip's own; SigLIP, EVA and PE of "
        "timm). Customise it with --mode locked-image, locked-text or full, or choose a ViT"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Sizes and layer types of a block, which its gated block copies."""

    width: int
    heads: int
    mlp_width: int
    activation: Any
    """Module to copy: QuickGELU, GELU, …"""
    norm: type[nn.LayerNorm]
    eps: float


def geometry(block: Any, name: str = "the model") -> Geometry:
    """Read the geometry of an open_clip or timm block.

    Raises:
        EncoderError: the block has an unknown layout.
    """
    norm = getattr(block, "ln_1", None) or getattr(block, "norm1", None)
    mlp = getattr(block, "mlp", None)
    activation = getattr(mlp, "gelu", None) or getattr(mlp, "act", None)
    linears = [] if mlp is None else [module for module in mlp.modules() if isinstance(module, nn.Linear)]
    heads = getattr(getattr(block, "attn", None), "num_heads", None)
    if not isinstance(norm, nn.LayerNorm) or not linears or activation is None or heads is None:
        raise EncoderError(f"{type(block).__name__}, a block of {name}, has an unknown layout: no gated block fits it")
    return Geometry(
        width=norm.normalized_shape[0],
        heads=heads,
        mlp_width=linears[-1].in_features,
        activation=activation,
        norm=type(norm),
        eps=norm.eps,
    )


def freeze_but(model: Any, trained: set[str]) -> Parameters:
    """Freeze all parameters but the named ones; returns these, in the model's order.

    Raises:
        ValueError: the model has no such parameter.
    """
    parameters = dict(model.named_parameters())
    if missing := trained - parameters.keys():
        raise ValueError(f"no such parameters: {sorted(missing)}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    model.eval()
    return {name: parameter for name, parameter in parameters.items() if name in trained}


def frozen_digest(model: Any) -> str:
    """SHA-256 (hex) of all frozen tensors, buffers too, to prove that training did not change them."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in trained:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _run_blocks(blocks: list[Any], x: Tensor, checkpointing: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if checkpointing else block(x)
    return x
