"""The same training on two workers of a cluster, one of which dies, as in this process."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "trainer"))
from tiny_runs import bundled_pairs, write_subset, write_tiny_model

from memory_builder.encoder import EncoderConfig
from memory_builder.storage import Store
from trainer.checkpoint import read_states
from trainer.react_job import ReactJob
from trainer.run import run_job
from trainer.settings import DataConfig, GatedConfig, LoopConfig, ReactConfig, Where
from trainer.world import world

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiesOnce(ReactJob):
    """A job one of whose workers is killed after the first checkpoint, unless a file says that it was."""

    mark: str

    def work(self, report):
        def report_and_die(figures):
            report(figures)
            if world().rank == 1 and not os.path.exists(self.mark):
                Path(self.mark).touch()
                os.kill(os.getpid(), signal.SIGKILL)

        ReactJob.work(self, report_and_die)


def job(kind, tmp_path, name, **told):
    return kind(
        subset=str(tmp_path / "subset"),
        out=str(tmp_path / name),
        encoder=EncoderConfig(model=f"local-dir:{tmp_path / 'model'}"),
        react=ReactConfig(gated=GatedConfig(last_k=2)),
        data=DataConfig(augmentation="none", readers=1, cache_dtype="float32"),
        loop=LoopConfig(batch_size=8, max_steps=4, checkpoint_every=2, log_every=1, precision="fp64"),
        **told,
    )


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


# Ray warns of settings of its own that it deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_workers_one_of_which_dies_train_as_this_process_does(tmp_path):
    (tmp_path / "model").mkdir()
    write_tiny_model(tmp_path / "model")
    write_subset(tmp_path / "subset", bundled_pairs())
    two = job(DiesOnce, tmp_path, "two", mark=str(tmp_path / "died"))
    on = Where(runner="ray", workers=2, max_failures=1)
    assert run_job(two, on)
    assert (tmp_path / "died").exists()
    assert sorted(read_states(Store(two.out))) == ["00000002", "00000004"]
    assert not run_job(two, on)  # finished: no worker is started
    run_job(job(ReactJob, tmp_path, "one"), Where())
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-9)
    last = "checkpoints/00000004/trainable.safetensors"
    ours, theirs = (load_file(tmp_path / name / last) for name in ("one", "two"))
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() < 1e-6, name
