"""The checkpoints released by REACT's authors, and how their names map to ours.

They hold a whole model under the names of open_clip, with each gated block inside the block it precedes:
``visual.transformer.resblocks.6.gated_attn_block.attn.in_proj_weight``. Ours are the same names, so nothing is
renamed; a training checkpoint wraps them in ``state_dict`` and puts ``module.`` before each.
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
    """The tensors of a checkpoint file, .safetensors or torch's own, by open_clip's names.

    Raises:
        UsageError: it cannot be read as one.
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
        raise UsageError(f"{path} is no checkpoint of tensors by name: it holds something else")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


def gated_layers(tensors: Mapping[str, Tensor]) -> list[int]:
    """The blocks that have a gated block."""
    return sorted({int(found[1]) for name in tensors if (found := GATED.match(name))})


def load_released(name: str, path: str) -> Any:
    """The customised open_clip model of a released checkpoint.

    Args:
        name: of the architecture it was trained from, or local-dir:FOLDER.
        path: the checkpoint.

    Raises:
        EncoderError: there is no such architecture; a tensor is missing, unexpected or of another shape.
        UsageError: it is no checkpoint.
    """
    tensors = read_released(path)
    try:
        model = open_clip.create_model(name, load_weights=False)
    except Exception as error:
        raise EncoderError(f"cannot make a {name}: {str(error).splitlines()[0][:200]}") from error
    layers = gated_layers(tensors)
    n_blocks = len(model.visual.transformer.resblocks) if isinstance(model.visual, VisionTransformer) else 0
    mlp = tensors.get(f"visual.transformer.resblocks.{layers[-1]}.{NAME}.mlp.c_fc.weight") if layers else None
    if mlp is not None and layers[-1] < n_blocks:  # others have no place for them, and are refused below
        mlp_width, width = mlp.shape  # the released bigG has 4 times its width, unlike its own blocks
        insert_gated_blocks(model, GatedConfig(last_k=n_blocks - layers[0], mlp_ratio=mlp_ratio_of(mlp_width, width)))
    there, here = dict(tensors), model.state_dict()
    wrong = sorted(there.keys() ^ here.keys()) or sorted(n for n in here if here[n].shape != there[n].shape)
    if wrong:
        raise EncoderError(
            f"the checkpoint does not fit this model: {len(wrong)} tensors are missing, unexpected or of other shapes, "
            f"such as {wrong[0]}. Name the architecture it was trained from (OpenAI's weights need a -quickgelu one)"
        )
    model.load_state_dict(there)
    return model.eval().requires_grad_(False)
