"""What a run begins with is all that was trained there: what has no place here is refused, not dropped."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from memory_builder.errors import UsageError
from trainer.loop.config import TrainRunnerConfig
from trainer.loop.launch import run_job
from trainer.react.config import GatedConfig
from trainer.react.export import export_released
from trainer.react.load import CheckpointRef, load_run

pytestmark = pytest.mark.usefixtures("one_thread")
LAST = "checkpoints/00000002/trainable.safetensors"


@pytest.fixture(scope="module")
def trained(job, tmp_path_factory):
    """Runs of two steps: in two gated blocks, and in both towers."""
    folder = tmp_path_factory.mktemp("start")
    run_job(job(folder / "gated", learning_rate=0.05, max_steps=2), TrainRunnerConfig())
    run_job(job(folder / "full", react={"mode": "full"}, learning_rate=0.01, max_steps=2), TrainRunnerConfig())
    return folder


@pytest.mark.parametrize(
    ("source", "react", "message"),
    [
        (
            "gated",
            {"gated": GatedConfig(last_k=1)},
            r"gated trained visual\.transformer\.resblocks\.1\.gated_attn_block\.\S+ and 13 others, which would be lost"
            r".*\(--mode gated-image --logit-scale trainable --last-k 2 --branches both\)",
        ),
        (
            "gated",
            {"gated": GatedConfig(last_k=2, branches="mlp")},
            r"gated_attn_block\.\S+ and \d+ others, which would",
        ),
        (
            "gated",
            {"gated": GatedConfig(last_k=2), "logit_scale": "frozen"},
            "gated trained logit_scale, which would be",
        ),
        (
            "full",
            {"mode": "locked-image"},
            r"full trained visual\.\S+ and \d+ others.*\(--mode full --logit-scale train",
        ),
        ("full", {"mode": "locked-text"}, r"full trained \S+ and \d+ others, which would be lost"),
    ],
)
def test_a_start_that_was_trained_in_more_than_learns_here_is_refused(trained, job, tmp_path, source, react, message):
    with pytest.raises(UsageError, match=message):
        run_job(job(tmp_path / "run", start_from=str(trained / source), react=react), TrainRunnerConfig())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_start_that_was_trained_in_less_is_taken_and_told(trained, job, tmp_path, capsys):
    deeper = {"gated": GatedConfig(last_k=3)}
    run_job(job(tmp_path / "run", start_from=str(trained / "gated"), react=deeper, max_steps=1), TrainRunnerConfig())
    assert "sets 29 of 43 parameters; visual.transformer.resblocks.0." in capsys.readouterr().err


def test_a_scale_that_never_moved_is_not_missed(job, tmp_path):
    frozen = {"mode": "full", "logit_scale": "frozen"}
    run_job(job(tmp_path / "frozen", react=frozen, max_steps=2), TrainRunnerConfig())
    run_job(
        job(tmp_path / "again", react=frozen, start_from=str(tmp_path / "frozen"), max_steps=1), TrainRunnerConfig()
    )
    assert "logit_scale" not in load_file(tmp_path / "frozen" / LAST)


def test_a_released_checkpoints_blocks_and_scale_must_have_a_place(trained, job, tmp_path):
    path = tmp_path / "react.safetensors"
    export_released(load_run(CheckpointRef(run=str(trained / "gated"))).encoder.model, path)
    settings = r"\(--mode gated-image --last-k 2 --logit-scale trainable\)"
    for react, message in (
        ({"gated": GatedConfig(last_k=1)}, rf"trained visual\S+\.1\.gated_attn_block\.\S+ and 13 others.*{settings}"),
        ({"gated": GatedConfig(last_k=2), "logit_scale": "frozen"}, rf"trained logit_scale, which .*{settings}"),
        ({"mode": "locked-text"}, rf"gated_attn_block\.\S+ and 27 others.*{settings}"),
    ):
        with pytest.raises(UsageError, match=message):
            run_job(job(tmp_path / "run", start_from=str(path), react=react), TrainRunnerConfig())
    save_file(load_file(path) | {"input_resolution": torch.tensor(32)}, path)  # as OpenAI's: no parameter at all
    run_job(job(tmp_path / "run", start_from=str(path), max_steps=1), TrainRunnerConfig())
