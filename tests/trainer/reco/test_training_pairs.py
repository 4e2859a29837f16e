"""What RECO trains on: embedded as the memory was, never mixed, and kept by a run that was begun with it."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from helpers.tiny_runs import bytes_of, write_subset
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.errors import ConfigMismatchError, EncoderError, SourceError, UsageError
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.formats import parquet_bytes
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import read_checkpoints
from trainer.loop.config import LoopConfig, TrainRunnerConfig
from trainer.loop.launch import run_job
from trainer.reco.config import FusionConfig, NeighbourConfig
from trainer.reco.job import RecoJob, RecoPlan
from trainer.reco.training_pairs import embed_training_pairs, find_neighbours, neighbours_of_run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_training_pairs_are_embedded_with_the_memorys_model(memory, subset, tmp_path):
    made = embed_training_pairs(memory, str(subset), str(tmp_path / "train"), LocalRunner())
    assert made == str(tmp_path / "train")
    assert Memory.open(made).description.fingerprint == Memory.open(memory).description.fingerprint
    assert embed_training_pairs(memory, memory, str(tmp_path / "none"), LocalRunner()) == memory
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.tar").write_bytes(b"no tar")
    with pytest.raises(SourceError, match=r"broken"):
        embed_training_pairs(memory, str(tmp_path / "broken"), str(tmp_path / "other"), LocalRunner())


def test_training_pairs_of_another_source_are_not_mixed_in(memory, icons, tmp_path):
    def embedded():
        return embed_training_pairs(memory, str(tmp_path / "pairs"), str(tmp_path / "run/train"), LocalRunner())

    write_subset(tmp_path / "pairs", icons[:20])
    shutil.copytree(tmp_path / "pairs", tmp_path / "before")
    n_shards = len(Memory.open(embedded()).commits)
    shutil.copy(tmp_path / "pairs" / "00000.tar", tmp_path / "pairs" / "00009.tar")
    assert len(Memory.open(embedded()).commits) == n_shards + 1, "what is added to a source is embedded too"
    (tmp_path / "pairs" / "00009.tar").unlink()
    with pytest.raises(ConfigMismatchError, match=r"run/train holds the pairs of 1 shards .*00009\.tar: .*Remove"):
        embedded()
    shutil.rmtree(tmp_path / "run")
    embedded()
    shutil.rmtree(tmp_path / "pairs")
    write_subset(tmp_path / "pairs", icons[20:])
    with pytest.raises(ConfigMismatchError, match=r"pairs does not hold, or holds changed, such as"):
        embedded()
    with pytest.raises(ConfigMismatchError, match=r"or name another --out"):
        embed_training_pairs(memory, str(tmp_path / "before"), str(tmp_path / "run/train"), LocalRunner())


def test_training_pairs_of_another_model_are_refused(memory, tmp_path, write_memory):
    other = tmp_path / "other"
    write_memory(other, np.eye(16, dtype=np.float32), np.eye(16, dtype=np.float32), fingerprint="1" * 64)
    with pytest.raises(EncoderError, match=r"111111111111.*embed the training pairs with the memory's model"):
        find_neighbours(memory, str(other), str(tmp_path / "n"), NeighbourConfig(), None, LocalRunner())


def test_what_is_left_out_of_the_training_pairs_is_told(memory, icons, tmp_path, capsys):
    write_subset(tmp_path / "pairs", [pair | {"png": b"no picture"} for pair in icons[:3]] + icons[3:10])
    embed_training_pairs(memory, str(tmp_path / "pairs"), str(tmp_path / "train"), LocalRunner())
    assert "left out of the training pairs: 3 not an image" in capsys.readouterr().err


def test_training_pairs_are_embedded_as_the_memory_was(tiny, subset, icons, tmp_path):
    root, config = str(tmp_path / "memory"), EmbedConfig(columns=("site:string",), batch_size=7)
    embed([str(subset)], root, encoder=EncoderConfig(model=tiny), config=config, runner=LocalRunner())
    sited = [pair | {"json": b'{"site": "here"}'} for pair in icons[:4]]
    write_subset(tmp_path / "pairs", sited)
    made = embed_training_pairs(root, str(tmp_path / "pairs"), str(tmp_path / "train"), LocalRunner())
    learnt = Memory.open(made)
    assert learnt.description.config_hash == Memory.open(root).description.config_hash
    assert learnt.metadata(learnt.row_ids(0), ["site"])["site"].to_pylist() == ["here", "here"]


@pytest.fixture
def plan(memory, tmp_path):
    """Of a memory of its own, that may be changed."""
    shutil.copytree(memory, tmp_path / "memory")
    root = str(tmp_path / "memory")
    loop = LoopConfig(batch_size=8, max_steps=4, checkpoint_every=2)
    config = NeighbourConfig(looked_up=2)
    return RecoPlan(memory=root, train=root, neighbours=config, fusion=FusionConfig(k=2), loop=loop)


def test_a_run_goes_on_with_the_neighbours_that_it_began_with(plan, tmp_path, capsys):
    out = str(tmp_path / "run")
    assert plan.check_unfinished(out)
    assert neighbours_of_run(out) is None
    found = find_neighbours(plan.memory, plan.train, f"{out}/neighbours", plan.neighbours, None, LocalRunner())
    run_job(RecoJob(plan=plan, out=out, neighbours=found), TrainRunnerConfig())
    whole = bytes_of(tmp_path / "run")
    Memory.open(plan.memory).delete(ids=[1])
    assert not plan.check_unfinished(out)
    assert "is finished: 4 steps" in capsys.readouterr().err
    last = list(read_checkpoints(Store(out)))[-1]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / last)
    assert plan.check_unfinished(out)
    assert neighbours_of_run(out) == found
    run_job(RecoJob(plan=plan, out=out, neighbours=found), TrainRunnerConfig())
    assert bytes_of(tmp_path / "run") == whole
    next((tmp_path / "run" / "neighbours").glob("*/records/*.json")).unlink()
    assert neighbours_of_run(out) is None


def test_a_run_of_other_pairs_or_artwork_is_refused_by_name(plan, memory, tmp_path):
    out = str(tmp_path / "run")
    found = find_neighbours(plan.memory, plan.train, f"{out}/neighbours", plan.neighbours, None, LocalRunner())
    run_job(RecoJob(plan=plan, out=out, neighbours=found), TrainRunnerConfig())
    clusters = tmp_path / "clusters.parquet"
    clusters.write_bytes(parquet_bytes(pa.table({"key": ["0"], "cluster": [0]})))
    told = {"memory": plan.memory, "neighbours": plan.neighbours, "fusion": plan.fusion, "loop": plan.loop}
    with pytest.raises(ConfigMismatchError, match=r"was trained with other settings: train \("):
        RecoPlan(train=memory, **told).check_unfinished(out)
    with pytest.raises(ConfigMismatchError, match=r"was trained with other settings: clusters_sha256 \(None then"):
        RecoPlan(train=plan.train, clusters=str(clusters), **told).check_unfinished(out)


def test_what_cannot_be_is_refused_before_anything_is_embedded(tmp_path, write_memory, clustered):
    memory, out, images = str(tmp_path / "memory"), str(tmp_path / "run"), clustered(40, 16, seed=0)[0]
    write_memory(memory, images, images, shard_rows=20, columns={"site": "string"})

    def check_unfinished(**told):
        return RecoPlan(memory=memory, train=memory, **told).check_unfinished(out)

    assert check_unfinished()
    assert check_unfinished(neighbours=NeighbourConfig(apart="site"))
    with pytest.raises(UsageError, match="--heads 7 does not divide the embedding's width 16"):
        check_unfinished(fusion=FusionConfig(heads=7))
    with pytest.raises(UsageError, match="-k 11: more than --looked-up 10"):
        check_unfinished(fusion=FusionConfig(k=11))
    with pytest.raises(
        UsageError, match=r"--apart artist: .*memory has no such column; its columns: caption, .*, site, "
    ):
        check_unfinished(neighbours=NeighbourConfig(apart="artist"))
    with pytest.raises(UsageError, match=r"--clusters .*none\.parquet cannot be read"):
        check_unfinished(clusters=str(tmp_path / "none.parquet"))
    write_memory(tmp_path / "unknown", images, images, fingerprint="", model="")
    with pytest.raises(UsageError, match=r"unknown was imported without a model.*import it again with --model"):
        RecoPlan(memory=str(tmp_path / "unknown"), train=memory).check_unfinished(out)
    assert not (tmp_path / "run").exists()
