"""The base model: its shape, how good it is on the dev sets, and the open_clip folder it is written to."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from base_data import SIDE, read_set
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch.nn import functional

# 9.8 M parameters, 6.3 M of them the word embeddings of open_clip's own tokenizer: 19 MB in float16.
# Patches of 16 give 17 tokens for 64 px: a quarter of the time of patches of 8, here and wherever the model is used.
VISION = {"image_size": SIDE, "layers": 6, "width": 192, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3}
MODEL = {"embed_dim": 192, "vision_cfg": VISION, "text_cfg": TEXT}  # as in open_clip_config.json
DEV_SETS = ("dev-common", "dev-rare", "dev-absent")  # generic things, and brands; never a test set


def new_model() -> CLIP:
    """Return the model as it is before training."""
    return CLIP(**MODEL)


def tokenize(texts: list[str]) -> torch.Tensor:
    """Return texts as i64[n, context]."""
    return open_clip.SimpleTokenizer(context_length=TEXT["context_length"])(texts)


@torch.no_grad()
def accuracy(model: CLIP, folder: Path, device: torch.device) -> float:
    """Return the top-1 accuracy on an evaluation set, with the bare class name as the prompt."""
    names, pictures, labels = read_set(folder)
    model.eval()
    text = functional.normalize(model.encode_text(tokenize(names).to(device)), dim=1)
    image = torch.cat([model.encode_image(part.to(device)) for part in pictures.split(256)])
    model.train()
    return float((functional.normalize(image, dim=1) @ text.T).argmax(1).cpu().eq(labels).float().mean())


def export(model: CLIP, folder: Path) -> None:
    """Write an open_clip local-dir folder, float16."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(half, folder / "open_clip_model.tmp")
    about = {
        "model_cfg": MODEL,
        "preprocess_cfg": {
            "size": SIDE, "mean": [0.5] * 3, "std": [0.5] * 3,
            "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 255,
        },
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "open_clip_model.tmp").replace(folder / "open_clip_model.safetensors")


def card(start_from: Path | None, seed: int, values: dict[str, Any]) -> str:
    """Return the model card; values has the pairs seen and the accuracy on each dev set."""
    dev = "\n".join(f"| {name} | {values[name]:.1%} |" for name in DEV_SETS)
    start = "from scratch" if start_from is None else f"from the weights of {start_from.name}"
    return f"""# icon-clip

A small CLIP in open_clip's `local-dir:` layout: ViT {SIDE} px, patch {VISION["patch_size"]}, width {VISION["width"]},
{VISION["layers"]} layers; text width {TEXT["width"]}, {TEXT["layers"]} layers, context {TEXT["context_length"]};
d = 192; float16. Trained {start} by `examples/icons/pretrain.py`, seed {seed}, on the base-training split of the
icons benchmark and nothing else: {values["pairs"]:,} pairs seen.

Brands that the benchmark asks about are absent from what it was trained on, or occur one to four times, by tier.

| Dev set, bare class name as the prompt | Top-1 |
|---|---:|
{dev}

The pictures belong to their icon sets' artists, under each set's licence; logos are their owners' trade marks.
"""
