"""``Memory`` and ``RemoteMemory`` satisfy one protocol whole: the same calls, the same answers."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memory_builder as mb
from helpers.memories import clustered
from helpers.service import serving_at
from memory_builder.search.searchable import Searchable


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> mb.Memory:
    images, texts = clustered(400, 16, seed=0, n_clusters=5)
    metadata = {"key": [f"k{row}" for row in range(400)], "caption": ["a"] * 400, "stars": list(range(400))}
    root = tmp_path_factory.mktemp("searchable") / "memory"
    return mb.Memory.from_vectors(root, images=images, texts=texts, metadata=metadata)


@pytest.fixture(scope="module")
def remote(memory: mb.Memory) -> Iterator[mb.RemoteMemory]:
    with serving_at(Path(memory.store.root)) as url:
        yield mb.RemoteMemory.open(url)


def test_both_are_searchable(memory: mb.Memory, remote: mb.RemoteMemory) -> None:
    assert isinstance(memory, Searchable)
    assert isinstance(remote, Searchable)
    for name in ("search", "rows", "metadata", "vectors", "stated_recall"):
        own, theirs = (inspect.signature(getattr(kind, name)) for kind in (mb.Memory, mb.RemoteMemory))
        assert own == theirs, name


def test_they_answer_alike(memory: mb.Memory, remote: mb.RemoteMemory) -> None:
    queries = memory.vectors([5, 9])
    settings: list[dict[str, Any]] = [
        {},
        {"modality": "text", "query_modality": "image"},
        {"where": "stars < 50", "k": 3},
        {"nprobe": 1, "refine": 2},
        {"side": "text", "keys": "text"},  # former names
    ]
    for arguments in settings:
        ours, theirs = (one.search(vectors=queries, **{"k": 5} | arguments) for one in (memory, remote))
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)
        assert [list(map(dict, hits)) for hits in ours.to_list()] == theirs.to_list()
    ids = ours.ids[0]
    assert memory.rows(ids, ["key", "stars"]).to_pylist() == remote.rows(ids, ["key", "stars"]).to_pylist()
    assert memory.metadata(ids).to_pylist() == remote.metadata(ids).to_pylist()
    assert memory.metadata(ids, "stars").to_pylist() == remote.metadata(ids, "stars").to_pylist()
    np.testing.assert_array_equal(memory.vectors(ids, "text"), remote.vectors(ids, "text"))
    assert (len(memory), memory.description, memory.snapshot) == (len(remote), remote.description, remote.snapshot)
    assert memory.stated_recall("text", "image") == remote.stated_recall("text", "image")
    assert memory.info() == remote.info()
    for one in (memory, remote):
        with pytest.raises(mb.UsageError, match="its picture is"):
            one.picture(int(ids[0]))
