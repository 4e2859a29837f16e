"""Parts spread over actors answer as they do in one process, also when an actor dies."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.search import SearchPool, share_out
from memory_builder.base.runner import LocalRunner
from memory_builder.errors import CorruptMemoryError, UsageError
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index
from memory_builder.memory import Memory
from memory_builder.search.open_index import OpenIndex

N, D = 6_000, 32


def test_shares_are_about_equal_and_hold_every_part_once():
    sizes = {f"p{i}": size for i, size in enumerate([9, 1, 1, 1, 5, 4, 3, 3])}
    shares = share_out(sizes, 3)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    totals = [sum(sizes[name] for name in share) for share in shares]
    assert max(totals) - min(totals) <= 1
    assert share_out({"a": 1}, 4) == [["a"]]


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_memory, clustered):
    """An index of six parts; some rows are deleted."""
    store = write_memory(tmp_path_factory.mktemp("spread"), *clustered(N, D, seed=0))
    config = IndexConfig(index_key="IVF32,SQ8", part_rows=1_000, train_threads=1)
    index(store.root, keys=["image", "text"], config=config, runner=LocalRunner())
    Memory.open(store.root).delete(ids=np.arange(0, 50))
    return store


@pytest.fixture
def spread(store, ray_cluster):
    """(the memory with its parts on two actors, the pool)."""
    memory = Memory.open(store.root)
    view = memory.snapshot.indexes["image"]
    parts = view.parts
    pool = SearchPool(ray_cluster.address, store, view.index, parts, cpus_per_actor=1)
    assert len(pool._actors) == 2
    memory._indexes["image"] = OpenIndex(store, view.index, parts, remote_scan=pool.scan)
    yield memory, pool
    for actor in pool._actors:
        ray.kill(actor.handle)


RNG = np.random.default_rng(1)
QUERIES = RNG.standard_normal((40, D)).astype(np.float32)
ARGUMENTS = [{}, {"k": 3, "refine": 0}, {"where": "key < '00000900'"}, {"where": "key LIKE '%7'"}, {"nprobe": 1}]


@pytest.mark.ray
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_the_answers_are_those_of_one_process(store, spread, arguments):
    here = Memory.open(store.root).search(vectors=QUERIES, **arguments)
    there = spread[0].search(vectors=QUERIES, **arguments)
    np.testing.assert_array_equal(there.ids, here.ids)
    np.testing.assert_array_equal(there.scores, here.scores)


@pytest.mark.ray
def test_an_actor_that_dies_is_replaced_and_its_parts_are_searched_again(store, spread):
    memory, pool = spread
    here = Memory.open(store.root).search(vectors=QUERIES)
    first = pool._actors[0]
    os.kill(ray.get(first.opened), signal.SIGKILL)
    np.testing.assert_array_equal(memory.search(vectors=QUERIES).ids, here.ids)
    assert pool._actors[0] is not first
    # Several threads that find it dead start one in its place.
    second = pool._actors[1]
    os.kill(ray.get(second.opened), signal.SIGKILL)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: memory.search(vectors=QUERIES).ids, range(8)))
    assert all(np.array_equal(answer, here.ids) for answer in answers)
    assert len({ray.get(actor.opened) for actor in pool._actors}) == 2


@pytest.mark.ray
def test_a_memory_opened_with_an_address_is_spread(store, ray_cluster):
    here, there = Memory.open(store.root), Memory.open(store.root, address=ray_cluster.address)
    for memory in (there, there.latest()):  # the actors of one index leave room for those of the others
        for keys in ("image", "text"):
            found = memory.search(vectors=QUERIES, side=keys, keys=keys)
            np.testing.assert_array_equal(found.ids, here.search(vectors=QUERIES, side=keys, keys=keys).ids)


@pytest.mark.ray
def test_what_an_actor_cannot_open_is_told_as_it_would_be_here(store, ray_cluster):
    memory = Memory.open(store.root, address=ray_cluster.address, serve_format="fastscan")
    with pytest.raises(UsageError, match="cannot be served as fastscan"):
        memory.search(vectors=QUERIES)
    view = memory.snapshot.indexes["image"]
    part = store.full(f"{view.index}/parts/{view.segments[0][0]}.faiss")
    data = store.read(f"{view.index}/parts/{view.segments[0][0]}.faiss")
    try:
        os.truncate(part, len(data) // 2)
        with pytest.raises(CorruptMemoryError, match="its record says"):
            Memory.open(store.root, address=ray_cluster.address).search(vectors=QUERIES)
    finally:
        Path(part).write_bytes(data)
