"""An index is built once for its rows and settings, goes on where it was stopped, and covers what has the modality."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.stopping import Stopping
from memory_builder.base.runner import LocalRunner
from memory_builder.catalog.snapshots import read_snapshot
from memory_builder.errors import CorruptMemoryError, IndexBuildError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory
from memory_builder.storage.store import Store

N, D = 600, 16
IVF = IndexConfig(index_key="IVF8,Flat", train_threads=1, part_rows=200)
Write = Callable[..., Store]


@pytest.fixture
def memory(write_memory: Write, clustered: Any, tmp_path: Path) -> Store:
    return write_memory(tmp_path / "memory", *clustered(N, D, seed=0), shard_rows=200)


def build(store: Store, config: IndexConfig = IVF, keys: Sequence[Any] = ("image",), runner: Any = None) -> Any:
    return index_memory(store.root, keys=keys, config=config, runner=runner or LocalRunner())


def files(root: str | Path) -> dict[str, bytes]:
    """What must be the same bytes each time."""
    kept = (".faiss", "held_out.npy", "trained.json")
    return {
        str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.name.endswith(kept)
    }


@pytest.mark.parametrize("key", [None, "IVF8,Flat", "OPQ8_16,IVF8,PQ8x4np"])
def test_building_twice_in_two_places_gives_the_same_bytes(memory: Store, tmp_path: Path, key: str | None) -> None:
    shutil.copytree(memory.root, tmp_path / "copy")
    config = IndexConfig(index_key=key, train_threads=1, part_rows=200)
    for root in (memory.root, tmp_path / "copy"):
        build(Store(root), config, ("image", "text"))
    assert files(memory.root) == files(tmp_path / "copy")
    assert len(files(memory.root)) == 2 * (3 + 3)


def test_building_again_changes_nothing(memory: Store) -> None:
    first = build(memory)
    trained = Path(memory.full(f"{first.indexes['image'].index}/trained.faiss")).stat().st_ino
    assert build(memory) == first
    assert read_snapshot(memory) == first
    assert Path(memory.full(f"{first.indexes['image'].index}/trained.faiss")).stat().st_ino == trained


def test_both_modalities_become_current_at_once(memory: Store) -> None:
    snapshot = build(memory, keys=("image", "text"))
    assert snapshot.number == 1
    assert set(snapshot.indexes) == {"image", "text"}
    assert snapshot.indexes["image"].index != snapshot.indexes["text"].index


def test_another_setting_is_another_index_beside_the_first(memory: Store) -> None:
    first = build(memory)
    second = build(memory, IndexConfig(index_key="IVF4,Flat", train_threads=1))
    assert second.number == 2
    assert second.indexes["image"].index != first.indexes["image"].index
    assert Path(memory.full(first.indexes["image"].index)).exists()


@pytest.mark.parametrize("after", range(6))
def test_a_stopped_build_goes_on_and_ends_with_the_same_bytes(memory: Store, tmp_path: Path, after: int) -> None:
    shutil.copytree(memory.root, tmp_path / "whole")
    whole = build(Store(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        build(memory, runner=Stopping(after))
    assert read_snapshot(memory).number == 0
    done = {path: Path(memory.full(path)).stat().st_ino for path in files(memory.root)}
    assert len(done) >= min(3, 3 * after)
    assert build(memory) == whole
    assert files(memory.root) == files(tmp_path / "whole")
    recorded = {path: inode for path, inode in done.items() if path.endswith(("trained.faiss", "held_out.npy"))}
    assert all(Path(memory.full(path)).stat().st_ino == inode for path, inode in recorded.items())


def test_only_rows_with_the_modality_are_indexed(write_memory: Write, clustered: Any, tmp_path: Path) -> None:
    images, texts = clustered(300, D, seed=0)
    images[::3] = 0
    store = write_memory(tmp_path, images, texts, shard_rows=100)
    snapshot = build(store, IndexConfig(), ("image", "text"))
    assert (snapshot.indexes["image"].n_rows, snapshot.indexes["text"].n_rows) == (200, 300)
    memory = Memory.open(tmp_path)
    ids = memory.search(vectors=images[1], k=300).ids[0]
    found = ids[ids >= 0]
    assert len(found) == 200
    assert not (((found >> 32) * 100 + (found & 0xFFFFFFFF)) % 3 == 0).any()


def test_a_memory_of_one_modality_is_indexed_by_that_one(write_memory: Write, clustered: Any, tmp_path: Path) -> None:
    store = write_memory(tmp_path, clustered(100, D, seed=0)[0], None)
    assert build(store, IndexConfig()).indexes["image"].n_rows == 100
    assert set(Memory.open(tmp_path).tuning("image")["sides"]) == {"image"}
    with pytest.raises(IndexBuildError, match="no text vectors to index"):
        build(store, IndexConfig(), ("text",))
    assert read_snapshot(store).number == 1


@pytest.mark.parametrize("n", [1, 2, 19, 20, 25])
def test_a_tiny_memory_is_indexed_and_searched(write_memory: Write, clustered: Any, tmp_path: Path, n: int) -> None:
    images, texts = clustered(n, D, seed=0)
    store = write_memory(tmp_path, images, texts, shard_rows=7)
    build(store, IndexConfig(), ("image", "text"))
    hits = Memory.open(tmp_path).search(vectors=images, k=30)
    positions = np.arange(n)
    assert hits.ids[:, 0].tolist() == ((positions // 7 << 32) | positions % 7).tolist()
    assert ((hits.ids >= 0).sum(axis=1) == n).all()


def test_shards_without_rows_do_no_harm(write_memory: Write, clustered: Any, tmp_path: Path) -> None:
    images, texts = clustered(60, D, seed=0)
    images[20:40] = texts[20:40] = 0
    store = write_memory(tmp_path, images, texts, shard_rows=20)
    assert build(store, IndexConfig()).indexes["image"].n_rows == 40
    assert (Memory.open(tmp_path).search(vectors=images[0], k=60).ids >= 0).sum() == 40


def test_nothing_to_index_is_an_error(write_memory: Write, tmp_path: Path) -> None:
    store = write_memory(tmp_path, np.zeros((5, D), np.float32), None)
    with pytest.raises(IndexBuildError, match="no image vectors to index"):
        build(store)


def test_more_lists_than_rows_is_an_error_and_leaves_no_state(memory: Store) -> None:
    with pytest.raises(IndexBuildError, match=r"1,024 lists, more than the 570 training rows"):
        build(memory, IndexConfig(index_key="IVF1024,Flat"))
    assert read_snapshot(memory).number == 0


def test_a_budget_nothing_fits_is_an_error_and_leaves_no_state(memory: Store) -> None:
    with pytest.raises(IndexBuildError, match=r"the least that does is 0\.1M"):
        build(memory, IndexConfig(max_memory="1K"))
    assert read_snapshot(memory).number == 0
    assert not Path(memory.full("index")).exists()


def test_vectors_that_are_gone_are_an_error_and_leave_the_state(memory: Store) -> None:
    before = build(memory)
    memory.remove("img_emb/img_emb_00001.npy")
    with pytest.raises(CorruptMemoryError, match="img_emb_00001"):
        build(memory, IndexConfig(index_key="IVF4,Flat"))
    assert read_snapshot(memory) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_recall": 0.0},
        {"target_recall": 1.1},
        {"part_rows": 0},
        {"train_threads": 0},
        {"train_points_per_list": 0},
        {"index_key": "HNSW32"},
    ],
)
def test_a_setting_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--" + next(iter(wrong)).replace("_", "-")):
        IndexConfig(**wrong)


def test_the_record_carries_the_keys_autofaiss_writes(memory: Store) -> None:
    folder = build(memory).indexes["image"].index
    record = json.loads(memory.read(f"{folder}/index.json"))
    assert record["index_key"] == "IVF8,Flat"
    assert record["nb vectors"] == N
    assert record["vectors dimension"] == D
    assert record["size in bytes"] == sum(memory.size(f"{folder}/parts/{name}.faiss") for name in record["parts"])
    assert {"index_param", "index_path", "compression ratio"} <= set(record)
    assert record["quantizer"]["sha256"] == memory.checksum(f"{folder}/trained.faiss")
