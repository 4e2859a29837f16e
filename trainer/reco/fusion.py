"""RECO's fusion: refine an embedding of a frozen CLIP with the neighbours that a memory returns for it.

Iscen, Caron, Fathi and Schmid, Retrieval-Enhanced Contrastive Vision-Text Models (ICLR 2024), section 3: for images and
for texts a transformer encoder of one layer takes the query and its neighbours; its output at the query's position is
the refined embedding. ``FusionConfig`` holds what the paper leaves open, with its choices as defaults where known.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from memory_builder.base.types import Modality
from memory_builder.errors import UsageError
from trainer.reco.config import FusionConfig


class Fusion(nn.Module):
    """The fusion of one modality: (query, neighbours) → the refined embedding."""

    def __init__(self, config: FusionConfig, d: int) -> None:
        super().__init__()
        if config.fusion != "mean" and d % config.heads:
            raise UsageError(f"--heads {config.heads} does not divide the embedding's width {d}")
        self.config = config
        # Logit of the mean's interpolation weight; checkpoints hold it under this name.
        self.share = nn.Parameter(torch.zeros(())) if config.fusion == "mean" else None
        self.layer = None
        if config.fusion != "mean":
            # torch's layer holds the weights under its names; at_query computes its output at one position.
            self.layer = nn.TransformerEncoderLayer(
                d,
                config.heads,
                int(d * config.mlp_ratio),
                dropout=0.0,
                batch_first=True,
                norm_first=config.norm == "pre",
            )
        self.ranks = nn.Parameter(torch.zeros(1 + config.k, d)) if config.rank_embeddings else None

    def forward(self, query: Tensor, neighbours: Tensor, missing: Tensor) -> Tensor:
        """f32[b, d] unit rows, f32[b, k, d], bool[b, k] which are padding → f32[b, d] unit rows.

        A query without neighbours is returned unchanged, unless the layer was trained without retrieval (k = 0).
        """
        if self.layer is None:
            refined = self._mean(query, neighbours, missing)
        else:
            ranked = query
            if self.ranks is not None:
                ranked, neighbours = query + self.ranks[0], neighbours + self.ranks[1 : 1 + neighbours.shape[1]]
            refined = at_query(self.layer, ranked, neighbours, missing, itself=self.config.fusion == "transformer")
        refined = normalize(refined + query if self.config.residual else refined, dim=-1)
        if not self.config.k:
            return refined
        return torch.where(missing.all(dim=1, keepdim=True), query, refined)

    def _mean(self, query: Tensor, neighbours: Tensor, missing: Tensor) -> Tensor:
        assert self.share is not None
        present = (~missing).to(query.dtype)[..., None]
        mean = (neighbours * present).sum(1) / present.sum(1).clamp(min=1)
        return torch.lerp(query, mean, torch.sigmoid(self.share))


def at_query(
    layer: nn.TransformerEncoderLayer, query: Tensor, neighbours: Tensor, missing: Tensor, *, itself: bool = True
) -> Tensor:
    """Output of ``layer`` at the first position of [query; neighbours], without computing the other positions.

    With a single query position the key matrix is folded into the query and the value matrix into the result: about
    6.3 d² multiply-adds a query at d = 512 and k = 10, against 26 d² with keys and values of every position.

    Args:
        layer: the layer; batch_first, without dropout.
        query: [b, d].
        neighbours: [b, k, d].
        missing: bool[b, k], positions that attention masks.
        itself: also attend to the query, as self-attention does.

    Returns:
        [b, d].
    """
    source = layer.norm1(query) if layer.norm_first else query
    context = layer.norm1(neighbours) if layer.norm_first else neighbours
    hidden: Tensor = query + _attention(layer.self_attn, source, context, missing, itself)
    if layer.norm_first:
        return hidden + _mlp(layer, layer.norm2(hidden))
    hidden = layer.norm1(hidden)
    refined: Tensor = layer.norm2(hidden + _mlp(layer, hidden))
    return refined


def _mlp(layer: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    out: Tensor = layer.linear2(torch.relu(layer.linear1(x)))
    return out


def _attention(attention: nn.MultiheadAttention, query: Tensor, keys: Tensor, missing: Tensor, itself: bool) -> Tensor:
    """Attention of [b, d] queries to [b, k, d] keys, which are the values too; h and e are head and head width."""
    b, d = query.shape
    heads, width = attention.num_heads, d // attention.num_heads
    to_query, to_key, to_value = attention.in_proj_weight.chunk(3)  # [d, d] each
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)  # softmax cancels the bias of the keys
    queries = linear(query, to_query, query_bias).view(b, heads, width) / math.sqrt(width)
    folded = torch.einsum("bhe,hed->bhd", queries, to_key.view(heads, width, d))
    if itself:
        keys = torch.cat([query[:, None], keys], dim=1)
        missing = torch.cat([missing.new_zeros(b, 1), missing], dim=1)
    scores = torch.bmm(folded, keys.transpose(1, 2)).masked_fill(missing[:, None], -torch.inf)  # [b, heads, keys]
    if not itself:  # else softmax over masked positions alone is NaN
        scores = torch.where(missing.all(1)[:, None, None], torch.zeros_like(scores), scores)
    mixed = torch.bmm(torch.softmax(scores, dim=2), keys)  # [b, heads, d]
    values = torch.einsum("bhd,hed->bhe", mixed, to_value.view(heads, width, d)).reshape(b, d) + value_bias
    out: Tensor = attention.out_proj(values)
    return out


class Reco(nn.Module):
    """The fusions of images and of texts, and the temperature that they are trained with."""

    def __init__(self, config: FusionConfig, d: int) -> None:
        super().__init__()
        self.config, self.d = config, d
        self.image, self.text = Fusion(config, d), Fusion(config, d)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def of(self, query_modality: Modality) -> Fusion:
        """The fusion of queries of one modality."""
        return self.image if query_modality == "image" else self.text


def is_missing(neighbours: Tensor) -> Tensor:
    """[b, k, d] neighbours → bool[b, k]: which are padding."""
    return ~neighbours.any(dim=-1)
