"""Export of a customised model as a plain, deeper ViT that open_clip and programs built on it load by themselves.

A gated block becomes a residual attention block: tanh α is multiplied into the attention's output projection, tanh β
into the MLP's last layer. A narrower attention is padded with heads of zeros, a narrower MLP with columns of zeros;
wider gated MLPs pad the frozen blocks' MLPs alike.
"""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from memory_builder.errors import EncoderError, UsageError
from memory_builder.model.encoder import CONFIG, model_config
from memory_builder.storage.store import Store
from trainer.react.gated import NAME, GatedBlock, mlp_ratio_of

WEIGHTS = "open_clip_model.safetensors"


def export_plain(model: Any, name: str, out: Path) -> None:
    """Write a ``local-dir:`` folder of a customised model; ``name`` names the frozen one.

    Raises:
        EncoderError: the image tower cannot be made deeper.
        UsageError: the folder holds a model already.
    """
    if (out / CONFIG).exists() or (out / WEIGHTS).exists():
        raise UsageError(f"{out} holds a model already: name another --out")
    model, config = copy.deepcopy(model), _model_description(model, name)
    blocks = _blocks(model)
    if any(hasattr(block, NAME) for block in blocks):
        deeper, ratio = deepen(blocks)
        model.visual.transformer.resblocks = nn.ModuleList(deeper)
        config["model_cfg"]["vision_cfg"] |= {"layers": len(deeper), "mlp_ratio": ratio}
    store = Store(str(out))
    with store.writing(WEIGHTS) as path:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    store.put(CONFIG, json.dumps(config, indent=1).encode())


def export_released(model: Any, out: Path) -> None:
    """Write the whole customised model with the tensor names of the checkpoints that REACT's authors released.

    Raises:
        EncoderError: those checkpoints have no such tower, or no such gated blocks.
        UsageError: the file exists, or its name does not end in .safetensors.
    """
    if out.suffix != ".safetensors" or out.exists():
        raise UsageError(f"--out {out}: expected a new file whose name ends in .safetensors")
    for gated in filter(None, (getattr(block, NAME, None) for block in _blocks(model))):
        if not (gated.has_attention and gated.has_mlp and gated.attn.out_proj.in_features == gated.ln_1.weight.numel()):
            raise EncoderError(
                "released checkpoints have gated blocks with both branches and the tower's width; this run was trained "
                "with --branches or --bottleneck: leave out --as react"
            )
    store = Store(str(out.parent))
    with store.writing(out.name) as path:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def deepen(blocks: list[Any]) -> tuple[list[ResidualAttentionBlock], float]:
    """Turn every gated block into a plain block before its frozen one; returns all blocks, and their MLP ratio."""
    gated = [getattr(block, NAME, None) for block in blocks]
    widths = [block.mlp.c_fc.out_features for block in blocks]
    widths += [own.mlp.c_fc.out_features for own in gated if own is not None and own.has_mlp]
    deeper = []
    for block, before in zip(blocks, gated, strict=True):
        plain = copy.deepcopy(block)
        if before is not None:
            delattr(plain, NAME)
            plain._forward_pre_hooks.clear()
            deeper.append(_plain_block(before, plain, max(widths)))
        deeper.append(plain)
        _widen(plain.mlp, max(widths))
    return deeper, mlp_ratio_of(max(widths), blocks[0].ln_1.normalized_shape[0])


def _model_description(model: Any, name: str) -> dict[str, Any]:
    """open_clip's ``open_clip_config.json``."""
    architecture = model_config(name)
    if any(isinstance(module, QuickGELU) for module in model.modules()):  # as OpenAI's weights set it
        architecture |= {"quick_gelu": True}
    return {"model_cfg": architecture, "preprocess_cfg": open_clip.get_model_preprocess_cfg(model)}


def _blocks(model: Any) -> list[Any]:
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        if any(f".{NAME}." in name for name, _ in model.named_parameters()):
            raise EncoderError(
                f"gated blocks in a {type(visual.trunk).__name__} of timm cannot be exported: its name fixes its "
                "depth. Evaluate the run itself with --run"
            )
        return []
    blocks = list(visual.transformer.resblocks)
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise EncoderError(
            "the image tower has blocks unlike open_clip's ResidualAttentionBlock: evaluate the run itself with --run"
        )
    return blocks


@torch.no_grad()
def _plain_block(gated: GatedBlock, like: ResidualAttentionBlock, mlp_width: int) -> ResidualAttentionBlock:
    """A gated block as an open_clip block of full width; a missing branch becomes zeros, a layer scale ones."""
    block = copy.deepcopy(like)
    for parameter in block.parameters():
        parameter.zero_()
    for scale in (block.ls_1, block.ls_2):
        if not isinstance(scale, nn.Identity):
            scale.gamma.fill_(1)
    if gated.has_attention:
        d, inner = gated.attn.out_proj.weight.shape
        block.ln_1.load_state_dict(gated.ln_1.state_dict())
        for part in range(3):  # queries, keys, values
            block.attn.in_proj_weight[part * d : part * d + inner] = gated.attn.in_proj_weight.view(3, inner, d)[part]
            block.attn.in_proj_bias[part * d : part * d + inner] = gated.attn.in_proj_bias.view(3, inner)[part]
        gate = gated.alpha_attn.tanh()
        block.attn.out_proj.weight[:, :inner] = gate * gated.attn.out_proj.weight
        block.attn.out_proj.bias.copy_(gate * gated.attn.out_proj.bias)
    if gated.has_mlp:
        gate = gated.alpha_dense.tanh()
        block.ln_2.load_state_dict(gated.ln_2.state_dict())
        block.mlp = copy.deepcopy(gated.mlp)
        block.mlp.c_proj.weight.mul_(gate)
        block.mlp.c_proj.bias.mul_(gate)
    _widen(block.mlp, mlp_width)
    return block


@torch.no_grad()
def _widen(mlp: Any, width: int) -> None:
    """Pad an MLP with hidden units of zero weights."""
    missing = width - mlp.c_fc.out_features
    if missing:
        weight, bias, after = mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight
        weight = torch.cat([weight, weight.new_zeros(missing, weight.shape[1])])
        mlp.c_fc = _linear(weight, torch.cat([bias, bias.new_zeros(missing)]))
        after = torch.cat([after, after.new_zeros(len(after), missing)], dim=1)
        mlp.c_proj = _linear(after, mlp.c_proj.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
