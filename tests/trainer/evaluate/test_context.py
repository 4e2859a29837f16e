"""What a command names is used, or refused."""

import shutil
from pathlib import Path

import pytest

from helpers.evaluation_sets import classification_set
from memory_builder.cli import main
from memory_builder.commands.evaluate import DevOptions, EvaluateOptions
from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig
from trainer.evaluate.config import EvalConfig
from trainer.evaluate.context import open_context


def test_dev_split_alone_is_another_split_of_the_set_that_is_measured(shapes, evaluate, tmp_path):
    options = EvaluateOptions(dataset=Path("set"), out="run", model="ViT-B-32")
    cases = {
        DevOptions(): (None, "test"),
        DevOptions(dev_split="val"): (Path("set"), "val"),
        DevOptions(dev=Path("dev")): (Path("dev"), "test"),
        DevOptions(dev=Path("dev"), dev_split="val"): (Path("dev"), "val"),
    }
    for choosing, expected in cases.items():
        config = options.config(choosing)
        assert (config.dev, config.dev_split) == expected
    ran = evaluate("linear-probe", "--dataset", shapes, "--dev-split", "test", "--out", tmp_path)
    assert (ran.code, "is the test set" in ran.err) == (2, True), ran.err


@pytest.mark.parametrize("task", [("zero-shot",), ("reco", "--memory", "memory")])
def test_weights_beside_a_run_are_refused(task, tmp_path, capsys):
    given = ["--run", str(tmp_path), "--dataset", str(tmp_path), "--pretrained", "openai"]
    assert main(["evaluate", *task, *given]) == 2
    assert "--pretrained needs --model" in capsys.readouterr().err


def test_what_dev_learns_from_may_not_hold_what_is_measured(shapes, model_dir, tmp_path):
    dev = classification_set(tmp_path / "dev", splits={"test": 3}, first_seed=500)
    shutil.copytree(shapes / "test", dev / "train")
    encoder = EncoderConfig(model=f"local-dir:{model_dir}")
    context = open_context(EvalConfig(encoder=encoder, dataset=shapes, out=tmp_path / "run", dev=dev))
    with pytest.raises(UsageError, match=rf"train: 72 of the 72 pictures of {shapes} test are in {dev} train"):
        context.train(context.dev)
    assert len(context.train(context.test)) == 60
