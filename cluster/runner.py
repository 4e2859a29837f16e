"""``RayRunner``: a pool of actors with the ``Runner`` interface.

Only small records cross between driver and workers: a worker reads its shard and writes its files itself.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.actors import Worker
from cluster.metrics import EmbedMetrics
from cluster.runtime import PoolPlan, connect, live_nodes, plan_pool
from memory_builder.base.log import logger
from memory_builder.base.runner import ITEMS_ON_A_GPU, Item, Result, Task
from memory_builder.errors import WorkerError

IN_FLIGHT = 1
"""Items queued at a worker besides those in work, so that it never waits for the driver."""
MAX_ATTEMPTS = 3
"""Number of workers that an item may kill before it fails."""
MAX_LOSSES = 10
"""Number of workers that an item may lose to node failures."""
DEATHS_TO_SPARE = 4
"""Deaths in a row, besides one of each worker, without a finished item, after which the run fails."""
PATIENCE_S = 60.0

DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)


class RayRunner:
    """Runs tasks on a Ray cluster, joined (or started on this machine) with the first task.

    Args:
        address: ``auto``, HOST:PORT, or None for RAY_ADDRESS and, without that, a cluster on this machine.
        cpus_per_worker: CPUs, and so threads, of a worker (default: see ``plan_pool``).
        n_workers: Number of workers (default: as many as fit now; set it if nodes are added on demand).
    """

    def __init__(
        self, address: str | None = None, *, cpus_per_worker: int | None = None, n_workers: int | None = None
    ) -> None:
        self.address = address
        self.cpus_per_worker = cpus_per_worker
        self.n_workers = n_workers

    def run(self, task: Task[Item, Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        """Run a task as ``Runner.run``; the workers end with the generator, however it ends.

        An item that kills its worker is retried alone, and fails with a WorkerError after three deaths; items queued
        behind it or lost with a node are not blamed.
        """
        if not items:
            return
        connect(self.address)
        plan = plan_pool(
            live_nodes(),
            len(items),
            wants_gpu=task.wants_gpu,
            cpus_per_worker=self.cpus_per_worker,
            n_workers=self.n_workers,
        )
        pool = _Pool(task, items, plan)
        metrics = EmbedMetrics()
        try:
            for number, result in pool.results():
                metrics.record(items[number], result)
                yield items[number], result
        finally:
            pool.kill_workers()


@dataclass(slots=True, eq=False)
class _PoolWorker:
    """An actor with its calls, oldest first. It gets items only after ``start`` has returned: an actor that is never
    scheduled must not hold any."""

    actor: Any
    starting: Any
    node: str | None = None
    queue: deque[tuple[Any, int]] = field(default_factory=deque)
    alone: bool = False

    @property
    def oldest(self) -> Any:
        """The call in execution; None if idle."""
        if self.node is None:
            return self.starting
        return self.queue[0][0] if self.queue else None


class _Pool:
    """Pool of actors over items, identified by position: they need be neither hashable nor distinct."""

    def __init__(self, task: Task[Any, Any], items: Sequence[Any], plan: PoolPlan) -> None:
        self.items = items
        self.plan = plan
        self.task = ray.put(task)
        self.workers: list[_PoolWorker] = []
        self.pending = deque(range(len(items)))
        self.suspects: deque[int] = deque()
        self.deaths: Counter[int] = Counter()
        self.losses: Counter[int] = Counter()
        self.deaths_in_a_row = 0
        self.at_once = ITEMS_ON_A_GPU if plan.num_gpus else 1

    def results(self) -> Iterator[tuple[int, Any]]:
        """Yield each position once with its result or exception, in order of completion."""
        for _ in range(self.plan.size):
            self._start_worker()
        while self.pending or self.suspects or any(worker.queue for worker in self.workers):
            for worker in self.workers:
                self._fill_queue(worker)
            finished = self._collect(self._wait())
            if finished is not None:
                yield finished

    def kill_workers(self) -> None:
        """Kill all workers."""
        if ray.is_initialized():
            for worker in self.workers:
                ray.kill(worker.actor)
        self.workers.clear()

    def _start_worker(self) -> None:
        options = {
            "num_cpus": self.plan.num_cpus,
            "num_gpus": self.plan.num_gpus,
            "max_concurrency": self.at_once,
            "scheduling_strategy": "SPREAD",
        }
        actor = ray.remote(Worker).options(**options).remote(max(1, self.plan.num_cpus))
        self.workers.append(_PoolWorker(actor, actor.start.remote(self.task)))

    def _fill_queue(self, worker: _PoolWorker) -> None:
        """Fill the worker's queue. An item whose worker died runs alone, so that another death is certainly its
        fault."""
        if worker.node is None:
            return
        if self.suspects and not worker.queue:
            worker.alone = True
            self._call(worker, self.suspects.popleft())
        worker.alone = worker.alone and bool(worker.queue)
        while self.pending and not worker.alone and len(worker.queue) < self.at_once + IN_FLIGHT:
            self._call(worker, self.pending.popleft())

    def _call(self, worker: _PoolWorker, number: int) -> None:
        worker.queue.append((worker.actor.work.remote(self.items[number]), number))

    def _wait(self) -> _PoolWorker:
        """Wait for the worker whose oldest call ends first."""
        calls = {worker.oldest: worker for worker in self.workers if worker.oldest is not None}
        while True:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=PATIENCE_S)
            if done:
                return calls[done[0]]
            if all(worker.node is None for worker in self.workers):
                wanted = f"{self.plan.num_cpus} CPUs, {self.plan.num_gpus} GPUs"
                logger.info(f"waiting for the cluster to start a worker ({wanted})")

    def _collect(self, worker: _PoolWorker) -> tuple[int, Any] | None:
        """Collect the worker's oldest call; return its result, if it was an item."""
        try:
            answer = ray.get(worker.oldest)
        except DEATHS as error:
            return self._replace_dead(worker, error)
        except RayError as error:
            answer = original_error(error)
            if worker.node is None:
                raise answer from None
        if worker.node is None:
            worker.node = answer
            return None
        self.deaths_in_a_row = 0
        return worker.queue.popleft()[1], answer

    def _replace_dead(self, worker: _PoolWorker, error: RayError) -> tuple[int, WorkerError] | None:
        """Replace a dead worker; return its item if it has failed."""
        self.workers.remove(worker)
        ray.kill(worker.actor)  # an unreachable one must not stay alive
        lost = _is_lost(worker, error)
        self.deaths_in_a_row += not lost
        if self.deaths_in_a_row >= self.plan.size + DEATHS_TO_SPARE:
            raise WorkerError(
                f"{self.deaths_in_a_row} workers died in a row without finishing an item: {last_line(error)} "
                "If memory is short, ask for fewer and larger workers (--cpus-per-worker); "
                "their logs are in /tmp/ray/session_latest/logs on their node"
            )
        self._start_worker()
        if not worker.queue:
            return None
        _, number = worker.queue.popleft()
        self.pending.extendleft(other for _, other in reversed(worker.queue))
        counts, limit = (self.losses, MAX_LOSSES) if lost else (self.deaths, MAX_ATTEMPTS)
        counts[number] += 1
        if counts[number] < limit:
            (self.suspects if self.deaths[number] else self.pending).appendleft(number)
            return None
        return number, WorkerError(
            f"the worker process died {counts[number]} times on this item: {last_line(error)}. If it was killed for "
            "being out of memory, ask for fewer and larger workers (--cpus-per-worker)"
        )


def _is_lost(worker: _PoolWorker, error: RayError) -> bool:
    """Whether the worker was lost with its node or its connection, not through its item."""
    if isinstance(error, ActorUnavailableError | NodeDiedError) or getattr(error, "preempted", False):
        return True
    return any(node["NodeID"] == worker.node and not node["Alive"] for node in ray.nodes())


def original_error(error: Exception) -> Exception:
    """Return the exception that the task raised, with the remote traceback as a note."""
    if not isinstance(error, RayTaskError):
        return error
    cause: Exception = error.cause
    cause.add_note(f"on a worker:\n{error}")
    return cause


def last_line(error: RayError) -> str:
    """Return the last line of Ray's error, which states the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:400]
