"""REACT's gated block: attention and an MLP before a frozen block, scaled by gates that start at zero.

Liu et al., Learning Customized Visual Models with Retrieval-Augmented Knowledge (CVPR 2023), section 3.2:
``x + tanh(α)·MHA(LN x)``, then ``x + tanh(β)·MLP(LN x)``, then the frozen block. With α = β = 0 the model is the frozen
one. Parameters are named as in the checkpoints the authors released.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from memory_builder.errors import UsageError
from trainer.react.config import GatedConfig
from trainer.react.towers import Geometry, ImageTower, geometry, open_tower

NAME = "gated_attn_block"
GATES = ("alpha_attn", "alpha_dense")
"""Gates of the attention and of the MLP branch: each branch is scaled by the tanh of its gate."""


class SelfAttention(nn.Module):
    """Multi-head self-attention that may be narrower than its input; at full width, ``nn.MultiheadAttention``.

    It computes the same with and without gradient, unlike torch's own.
    """

    def __init__(self, d: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, d))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, d)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[b, n, d] → [b, n, d]."""
        b, n, _ = x.shape
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias).view(b, n, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [b, heads, n, head width]
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        return self.out_proj(mixed)  # type: ignore[no-any-return]


class GatedBlock(nn.Module):
    """A gated attention branch and a gated MLP branch. [b, n, width] → [b, n, width]."""

    def __init__(self, of: Geometry, config: GatedConfig) -> None:
        super().__init__()
        inner, head = config.bottleneck or of.width, of.width // of.heads
        if not 0 < inner <= of.width or inner % head:
            raise UsageError(f"--bottleneck {inner}: a multiple of the head width {head}, up to {of.width}")
        if config.branches != "mlp":
            self.ln_1 = of.norm(of.width, eps=of.eps)
            self.attn = SelfAttention(of.width, inner, inner // head)
            self.alpha_attn = nn.Parameter(torch.zeros(()))
        if config.branches != "attention":
            mlp_width = int(config.mlp_ratio * inner) if config.mlp_ratio else of.mlp_width * inner // of.width
            self.ln_2 = of.norm(of.width, eps=of.eps)
            self.mlp = nn.Sequential()
            self.mlp.add_module("c_fc", nn.Linear(of.width, mlp_width))
            self.mlp.add_module("gelu", copy.deepcopy(of.activation))
            self.mlp.add_module("c_proj", nn.Linear(mlp_width, of.width))
            self.alpha_dense = nn.Parameter(torch.zeros(()))
        self.has_attention, self.has_mlp = config.branches != "mlp", config.branches != "attention"

    def forward(self, x: Tensor) -> Tensor:
        """Add both branches, each scaled by the tanh of its gate, to the tokens."""
        if self.has_attention:
            x = x + self.alpha_attn.tanh() * self.attn(self.ln_1(x))
        if self.has_mlp:
            x = x + self.alpha_dense.tanh() * self.mlp(self.ln_2(x))
        return x


def insert_gated_blocks(model: Any, config: GatedConfig, name: str = "the model") -> ImageTower:
    """Insert gated blocks before the last blocks of an open_clip model's image tower, in place; returns the tower.

    Each is a submodule of the frozen block that it precedes and runs in that block's forward pre-hook, so open_clip
    and timm call their blocks unchanged and no frozen tensor changes its name.

    Raises:
        EncoderError: the tower is no ViT.
        UsageError: the tower has fewer blocks than ``last_k``, or the bottleneck does not fit its heads.
    """
    tower = open_tower(model.visual, name)
    for block in tower.blocks[config.first(len(tower.blocks)) :]:
        like = next(block.parameters())
        gated = GatedBlock(geometry(block, name), config).to(device=like.device, dtype=like.dtype)
        block.add_module(NAME, gated.eval())
        block.register_forward_pre_hook(_run_gated_block)
    return tower


def _run_gated_block(block: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(block, NAME)(arguments[0]), *arguments[1:])


def mlp_ratio_of(mlp_width: int, width: int) -> float:
    """The ratio that gives an MLP this width; open_clip truncates ratio · width to a whole number."""
    ratio = mlp_width / width
    return ratio if int(ratio * width) == mlp_width else (mlp_width + 0.5) / width


def gates(model: Any) -> dict[str, float]:
    """tanh of every gate by parameter name: the scale of each branch."""
    return {
        name: float(parameter.detach().tanh())
        for name, parameter in model.named_parameters()
        if name.endswith(tuple(f"{NAME}.{gate}" for gate in GATES))
    }
