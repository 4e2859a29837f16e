"""The parts of an index spread over actors: a query goes to all of them, and their candidates are merged.

An actor that dies is replaced by one that opens the same parts, and is asked again.
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
"""Times in a row that an actor may die on the same question before it is given up."""
SETS_KEPT = 8
"""Sets of rows that an actor keeps, as a memory does."""


class Searcher:
    """One actor: some parts of an index."""

    def __init__(self, threads: int) -> None:
        # faiss is loaded with the first index, and reads this then.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._allowed = lru_cache(SETS_KEPT)(ray.get)

    def open(self, root: str, options: dict[str, Any], folder: str, parts: list[str], serve_format: ServeFormat) -> int:
        """Open the parts; returns this process's id."""
        self._index = OpenIndex(Store(root, **options), folder, parts, serve_format=serve_format)
        return os.getpid()

    def scan(self, queries: Scores, k: int, nprobe: int, allowed: list[Any]) -> tuple[Scores, Ids]:
        """As ``OpenIndex.scan_codes``; the set of rows comes as a reference, in a list so that it is not followed."""
        return self._index.scan_codes(queries, k, nprobe, self._allowed(allowed[0]) if allowed else None)


@dataclass(frozen=True, slots=True, eq=False)
class _Hired:
    """An actor, and its answer to being asked to open its parts."""

    actor: Any
    opened: Any


class SearchPool:
    """Actors that hold the parts of one index, and end when it is let go. Safe to ask from several threads.

    Args:
        address: of the cluster, as for ``connect``.
        store: of the memory; every node must reach it by the same name.
        folder: the index's folder in it.
        parts: names of the parts.
        serve_format: how the actors hold the codes.
        cpus_per_actor: threads of each; by default the CPUs of ``plan_pool``. They are not reserved: actors that wait
            for questions must not keep a memory's other index, its next state or other work from starting.

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
        self._hired = [self._hire(number) for number in range(len(shares))]
        _wait_for([hired.opened for hired in self._hired])
        for number, hired in enumerate(self._hired):
            self._answer(number, hired, hired.opened, None)

    def scan(self, queries: Scores, k: int, nprobe: int, allowed: RowBitmap | None = None) -> tuple[Scores, Ids]:
        """As ``OpenIndex.scan_codes``, over the parts of all actors.

        Raises:
            WorkerError: an actor dies again and again.
        """
        arguments = (ray.put(queries), k, nprobe, [] if allowed is None else [self._sets(allowed)])
        calls = [(number, hired, hired.actor.scan.remote(*arguments)) for number, hired in enumerate(self._hired)]
        best = faiss.ResultHeap(len(queries), k, keep_max=True)
        for number, hired, call in calls:
            best.add_result(*self._answer(number, hired, call, arguments))
        best.finalize()
        return best.D, best.I

    def _hire(self, number: int) -> _Hired:
        cpus = self._plan.num_cpus
        nodes = nodes_with_cpus()
        # Where there is none yet, asking for a CPU lets the cluster grow; a head without CPUs is to stay without work.
        where: dict[str, Any] = {"num_cpus": 1}
        if nodes:
            node = NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=True)
            where = {"num_cpus": 0, "scheduling_strategy": node}
        # An actor that fails to start is replaced by us, who can tell how often.
        actor = ray.remote(Searcher).options(max_concurrency=max(1, cpus), **where).remote(max(1, cpus))
        return _Hired(actor, actor.open.remote(*self._opening[number]))

    def _answer(self, number: int, hired: _Hired, call: Any, arguments: Any) -> Any:
        """What the actor at this place says; one that died is replaced and asked again."""
        for _ in range(MAX_DEATHS):
            try:
                return ray.get(call)
            except DEATHS as error:
                died = error
            except RayTaskError as error:
                raise original_error(error) from None
            hired = self._replacement(number, hired)
            try:
                ray.get(hired.opened)
            except DEATHS as error:
                died = error
                continue
            call = hired.opened if arguments is None else hired.actor.scan.remote(*arguments)
        raise WorkerError(
            f"the actor that searches {', '.join(self._opening[number][3])} died {MAX_DEATHS} times in a row: "
            f"{last_line(died)} If memory is short, use more or larger nodes"
        )

    def _replacement(self, number: int, dead: _Hired) -> _Hired:
        """The actor in a dead one's place: another thread may have hired it already."""
        with self._lock:
            if self._hired[number] is dead:
                ray.kill(dead.actor)  # one that is only out of reach must not live on unseen
                self._hired[number] = self._hire(number)
            return self._hired[number]


def share_out(sizes: Mapping[str, int], n: int) -> list[list[str]]:
    """Names with their sizes → ``n`` shares of about the same size, at most as many as there are names."""
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
