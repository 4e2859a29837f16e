"""Search the parts of an index on actors: each query is sent to all, and their candidates are merged.

A dead actor is replaced by one that opens the same parts and repeats the query.
"""

import heapq
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import faiss
import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.runner import DEATHS, PATIENCE_S, last_line, original_error
from cluster.runtime import connect, live_nodes, nodes_with_cpus, plan_pool
from memory_builder.ann.fastscan import ServeFormat
from memory_builder.ann.parts import part_record
from memory_builder.base.log import logger
from memory_builder.base.types import Ids, Scores
from memory_builder.catalog.row_bitmap import RowBitmap
from memory_builder.errors import WorkerError
from memory_builder.search.open_index import OpenIndex
from memory_builder.storage.store import Store

MAX_DEATHS = 3
"""Number of deaths of an actor in a row on one query before it fails."""
SETS_KEPT = 8
"""Number of row sets that an actor caches, as a memory does."""


class Searcher:
    """Actor that searches some parts of an index."""

    def __init__(self, threads: int) -> None:
        # faiss reads this at import, with the first index.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._allowed = lru_cache(SETS_KEPT)(ray.get)

    def open(self, root: str, options: dict[str, Any], folder: str, parts: list[str], serve_format: ServeFormat) -> int:
        """Open the parts; returns this process's id."""
        self._index = OpenIndex(Store(root, **options), folder, parts, serve_format=serve_format)
        return os.getpid()

    def scan(self, queries: Scores, k: int, nprobe: int, allowed: list[Any]) -> tuple[Scores, Ids]:
        """Scan as ``OpenIndex.scan_codes``; ``allowed`` is a reference in a list, so that Ray does not resolve it."""
        return self._index.scan_codes(queries, k, nprobe, self._allowed(allowed[0]) if allowed else None)


@dataclass(frozen=True, slots=True, eq=False)
class _SearchActor:
    """An actor, and the pending result of opening its parts."""

    handle: Any
    opened: Any


class SearchPool:
    """Actors that hold the parts of one index until it is garbage collected. Safe to use from several threads.

    Args:
        address: Ray cluster, as for ``connect``.
        store: storage of the memory; every node must reach it by the same name.
        folder: the index's folder in it.
        parts: names of the parts.
        serve_format: layout of the codes in RAM.
        cpus_per_actor: threads of each (default: the CPUs of ``plan_pool``). They are not reserved: actors that wait
            for queries must not block a memory's other index, its next snapshot or other work.

    Raises:
        UsageError: no cluster answers, or the index cannot be served in this format.
        CorruptMemoryError: a part is missing or damaged.
        WorkerError: an actor dies again and again.
    """

    def __init__(
        self,
        address: str,
        store: Store,
        folder: str,
        parts: Sequence[str],
        *,
        serve_format: ServeFormat = "plain",
        cpus_per_actor: int | None = None,
    ) -> None:
        connect(address)
        self._plan = plan_pool(live_nodes(), len(parts), wants_gpu=False, cpus_per_worker=cpus_per_actor)
        shares = share_out({name: part_record(store, folder, name).bytes for name in parts}, self._plan.size)
        self._opening = [(store.root, store.options, folder, share, serve_format) for share in shares]
        self._lock = threading.Lock()
        self._sets = lru_cache(SETS_KEPT)(ray.put)
        self._actors = [self._start_actor(number) for number in range(len(shares))]
        _wait_for([actor.opened for actor in self._actors])
        for number, actor in enumerate(self._actors):
            self._answer(number, actor, actor.opened, None)

    def scan(self, queries: Scores, k: int, nprobe: int, allowed: RowBitmap | None = None) -> tuple[Scores, Ids]:
        """Scan as ``OpenIndex.scan_codes``, over the parts of all actors.

        Raises:
            WorkerError: an actor dies again and again.
        """
        arguments = (ray.put(queries), k, nprobe, [] if allowed is None else [self._sets(allowed)])
        calls = [(number, actor, actor.handle.scan.remote(*arguments)) for number, actor in enumerate(self._actors)]
        best = faiss.ResultHeap(len(queries), k, keep_max=True)
        for number, actor, call in calls:
            best.add_result(*self._answer(number, actor, call, arguments))
        best.finalize()
        return best.D, best.I

    def _start_actor(self, number: int) -> _SearchActor:
        cpus = self._plan.num_cpus
        nodes = nodes_with_cpus()
        # Without such a node, requesting a CPU makes the cluster grow; a head without CPUs must get no work.
        placement: dict[str, Any] = {"num_cpus": 1}
        if nodes:
            node = NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=True)
            placement = {"num_cpus": 0, "scheduling_strategy": node}
        # We replace an actor that fails to start, since we count its deaths.
        handle = ray.remote(Searcher).options(max_concurrency=max(1, cpus), **placement).remote(max(1, cpus))
        return _SearchActor(handle, handle.open.remote(*self._opening[number]))

    def _answer(self, number: int, actor: _SearchActor, call: Any, arguments: Any) -> Any:
        """Return the result of an actor's call; a dead actor is replaced and called again."""
        for _ in range(MAX_DEATHS):
            try:
                return ray.get(call)
            except DEATHS as error:
                died = error
            except RayTaskError as error:
                raise original_error(error) from None
            actor = self._replacement(number, actor)
            try:
                ray.get(actor.opened)
            except DEATHS as error:
                died = error
                continue
            call = actor.opened if arguments is None else actor.handle.scan.remote(*arguments)
        raise WorkerError(
            f"the actor that searches {', '.join(self._opening[number][3])} died {MAX_DEATHS} times in a row: "
            f"{last_line(died)} If memory is short, use more or larger nodes"
        )

    def _replacement(self, number: int, dead: _SearchActor) -> _SearchActor:
        """Replace a dead actor, unless another thread has done so."""
        with self._lock:
            if self._actors[number] is dead:
                ray.kill(dead.handle)  # an unreachable one must not stay alive
                self._actors[number] = self._start_actor(number)
            return self._actors[number]


def share_out(sizes: Mapping[str, int], n: int) -> list[list[str]]:
    """Split named sizes into ``n`` groups of similar total size, at most one for each name."""
    shares: list[list[str]] = [[] for _ in range(min(n, len(sizes)))]
    heap = [(0, number) for number in range(len(shares))]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        size, number = heapq.heappop(heap)
        shares[number].append(name)
        heapq.heappush(heap, (size + sizes[name], number))
    return shares


def _wait_for(calls: list[Any]) -> None:
    while True:
        _, waiting = ray.wait(calls, num_returns=len(calls), timeout=PATIENCE_S)
        if not waiting:
            return
        logger.info(f"waiting for the cluster to start {len(waiting)} search actors")
