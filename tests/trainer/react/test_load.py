"""A run as a model: loaded, interpolated, exported, evaluated."""

from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from memory_builder.cli import main
from memory_builder.commands.evaluate import EvaluateOptions
from memory_builder.errors import EncoderError, UsageError
from trainer.loop.config import TrainRunnerConfig
from trainer.loop.launch import run_job
from trainer.react.export import export_plain, export_released
from trainer.react.gated import GatedConfig, gates, insert_gated_blocks
from trainer.react.job import ReactJob
from trainer.react.load import CheckpointRef, interpolate, load_run
from trainer.react.released_checkpoint import gated_layers, load_released, read_released

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(job, tmp_path_factory):
    """A run whose gates are well open."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_job(job(folder, learning_rate=0.05, ema=0.5, max_steps=4), TrainRunnerConfig())
    return folder


def test_a_run_of_gates_alone_is_what_was_trained(run, job, tmp_path, monkeypatch):
    trained, make = [], ReactJob.learner
    monkeypatch.setattr(ReactJob, "learner", lambda self, encoder: trained.append(make(self, encoder)) or trained[0])
    run_job(
        job(tmp_path / "gates", react={"gates_only": True}, start_from=str(run), learning_rate=0.05),
        TrainRunnerConfig(),
    )
    state, expected = load_run(CheckpointRef(run=str(tmp_path / "gates"))).encoder.model, trained[0].model
    assert torch.equal(images(state), images(expected))
    assert not torch.allclose(images(state), images(load_run(CheckpointRef(run=str(run))).encoder.model), atol=1e-3)


def pixels():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def images(model):
    with torch.no_grad():
        return model.encode_image(pixels())


def test_a_run_is_its_frozen_model_with_what_it_learnt(run, tiny_encoder):
    customised = load_run(CheckpointRef(run=str(run)))
    learnt = load_file(run / "checkpoints/00000004/trainable.safetensors")
    state = customised.encoder.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in learnt.items())
    frozen = tiny_encoder()
    assert all(torch.equal(state[n], t) for n, t in frozen.model.state_dict().items() if n != "logit_scale")
    assert customised.fingerprint != frozen.fingerprint
    assert not torch.allclose(images(customised.encoder.model), images(frozen.model), atol=1e-3)
    average = load_run(CheckpointRef(run=str(run), ema=True))
    assert average.fingerprint != customised.fingerprint
    earlier = load_run(CheckpointRef(run=str(run), step=2))
    assert earlier.step == 2
    with pytest.raises(UsageError, match=r"no checkpoint of step 3; its checkpoints: 2, 4"):
        load_run(CheckpointRef(run=str(run), step=3))
    with pytest.raises(UsageError, match=r"holds no run: name the --out folder of memory-builder train react"):
        load_run(CheckpointRef(run=str(run.parent)))


@pytest.mark.parametrize("wise_alpha", [0.0, 0.5, 1.0])
def test_a_share_mixes_the_weights_of_the_exported_models(run, tiny, tiny_encoder, tmp_path, wise_alpha):
    customised = load_run(CheckpointRef(run=str(run), wise_alpha=wise_alpha))
    export_plain(customised.encoder.model, tiny, tmp_path / "mixed")
    export_plain(load_run(CheckpointRef(run=str(run))).encoder.model, tiny, tmp_path / "whole")
    whole = open_clip.create_model(f"local-dir:{tmp_path / 'whole'}").eval()
    with torch.no_grad():
        for block in whole.visual.transformer.resblocks[1::2]:  # what was gated: 1 and 3 of 0 … 4
            for layer in (block.attn.out_proj, block.mlp.c_proj):
                layer.weight.mul_(wise_alpha)
                layer.bias.mul_(wise_alpha)
    assert torch.allclose(images(customised.encoder.model), images(whole), atol=1e-5)
    if wise_alpha == 0:
        assert torch.equal(images(customised.encoder.model), images(tiny_encoder().model))


def test_towers_that_learnt_are_mixed_weight_by_weight():
    before, learnt = {"visual.proj": torch.zeros(3)}, {"visual.proj": torch.ones(3)}
    assert interpolate(before, learnt, 0.25)["visual.proj"].tolist() == [0.25] * 3


@pytest.mark.parametrize(
    "config",
    [{}, {"mlp_ratio": 2.0}, {"mlp_ratio": 6.0}, {"bottleneck": 16}, {"branches": "mlp"}, {"branches": "attention"}],
)
def test_an_exported_model_is_one_open_clip_loads_and_computes_the_same(tiny_encoder, tmp_path, config):
    encoder = tiny_encoder()
    torch.manual_seed(1)
    insert_gated_blocks(encoder.model, GatedConfig(last_k=2, **config))
    with torch.no_grad():
        for name, some in encoder.model.named_parameters():
            if "alpha" in name:
                some.fill_(0.7)
    export_plain(encoder.model, encoder.config.model, tmp_path)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert len(model.visual.transformer.resblocks) == 5
    assert preprocess.transforms[0].size == 32
    assert not gates(model)
    difference = (images(model.eval()) - images(encoder.model)).abs().max()
    assert difference < 1e-6
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a cat"])
    assert torch.equal(model.encode_text(tokens), encoder.model.encode_text(tokens))
    with pytest.raises(UsageError, match="holds a model already"):
        export_plain(encoder.model, encoder.config.model, tmp_path)


def test_timm_towers_cannot_be_exported_and_say_so(tiny_encoder, tmp_path):
    encoder = tiny_encoder()
    vision = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": "", "timm_proj": "linear"}
    encoder.model.visual = open_clip.model._build_vision_tower(16, vision)
    insert_gated_blocks(encoder.model, GatedConfig(last_k=1))
    with pytest.raises(EncoderError, match=r"of timm cannot be exported: its name fixes its depth"):
        export_plain(encoder.model, encoder.config.model, tmp_path)


RELEASED = (
    "visual.transformer.resblocks.2.gated_attn_block.alpha_attn",
    "visual.transformer.resblocks.2.gated_attn_block.alpha_dense",
    "visual.transformer.resblocks.2.gated_attn_block.attn.in_proj_bias",
    "visual.transformer.resblocks.2.gated_attn_block.attn.in_proj_weight",
    "visual.transformer.resblocks.2.gated_attn_block.attn.out_proj.bias",
    "visual.transformer.resblocks.2.gated_attn_block.attn.out_proj.weight",
    "visual.transformer.resblocks.2.gated_attn_block.ln_1.bias",
    "visual.transformer.resblocks.2.gated_attn_block.ln_1.weight",
    "visual.transformer.resblocks.2.gated_attn_block.ln_2.bias",
    "visual.transformer.resblocks.2.gated_attn_block.ln_2.weight",
    "visual.transformer.resblocks.2.gated_attn_block.mlp.c_fc.bias",
    "visual.transformer.resblocks.2.gated_attn_block.mlp.c_fc.weight",
    "visual.transformer.resblocks.2.gated_attn_block.mlp.c_proj.bias",
    "visual.transformer.resblocks.2.gated_attn_block.mlp.c_proj.weight",
)


def test_released_checkpoints_are_written_and_read_under_the_names_of_their_authors(run, tiny, job, tmp_path):
    customised = load_run(CheckpointRef(run=str(run))).encoder
    export_released(customised.model, tmp_path / "react.safetensors")
    tensors = load_file(tmp_path / "react.safetensors")
    assert tuple(sorted(name for name in tensors if ".2.gated_attn_block." in name)) == RELEASED
    assert tensors[RELEASED[0]].shape == ()
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "epoch_3.pt")
    read = read_released(str(tmp_path / "epoch_3.pt"))
    assert gated_layers(read) == [1, 2]
    model = load_released(tiny, str(tmp_path / "epoch_3.pt"))
    assert torch.equal(images(model), images(customised.model))
    del tensors["logit_scale"]
    torch.save(tensors, tmp_path / "short.pt")
    with pytest.raises(EncoderError, match=r"1 tensors are missing, unexpected .* such as logit_scale"):
        load_released(tiny, str(tmp_path / "short.pt"))
    started = job(tmp_path / "run", start_from=str(tmp_path / "epoch_3.pt"), max_steps=1, learning_rate=1e-12)
    run_job(started, TrainRunnerConfig())
    began = load_run(CheckpointRef(run=str(tmp_path / "run"))).encoder.model
    assert torch.allclose(images(began), images(customised.model), atol=1e-6)
    half = {name: tensor.half() for name, tensor in read.items()}
    torch.save(half | {"visual.proj": half["visual.proj"] * 1.01}, tmp_path / "other.pt")
    other = job(tmp_path / "other", start_from=str(tmp_path / "other.pt"))
    with pytest.raises(
        EncoderError, match=r"other\.pt was trained on another --model: its visual\.proj differs from this model's"
    ):
        run_job(other, TrainRunnerConfig())
    torch.save(half, tmp_path / "half.pt")
    run_job(replace(started, out=str(tmp_path / "half"), start_from=str(tmp_path / "half.pt")), TrainRunnerConfig())
    (tmp_path / "none.pt").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"none\.pt is no checkpoint of tensors"):
        read_released(str(tmp_path / "none.pt"))
    for other in ([1, 2], {"state_dict": [1]}, {"epoch": 3}):
        torch.save(other, tmp_path / "none.pt")
        with pytest.raises(UsageError, match=r"none\.pt is no checkpoint of tensors by name"):
            read_released(str(tmp_path / "none.pt"))


@pytest.mark.parametrize("told", [["--step", "2"], ["--ema"], ["--wise-alpha", "0.5"], ["--share", "0.5"]])
def test_a_released_checkpoint_has_no_states_to_export(run, tiny, tmp_path, capsys, told):
    export_released(load_run(CheckpointRef(run=str(run))).encoder.model, tmp_path / "react.safetensors")
    given = ["train", "export", str(tmp_path / "react.safetensors"), "--model", tiny, "--out", str(tmp_path / "out")]
    assert main([*given, *told]) == 2
    assert "--step, --ema and --wise-alpha are for a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(given) == 0


def test_an_export_to_a_url_is_refused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "export", str(run), "--out", "s3://bucket/model"]) == 2
    assert "--out s3://bucket/model: name a local path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"out": "out"}, "name either --model or --run"),
        ({"model": "ViT-B-32"}, "--out is missing: name a folder for the results"),
        ({"out": "out", "model": "ViT-B-32", "wise_alpha": 0.5}, "--step, --ema and --wise-alpha need --run"),
    ],
)
def test_evaluate_is_told_one_model(told, message):
    with pytest.raises(UsageError, match=message):
        EvaluateOptions(dataset="set", **told).config()
