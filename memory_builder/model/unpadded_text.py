"""Encode captions without padding them to the context length.

open_clip pads every caption to the context length (77 tokens, most of them padding) and refuses shorter input. A
causal tower that reads the end-of-text token never attends past it, so the positions past the longest caption of a
batch can be left out: positions and mask are sliced, everything else is open_clip's own modules.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from open_clip.transformer import text_global_pool

POSITIONS_MULTIPLE = 8
"""Lengths are rounded up to a multiple, so that kernels see few shapes."""


def trimming(model: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return an ``encode_text`` that drops the padding of i64[n, context] tokens; None if the tower needs it."""
    tower = getattr(model, "text", model)
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    mask = getattr(tower, "attn_mask", None)
    usable = hasattr(tower, "transformer") and hasattr(tower, "positional_embedding")
    if not usable or mask is None or pool not in ("argmax", "eos") or getattr(tower, "cls_emb", None) is not None:
        return None
    if getattr(tower, "use_pad_mask", False):
        return None
    eos_id = int(getattr(tower, "text_eos_id", getattr(tower, "eos_id", 0)))

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        ends = (tokens if pool == "argmax" else tokens.eq(eos_id).int()).argmax(dim=-1)
        n = min(-(-(int(ends.max()) + 1) // POSITIONS_MULTIPLE) * POSITIONS_MULTIPLE, tokens.shape[1])
        if n == tokens.shape[1]:
            return cast(torch.Tensor, model.encode_text(tokens))
        tokens = tokens[:, :n]  # i64[b, n]
        dtype = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:n].to(dtype)  # [b, n, width]
        x = tower.ln_final(tower.transformer(x, attn_mask=mask[:n, :n]))
        x = text_global_pool(x, tokens, pool, eos_token_id=eos_id)
        projection = tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
        return cast(torch.Tensor, x)

    return encode
