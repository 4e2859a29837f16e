"""A released checkpoint and a --model that it does not fit."""

import json

import pytest
from open_clip.model import CLIP
from safetensors.torch import save_file

from helpers.tiny_runs import PREPROCESS, TINY, write_tiny_model
from memory_builder.errors import EncoderError
from trainer.react.config import GatedConfig
from trainer.react.export import export_released
from trainer.react.gated import insert_gated_blocks
from trainer.react.released_checkpoint import load_released

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": "", "timm_proj": "linear"}


@pytest.fixture
def released(tiny_encoder, tmp_path):
    """A checkpoint of three blocks, the last of them gated."""
    model = tiny_encoder().model
    insert_gated_blocks(model, GatedConfig(last_k=1))
    export_released(model, tmp_path / "react.safetensors")
    return str(tmp_path / "react.safetensors")


@pytest.mark.parametrize("config", [{"bottleneck": 8}, {"branches": "attention"}, {"branches": "mlp"}])
def test_blocks_that_the_released_checkpoints_do_not_have_are_not_written(tiny_encoder, tmp_path, config):
    model = tiny_encoder().model
    insert_gated_blocks(model, GatedConfig(last_k=1, **config))
    with pytest.raises(EncoderError, match=r"trained with --branches or --bottleneck: leave out --as react"):
        export_released(model, tmp_path / "react.safetensors")
    assert not (tmp_path / "react.safetensors").exists()


@pytest.mark.parametrize("kind", ["fewer layers", "RESNET", "TIMM"])
def test_a_model_that_it_was_not_trained_from_is_refused(released, tmp_path, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    if kind == "fewer layers":
        name = write_tiny_model(folder, layers=1)
    else:
        config = TINY | {"vision_cfg": RESNET if kind == "RESNET" else TIMM}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
        save_file(CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
        name = f"local-dir:{folder}"
    with pytest.raises(
        EncoderError, match=r"does not fit this model: \d+ tensors are missing, .* Name the architecture"
    ):
        load_released(name, released)
