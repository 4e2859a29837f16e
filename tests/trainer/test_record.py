"""What a run's folder is bound to: nothing before the first checkpoint, its settings from then on."""

import json

import pytest

from memory_builder.errors import ConfigMismatchError, UsageError
from memory_builder.storage import Store
from trainer.loop import LossError
from trainer.reco_job import check_settings
from trainer.reco_settings import FusionConfig, NeighbourConfig
from trainer.record import read_record
from trainer.run import run_job
from trainer.settings import GatedConfig, LoopConfig, Where

pytestmark = pytest.mark.usefixtures("one_thread")


def test_settings_that_nothing_was_learnt_with_may_be_mended(job, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="--last-k 9: the image tower has"):
        run_job(job(run, react={"gated": GatedConfig(last_k=9)}), Where())
    with pytest.raises(LossError):
        run_job(job(run, learning_rate=1e20, react={"mode": "full"}), Where())
    assert run_job(job(run), Where())
    assert read_record(Store(run))["react"]["mode"] == "gated-image"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigMismatchError, match=r"was trained otherwise: loop\.seed"):
        run_job(job(run, seed=1), Where())


def test_what_cannot_be_is_refused_before_anything_is_looked_up(tmp_path, write_memory, clustered):
    memory, images = str(tmp_path / "memory"), clustered(40, 16, seed=0)[0]
    write_memory(tmp_path / "memory", images, images, shard_rows=20)
    settings = {"neighbours": NeighbourConfig(), "loop": LoopConfig(), "positives": "own"}
    check_settings(memory, str(tmp_path / "run"), fusion=FusionConfig(), **settings)
    with pytest.raises(UsageError, match="--heads 7 does not divide the embedding's width 16"):
        check_settings(memory, str(tmp_path / "run"), fusion=FusionConfig(heads=7), **settings)
    with pytest.raises(UsageError, match="-k 11: more than --looked-up 10"):
        check_settings(memory, str(tmp_path / "run"), fusion=FusionConfig(k=11), **settings)
    assert not (tmp_path / "run").exists()
