"""A merged index answers plain faiss as the memory answers, and a killed merge goes on."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from memory_builder.base.runner import LocalRunner
from memory_builder.base.types import Ids, row_ids
from memory_builder.catalog.dense_ids import DenseIds
from memory_builder.cli import main
from memory_builder.errors import UsageError
from memory_builder.export.faiss_ondisk import merge
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory

N, D = 1_200, 16
KEYS = ["IVF16,Flat", "OPQ8_16,IVF16_HNSW8,PQ8x4np", "IVF16,RaBitQ4"]


@pytest.fixture(params=KEYS)
def memory(request: pytest.FixtureRequest, tmp_path: Path, write_memory: Callable[..., Any], clustered: Any) -> Memory:
    return build(tmp_path / "memory", request.param, write_memory, clustered)


def build(root: Path, key: str, write_memory: Callable[..., Any], clustered: Any) -> Memory:
    """Six shards in three parts, with some deleted rows."""
    write_memory(root, *clustered(N, D, seed=0), shard_rows=200)
    config = IndexConfig(index_key=key, train_threads=1, part_rows=400)
    index_memory(str(root), keys=("image",), config=config, runner=LocalRunner())
    return Memory.open(root).delete(ids=[3, 5, (2 << 32) + 7, (5 << 32) + 199])


def merged_folder(memory: Memory) -> Path:
    return Path(memory.store.full(f"{memory.snapshot.indexes['image'].index}/merged"))


def opened(folder: Path) -> Any:
    return faiss.read_index(str(folder / "populated.index"), faiss.IO_FLAG_ONDISK_SAME_DIR)


class KilledRunner:
    """Dies after one item."""

    def run(self, task: Any, items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        yield next(LocalRunner().run(task, items))
        raise RuntimeError("killed")


def test_plain_faiss_finds_in_it_what_the_memory_finds(memory: Memory, tmp_path: Path) -> None:
    assert merge(memory.store, "image", runner=LocalRunner(), range_bytes=10_000).n_rows == N - 4
    merged_folder(memory).rename(tmp_path / "elsewhere")
    index = opened(tmp_path / "elsewhere")
    queries = memory.vectors(np.arange(50), "text")
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)  # as the memory does
    nprobe = max(side["nprobe"] for side in memory.tuning("image")["sides"].values())
    ours = memory.search(vectors=queries, k=10, refine=0, nprobe=nprobe)
    scores, ids = index.search(queries, 10)
    # RaBitQ skips what a bound rules out, and the bound depends on what was met before: on how rows lie in parts.
    assert np.isclose(scores, ours.scores, atol=1e-5).mean() > 0.99
    assert (ids == ours.ids).mean() > 0.99
    faiss.extract_index_ivf(index).nprobe = 16
    everything = index.search(queries[:1], N)[1][0]
    kept = DenseIds(dict.fromkeys(range(6), 200), np.array([3, 5, (2 << 32) + 7, (5 << 32) + 199]))
    assert sorted(everything[everything >= 0].tolist()) == np.concatenate(list(kept.by_shard())).tolist()


def test_a_killed_merge_goes_on_and_gives_the_same_bytes(tmp_path: Path, write_memory: Any, clustered: Any) -> None:
    memory = build(tmp_path, KEYS[0], write_memory, clustered)
    folder = merged_folder(memory)
    merge(memory.store, "image", runner=LocalRunner(), range_bytes=10_000)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(whole) == ["merged.json", "merged_index.ivfdata", "populated.index"]
    memory = memory.delete(ids=[11])
    with pytest.raises(RuntimeError, match="killed"):
        merge(memory.store, "image", runner=KilledRunner(), range_bytes=10_000)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name in whole} == whole
    assert len(list(folder.glob("*.lists"))) == len(list(folder.glob("*.npy"))) == 1
    merge(memory.store, "image", runner=LocalRunner(), range_bytes=10_000)
    lists = (folder / "merged_index.ivfdata").read_bytes()
    assert sorted(file.name for file in folder.iterdir()) == sorted(whole)
    for file in folder.iterdir():
        file.unlink()
    assert merge(memory.store, "image", runner=LocalRunner()).n_rows == N - 5
    assert (folder / "merged_index.ivfdata").read_bytes() == lists


def test_what_was_gathered_goes_even_if_the_merge_was_killed_at_its_very_end(
    tmp_path: Path, write_memory: Any, clustered: Any
) -> None:
    memory = build(tmp_path / "memory", KEYS[0], write_memory, clustered)
    merge(memory.store, "image", runner=LocalRunner())
    there = {path.name for path in merged_folder(memory).iterdir()}
    (merged_folder(memory) / "lists-0123456789abcdef-00000000-00000016.lists").write_bytes(b"gathered")
    merge(memory.store, "image", runner=LocalRunner())
    assert {path.name for path in merged_folder(memory).iterdir()} == there


def test_what_is_merged_is_left_alone_until_the_memory_changes(
    tmp_path: Path, write_memory: Any, clustered: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    memory = build(tmp_path, KEYS[0], write_memory, clustered)
    lists = merged_folder(memory) / "merged_index.ivfdata"
    assert main(["merge", str(tmp_path)]) == 0
    assert capfd.readouterr().out.startswith(f"image: {N - 4:,} rows, ")
    first = lists.stat().st_mtime_ns
    assert main(["merge", str(tmp_path), "--keys", "image"]) == 0
    assert lists.stat().st_mtime_ns == first
    memory.delete(ids=[11])
    assert main(["merge", str(tmp_path)]) == 0
    assert opened(merged_folder(memory)).ntotal == N - 5
    Memory.open(tmp_path).compact(purge=True)  # what it holds may have to go
    assert not list(lists.parent.iterdir())


def test_what_cannot_be_merged(tmp_path: Path, write_memory: Any, clustered: Any, capsys: Any) -> None:
    write_memory(tmp_path, *clustered(50, 8, seed=0))
    assert main(["merge", str(tmp_path)]) == 2
    assert "memory-builder index" in capsys.readouterr().err
    index_memory(str(tmp_path), keys=("text",), config=IndexConfig(), runner=LocalRunner())
    with pytest.raises(UsageError, match="exact and has no inverted lists"):
        merge(Memory.open(tmp_path).store, "text", runner=LocalRunner())


@pytest.mark.parametrize("deleted", [[], [0], [2, (4 << 32) + 1], [(4 << 32), (4 << 32) + 1, (4 << 32) + 2]])
def test_kept_rows_are_numbered_in_order_of_their_ids(deleted: list[int]) -> None:
    kept = DenseIds({4: 3, 0: 3, 7: 2}, np.array(deleted, np.int64))
    ids: Ids = np.concatenate([row_ids(ordinal, np.arange(n)) for ordinal, n in ((0, 3), (4, 3), (7, 2))])
    left = ids[kept.has(ids)]
    assert left.tolist() == [i for i in ids.tolist() if i not in deleted]
    assert kept.numbers(left).tolist() == list(range(kept.n)) == list(range(8 - len(deleted)))
    assert np.concatenate(list(kept.by_shard())).tolist() == left.tolist()
