"""What a run's folder is bound to: nothing before the first checkpoint, its settings from then on."""

import json

import pytest

from memory_builder.errors import ConfigMismatchError, LossError, UsageError
from memory_builder.storage.store import Store
from trainer.loop.config import TrainRunnerConfig
from trainer.loop.launch import run_job
from trainer.loop.run_config import read_run_config
from trainer.react.config import GatedConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def test_settings_that_nothing_was_learnt_with_may_be_mended(job, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="--last-k 9: the image tower has"):
        run_job(job(run, react={"gated": GatedConfig(last_k=9)}), TrainRunnerConfig())
    with pytest.raises(LossError):
        run_job(job(run, learning_rate=1e20, react={"mode": "full"}), TrainRunnerConfig())
    assert run_job(job(run), TrainRunnerConfig())
    assert read_run_config(Store(run))["react"]["mode"] == "gated-image"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigMismatchError, match=r"was trained with other settings: loop\.seed"):
        run_job(job(run, seed=1), TrainRunnerConfig())
