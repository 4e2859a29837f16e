"""The same training on two workers of a cluster, one of which dies, as on two that live, and as in this process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

import memory_builder as mb
from cluster.runner import RayRunner
from helpers.ray_jobs import DyingReact, Elsewhere, Failing
from helpers.tiny_runs import bundled_pairs, write_subset, write_tiny_model
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.errors import LossError, UsageError, WorkerError
from memory_builder.indexing.config import IndexConfig
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import read_checkpoints
from trainer.loop.config import LoopConfig, TrainRunnerConfig
from trainer.loop.launch import run_job
from trainer.react.config import DataConfig, GatedConfig, ReactConfig
from trainer.react.job import ReactJob
from trainer.reco.config import FusionConfig, NeighbourConfig
from trainer.reco.job import RecoJob, RecoPlan
from trainer.reco.training_pairs import find_neighbours

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray warns of settings of its own that it deprecates, and leaves things open for the garbage collector to close.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LOOP = LoopConfig(batch_size=8, max_steps=4, checkpoint_every=2, log_every=1, precision="fp64")
LAST = "checkpoints/00000004/trainable.safetensors"


def react(out, kind=ReactJob, **told):
    """With relative paths: a worker starts in a folder of its own."""
    return kind(
        subset="subset",
        out=out,
        encoder=EncoderConfig(model="local-dir:model"),
        react=ReactConfig(gated=GatedConfig(last_k=2)),
        data=DataConfig(augmentation="none", readers=1, cache_dtype="float32"),
        loop=LOOP,
        **told,
    )


def reco(out):
    """Neighbours are looked up by workers of the cluster, once."""
    memory, config = "memory", NeighbourConfig(looked_up=3)
    if not Path(memory).exists():
        encoder = EncoderConfig(model="local-dir:model")
        mb.embed(["subset"], memory, encoder=encoder, config=EmbedConfig(), runner=LocalRunner())
        mb.index(memory, keys=("image", "text"), config=IndexConfig(), runner=LocalRunner())
    found = find_neighbours(memory, memory, "neighbours", config, None, RayRunner())
    plan = RecoPlan(memory=memory, train=memory, neighbours=config, fusion=FusionConfig(k=3), loop=LOOP)
    return RecoJob(plan=plan, out=out, neighbours=found)


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained_alike(one, two):
    """Whether a run of one worker and a run of two are the same but for rounding."""
    assert losses(two) == pytest.approx(losses(one), rel=1e-9)
    ours, theirs = (load_file(run / LAST) for run in (one, two))
    return all((tensor - theirs[name]).abs().max() < 1e-6 for name, tensor in ours.items())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    write_tiny_model(tmp_path / "model")
    write_subset(tmp_path / "subset", bundled_pairs())
    return tmp_path


def test_two_workers_one_of_which_dies_train_as_two_that_live_and_as_this_process(folder):
    two = react("two", DyingReact, mark=str(folder / "died"))
    on = TrainRunnerConfig(runner="ray", workers=2, max_failures=1)
    assert run_job(two, on)
    assert (folder / "died").exists()
    assert sorted(read_checkpoints(Store(two.out))) == ["00000002", "00000004"]
    assert not run_job(two, on)  # finished: no worker is started
    assert run_job(replace(two, out="living"), on)  # the file stands: none is killed
    assert (folder / "living" / LAST).read_bytes() == (folder / "two" / LAST).read_bytes()
    run_job(react("one"), TrainRunnerConfig())
    assert trained_alike(folder / "one", folder / "two")


def test_reco_on_two_workers_trains_as_in_this_process(folder):
    assert run_job(reco("two"), TrainRunnerConfig(runner="ray", workers=2))
    run_job(reco("one"), TrainRunnerConfig())
    assert trained_alike(folder / "one", folder / "two")


def test_workers_that_left_no_checkpoint_here_have_failed(tmp_path):
    with pytest.raises(WorkerError, match="run lacks the last checkpoint: --out must name a folder that this machine"):
        run_job(Elsewhere(out=str(tmp_path / "run")), TrainRunnerConfig(runner="ray", workers=1, cpus_per_worker=1))


def test_an_error_that_no_new_try_mends_is_told_at_once_and_workers_without_gpus_see_none(tmp_path):
    job = Failing(out=str(tmp_path / "run"), tries=str(tmp_path / "tries"))
    with pytest.raises(LossError, match="the loss of step 1 is nan"):
        run_job(job, TrainRunnerConfig(runner="ray", workers=1, cpus_per_worker=1))
    assert (tmp_path / "tries").read_text() == "0 "
    assert not Store(job.out).list("failures")


def test_more_workers_than_this_machine_has_room_for_are_refused(tmp_path):
    job = Failing(out=str(tmp_path / "run"), tries=str(tmp_path / "tries"))
    with pytest.raises(UsageError, match="--workers 20: this machine has room for 2 of 20 workers of 1 CPUs"):
        run_job(job, TrainRunnerConfig(runner="ray", workers=20))
