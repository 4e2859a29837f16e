"""``--index-key auto`` tries what it says on a sample and takes the cheapest that reaches the target."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from memory_builder.ann.quantizer import memory_bytes
from memory_builder.base.runner import LocalRunner
from memory_builder.errors import IndexBuildError
from memory_builder.indexing.auto_key import Trial, best_trial, candidate_keys, index_bytes
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.memory import Memory
from memory_builder.storage.store import Store

pytestmark = pytest.mark.slow

D, N = 32, 12_000


def test_the_candidates_share_their_lists_and_fit_the_budget() -> None:
    keys = candidate_keys(2_000_000, 256, "1G")
    assert keys[0].startswith("OPQ")
    (lists,) = {key.split("IVF")[1].split(",")[0] for key in keys}
    assert keys[1:] == [f"IVF{lists},RaBitQ4", f"IVF{lists},PQ128x4np"]
    assert all(index_bytes(key, 2_000_000, 256) <= memory_bytes("1G") for key in keys[1:])
    assert candidate_keys(2_000_000, 256, "150M")[1:] == [f"IVF{lists},PQ64x4np"]
    assert candidate_keys(5_000, 256, "1G") == ["IDMap2,Flat"]
    with pytest.raises(IndexBuildError, match="the minimum is"):
        candidate_keys(2_000_000, 256, "1M")


@pytest.mark.parametrize("key", ["IVF64,RaBitQ4", "IVF64_HNSW16,PQ16x4np", "IVF64,Flat"])
def test_the_estimate_of_an_index_is_what_it_takes(tmp_path: Path, key: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((20_000, D)).astype(np.float32)
    built = faiss.index_factory(D, key.replace("_HNSW16", ""), faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(1)
    built.train(vectors[:3_000])
    built.add(vectors)
    faiss.write_index(built, str(tmp_path / "index"))
    assert (tmp_path / "index").stat().st_size == pytest.approx(index_bytes(key, 20_000, D), rel=0.05)


def trial(key: str, recall: float, work_bytes: float, *, reached: bool) -> Trial:
    sides = {"image": {"recall@10": recall}, "text": {"recall@10": 1.0}}
    return Trial(
        index_key=key, trial_key=key, n_rows=1, index_bytes=1, sides=sides, reached=reached, work_bytes=work_bytes
    )


def test_the_cheapest_that_reaches_the_target_wins_and_else_the_nearest() -> None:
    good, better, bad = (
        trial("a", 0.96, 9, reached=True),
        trial("b", 0.99, 7, reached=True),
        trial("c", 0.5, 1, reached=False),
    )
    assert best_trial([good, better, bad]) is better
    assert best_trial([bad, trial("d", 0.8, 99, reached=False)]).index_key == "d"


def test_auto_builds_what_won_and_tells_what_was_tried(tmp_path: Path, write_memory: Any, clustered: Any) -> None:
    images, texts = clustered(N, D, seed=0)
    store = write_memory(tmp_path / "memory", images, texts, shard_rows=3_000)
    config = IndexConfig(index_key="auto", max_memory="16G", train_threads=1)
    snapshot = index(store.root, keys=["image"], config=config, runner=LocalRunner())
    record = json.loads(store.read(f"{snapshot.indexes['image'].index}/index.json"))
    tried = [Trial(**fields) for fields in record["trials"]]
    assert len(tried) == 3
    assert best_trial(tried).index_key == record["index_key"]
    assert all(set(t.sides) == {"text", "image"} and t.n_rows == N - N // 20 for t in tried)
    assert record["recall"]["image"]["recall@10"] > 0.9
    found = Memory.open(store.root).search(vectors=images[:3], k=1, keys="image").ids[:, 0]
    assert found.tolist() == [0, 1, 2]
    # The same command finds its trials: nothing is tried again.
    before = {name: store.read(name) for name in trial_files(store)}
    assert index(store.root, keys=["image"], config=config, runner=LocalRunner()) == snapshot
    assert {name: store.read(name) for name in trial_files(store)} == before
    assert len(before) == 3


def trial_files(store: Store) -> list[str]:
    folders = [f"index/{name}" for name in store.list("index", "directory")]
    return [f"{folder}/{name}" for folder in folders for name in store.list(folder) if name.startswith("trial-")]
