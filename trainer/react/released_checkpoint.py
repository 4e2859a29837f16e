"""Checkpoints released by REACT's authors.

They hold a whole model with open_clip's tensor names, each gated block inside the block that it precedes:
``visual.transformer.resblocks.6.gated_attn_block.attn.in_proj_weight``. Gated blocks here have the same names. A
training checkpoint of theirs wraps the tensors in ``state_dict`` and puts ``module.`` before each name.
"""

import re
from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file
from torch import Tensor

from memory_builder.errors import EncoderError, UsageError
from trainer.react.config import GatedConfig
from trainer.react.gated import NAME, insert_gated_blocks, mlp_ratio_of

GATED = re.compile(rf"^visual\.transformer\.resblocks\.(\d+)\.{NAME}\.")


def read_released(path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file (.safetensors or torch's own) by open_clip's names.

    Raises:
        UsageError: the file is no checkpoint of tensors.
    """
    try:
        if path.endswith(".safetensors"):
            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{path} is no checkpoint of tensors ({reason})") from None
    tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UsageError(f"{path} is no checkpoint of tensors by name: it holds other objects")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


def gated_layers(tensors: Mapping[str, Tensor]) -> list[int]:
    """Indices of the blocks that have a gated block."""
    return sorted({int(match[1]) for name in tensors if (match := GATED.match(name))})


def load_released(name: str, path: str) -> Any:
    """Load a released checkpoint as an open_clip model with gated blocks.

    Args:
        name: open_clip architecture, or local-dir:FOLDER.
        path: file of the checkpoint.

    Raises:
        EncoderError: no such architecture; a tensor is missing, unexpected or of another shape.
        UsageError: the file is no checkpoint.
    """
    tensors = read_released(path)
    try:
        model = open_clip.create_model(name, load_weights=False)
    except Exception as error:
        raise EncoderError(f"cannot make a {name}: {str(error).splitlines()[0][:200]}") from error
    layers = gated_layers(tensors)
    n_blocks = len(model.visual.transformer.resblocks) if isinstance(model.visual, VisionTransformer) else 0
    mlp = tensors.get(f"visual.transformer.resblocks.{layers[-1]}.{NAME}.mlp.c_fc.weight") if layers else None
    if mlp is not None and layers[-1] < n_blocks:  # towers without such blocks are refused below
        mlp_width, width = mlp.shape  # 4 times the width in the released bigG, unlike in its frozen blocks
        insert_gated_blocks(model, GatedConfig(last_k=n_blocks - layers[0], mlp_ratio=mlp_ratio_of(mlp_width, width)))
    own = model.state_dict()
    wrong = sorted(tensors.keys() ^ own.keys()) or sorted(n for n in own if own[n].shape != tensors[n].shape)
    if wrong:
        raise EncoderError(
            f"the checkpoint does not fit this model: {len(wrong)} tensors are missing, unexpected or of other shapes, "
            f"such as {wrong[0]}. Name the architecture it was trained from (OpenAI's weights need a -quickgelu one)"
        )
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)
