"""The driver killed at random moments: what benchmarks/chaos.py does 25 times, once a stage."""

import shutil

from helpers.bundled import load_benchmark

INDEX_ARGS = "--index-key IVF8_HNSW16,PQ16x4np --part-rows 100"


def test_embed_and_index_killed_at_random_moments_write_the_bytes_of_an_uninterrupted_run(
    tmp_path, small_shards, model
):
    chaos = load_benchmark("chaos")
    shards = f"{small_shards}/*.tar"
    stages = ("embed", "index")
    config = chaos.Chaos(shards=shards, model=model, work=tmp_path, stages=stages, kills=1, index_args=INDEX_ARGS)
    outcomes = {outcome.stage: outcome for outcome in chaos.chaos(config)}
    assert outcomes["embed"].kills == outcomes["index"].kills == 1
    # index starts with ten commit records, so any kill leaves some: that they stay untouched was really looked at
    assert outcomes["index"].records_kept >= 10


def test_embed_killed_over_an_object_store_writes_the_bytes_of_an_uninterrupted_run_on_disk(
    tmp_path, small_shards, model, s3
):
    chaos = load_benchmark("chaos")
    shards = f"{small_shards}/0000[0-3].tar"
    config = chaos.Chaos(shards=shards, model=model, work=tmp_path, memory_root=s3.url, stages=("embed",), kills=1)
    (outcome,) = chaos.chaos(config)
    assert (outcome.stage, outcome.kills) == ("embed", 1)


def test_changes_killed_at_random_moments_leave_the_old_state_or_the_new_and_go_on(tmp_path, small_shards, model):
    chaos = load_benchmark("chaos")
    shards = f"{small_shards}/0000[0-3].tar"
    args = "--index-key IVF4,Flat --part-rows 60 --keys image"
    stages = ("append", "delete", "snapshot", "compact", "merge")  # purge is stopped at every write in test_changes.py
    config = chaos.Chaos(shards=shards, model=model, work=tmp_path, stages=stages, kills=1, index_args=args)
    outcomes = {outcome.stage: outcome.kills for outcome in chaos.chaos(config)}
    assert outcomes == dict.fromkeys(stages, 1)


def test_retrieve_killed_at_random_moments_writes_the_subset_of_an_uninterrupted_run(
    tmp_path, small_shards, built_memory, model
):
    chaos = load_benchmark("chaos")
    shards = f"{small_shards}/00000.tar"
    config = chaos.Chaos(shards=shards, indexed=built_memory, model=model, work=tmp_path, stages=("retrieve",), kills=1)
    (outcome,) = chaos.chaos(config)
    assert (outcome.stage, outcome.kills) == ("retrieve", 1)


def test_training_killed_at_random_moments_writes_the_checkpoints_of_an_uninterrupted_run(
    tmp_path, small_shards, model
):
    chaos = load_benchmark("chaos")
    (tmp_path / "shards").mkdir()
    shutil.copy(small_shards / "00000.tar", tmp_path / "shards")
    shards = f"{tmp_path}/shards/*.tar"
    (outcome,) = chaos.chaos(
        chaos.Chaos(shards=shards, model=model, work=tmp_path / "work", stages=("train",), kills=2)
    )
    assert (outcome.stage, outcome.kills) == ("train", 2)
