"""However many rows are deleted, a search finds as much of what is left as it was tuned to find."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from memory_builder.base.runner import LocalRunner
from memory_builder.export.faiss_ondisk import merge
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory
from memory_builder.search.filtered import lists_for
from memory_builder.storage.store import Store

N, D, SHARD, K = 20_000, 32, 5_000, 10
Write = Callable[..., Store]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, write_memory: Write, clustered: Any) -> Memory:
    """A tenth of the rows is left."""
    root = tmp_path_factory.mktemp("memory")
    write_memory(root, *clustered(N, D, seed=0), shard_rows=SHARD)
    config = IndexConfig(index_key="IVF256,Flat", train_threads=1, train_points_per_list=40)
    index_memory(str(root), keys=("image",), config=config, runner=LocalRunner())
    memory = Memory.open(root)
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    return memory.delete(ids=np.random.default_rng(0).permutation(ids)[N // 10 :])


def recall(memory: Memory, queries: Any, side: str) -> float:
    left = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    exact = queries @ memory.vectors(left).T
    best = left[np.argsort(-exact, axis=1)[:, :K]]
    found = memory.search(vectors=queries, k=K, side=side).ids  # type: ignore[arg-type]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(best, found, strict=True)]))


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("way", ["widened", "selected"])
def test_recall_stays_at_the_target_when_most_rows_are_deleted(
    memory: Memory, clustered: Any, monkeypatch: pytest.MonkeyPatch, side: str, way: str
) -> None:
    monkeypatch.setattr("memory_builder.search.filtered.FEW_ROWS", 0)  # else so few are scored one by one
    monkeypatch.setattr("memory_builder.search.filtered.WIDEST", 0 if way == "selected" else 10**9)
    queries = clustered(N, D, seed=0)[side == "text"][:500]
    assert recall(memory, queries, side) >= 0.95


def test_and_when_they_are_compacted_or_merged(memory: Memory, clustered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_builder.search.filtered.FEW_ROWS", 0)
    images, _ = clustered(N, D, seed=0)
    compacted = memory.compact()
    assert compacted.index("image").n_rows == N // 10
    assert recall(compacted, images[:500], "image") >= 0.95
    tuned = max(side["nprobe"] for side in memory.tuning("image")["sides"].values())
    merge(memory.store, "image", runner=LocalRunner())
    folder = Path(memory.store.full(f"{memory.snapshot.indexes['image'].index}/merged"))
    merged = faiss.read_index(str(folder / "populated.index"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    assert faiss.extract_index_ivf(merged).nprobe == min(256, 10 * tuned)


@pytest.mark.parametrize(
    ("n_rows", "lists"),
    [(1_000, 8), (999, 8), (2_000, 8), (500, 16), (100, 64), (0, 64), (980, 9)],
    ids=["all", "one less", "grown", "half", "few", "none", "a fifth of a list less"],
)
def test_lists_hold_as_many_rows_as_they_were_tuned_for(n_rows: int, lists: int) -> None:
    assert lists_for(n_rows, 8, 1_000, 64) == lists


def test_rows_that_lack_the_side_hide_nothing(tmp_path: Path, write_memory: Write, clustered: Any) -> None:
    """They are none of the index's, and no filter that keeps them makes its lists fuller."""
    images, texts = clustered(4_000, D, seed=0)
    images[::2] = 0
    write_memory(tmp_path, images, texts, shard_rows=1_000)
    config = IndexConfig(index_key="IVF64,Flat", train_threads=1)
    index_memory(str(tmp_path), keys=("image",), config=config, runner=LocalRunner())
    memory = Memory.open(tmp_path)
    asked = images[1:200:2]
    plain = memory.search(vectors=asked, k=K).ids
    assert memory.search(vectors=asked, k=K, where="key >= ''").ids.tolist() == plain.tolist()
