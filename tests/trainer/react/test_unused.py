"""What no embedding depends on is left out of training; a tower that cannot be checkpointed says so."""

import json
from contextlib import nullcontext

import pytest
import torch
from open_clip import create_model
from open_clip.coca_model import CoCa
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from helpers.tiny_runs import PREPROCESS, TINY, react_config
from memory_builder.errors import EncoderError
from memory_builder.model.encoder import EncoderConfig
from trainer.loop.config import OptimizerConfig, TrainRunnerConfig
from trainer.loop.gradient_cache import compute_gradients
from trainer.loop.launch import run_job
from trainer.loop.train_state import make_optimizer, take_step
from trainer.react.config import ReactConfig
from trainer.react.learner import ReactLearner
from trainer.react.load import CheckpointRef, load_run
from trainer.react.towers import frozen_digest

pytestmark = pytest.mark.usefixtures("one_thread")
COCA = {
    "embed_dim": 16,
    "vision_cfg": TINY["vision_cfg"] | {"output_tokens": True},
    "text_cfg": TINY["text_cfg"] | {"context_length": 15, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 15, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
RESNET = TINY | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}


def written(folder, config, model):
    """A folder that ``--model`` takes."""
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def coca(tmp_path_factory):
    torch.manual_seed(7)
    model = CoCa(**COCA)
    torch.nn.init.normal_(model.text_decoder.text_projection)  # which open_clip leaves as the memory was: NaN, at times
    return written(tmp_path_factory.mktemp("coca"), COCA | {"custom_text": True}, model)


@pytest.mark.parametrize("mode", ["full", "locked-image", "locked-text"])
def test_a_decoder_that_no_embedding_depends_on_neither_learns_nor_decays(coca, mode):
    model = create_model(coca)
    learner = ReactLearner(model, ReactConfig(mode=mode))
    frozen = frozen_digest(model)
    decoder = {name: some.detach().clone() for name, some in model.named_parameters() if "text_decoder" in name}
    assert decoder
    assert not decoder.keys() & learner.parameters.keys()
    texts = {"text_embeddings": torch.randn(4, 16)}
    if learner.config.trains_texts:
        texts = {"text_tokens": torch.randint(1, 400, (4, 15))}
    config = OptimizerConfig()
    optimizer = make_optimizer(learner.parameters, config)
    for _ in range(2):
        compute_gradients(learner, texts | {"normalised_pixels": torch.randn(4, 3, 32, 32)}, None, nullcontext)
        assert all(some.grad.any() for some in learner.parameters.values())  # and nothing else is left out
        take_step(optimizer, learner.parameters, config, 1e-3)
    assert frozen_digest(model) == frozen
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], before) for name, before in decoder.items())


def test_a_run_holds_what_learnt_and_is_that_model(coca, job, tmp_path):
    asked = job(tmp_path / "run", encoder=EncoderConfig(model=coca), react={"mode": "full"}, max_steps=2)
    assert run_job(asked, TrainRunnerConfig())
    held = load_file(tmp_path / "run/checkpoints/00000002/trainable.safetensors")
    assert {name.split(".")[0] for name in held} == {"visual", "text", "logit_scale"}
    state = load_run(CheckpointRef(run=str(tmp_path / "run"))).encoder.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in held.items())


@pytest.mark.parametrize("mode", ["full", "locked-image", "locked-text", "gated-image"])
def test_of_an_ordinary_model_everything_learns(tiny_encoder, mode):
    model = tiny_encoder().model
    names = {name for name, _ in model.named_parameters()}
    visual = {name for name in names if name.startswith("visual.")}
    learner = ReactLearner(model, react_config(mode=mode))
    new = {name for name, _ in model.named_parameters()} - names
    assert bool(new) == (mode == "gated-image")
    expected = {
        "full": names,
        "locked-image": names - visual,
        "locked-text": visual | {"logit_scale"},
        "gated-image": new | {"logit_scale"},
    }
    assert learner.parameters.keys() == expected[mode]
    assert all(some.grad is None for some in model.parameters())


def test_an_image_tower_that_cannot_be_checkpointed_says_what_to_leave_out(tmp_path):
    model = create_model(written(tmp_path, RESNET, CLIP(**RESNET)))
    ReactLearner(model, ReactConfig(mode="full"), "RN50")
    with pytest.raises(EncoderError, match=r"^the image tower of RN50 cannot be checkpointed: leave out --activation-"):
        ReactLearner(model, ReactConfig(mode="full", activation_checkpointing=True), "RN50")
