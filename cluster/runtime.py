"""Join a Ray cluster, and plan the resources of its workers."""

import logging
import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address

from memory_builder.base.interrupts import is_sigterm_ours, restore_sigterm_handler
from memory_builder.errors import ConnectionFailedError, UsageError

CPUS_OF_ONE_OF_MANY = 8
"""CPUs of a worker if there are more items than workers: a forward pass gains little from more."""
ANSWER_S = 10.0


def connect(address: str | None = None) -> None:
    """Join the Ray cluster at ``address`` (``auto``, HOST:PORT or ray://HOST:PORT).

    Without an address and without RAY_ADDRESS, a cluster is started on this machine and ends with this process.
    A connected process stays connected.

    Raises:
        ConnectionFailedError: no cluster answers at this address.
        UsageError: the address is a job server.
    """
    if ray.is_initialized():
        return
    if address in (None, "auto"):  # a job's own cluster: "auto" fails on a machine with several
        address = os.environ.get("RAY_ADDRESS") or address or "local"
    if address != "local":
        _check_answers(address)
    # Ray prints dead workers to stdout despite log_to_driver=False, and stdout is for results.
    setattr(ray._private.worker, "_worker_logs_enabled", False)  # noqa: B010
    is_ours = is_sigterm_ours()
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        if is_ours:
            restore_sigterm_handler()
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConnectionFailedError(
            f"cannot join the Ray cluster at --address {address}: {_first_line(error)}"
        ) from error


def _check_answers(address: str) -> None:
    """Check that the address answers: Ray itself retries for minutes and then exits the process."""
    scheme, _, rest = address.rpartition("://")
    if scheme.startswith("http"):
        raise UsageError(
            f"--address {address} is a job server, which takes whole commands: "
            f"use memory-builder submit --address {address} -- COMMAND, or --address auto on a node of the cluster"
        )
    try:
        host_and_port = rest if scheme else canonicalize_bootstrap_address(address)
        host, _, port = host_and_port.rpartition(":")
        check_port(host, int(port))
    except (OSError, ValueError) as error:
        raise ConnectionFailedError(
            f"no Ray cluster answers at --address {address}: {_first_line(error)}. Check that it runs (ray status), "
            "name its HOST:PORT, or leave --address out to use this machine alone"
        ) from None


def check_port(host: str, port: int) -> None:
    """Connect to a port; raises OSError if nothing listens."""
    socket.create_connection((host.strip("[]"), port), timeout=ANSWER_S).close()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolPlan:
    """Resources of a pool: ``size`` workers with ``num_cpus`` CPUs and ``num_gpus`` whole GPUs each."""

    size: int
    num_cpus: int
    num_gpus: int


def live_nodes() -> list[dict[str, float]]:
    """Resources of each live node."""
    nodes: list[dict[str, Any]] = ray.nodes()
    return [node["Resources"] for node in nodes if node["Alive"]]


def nodes_with_cpus() -> list[str]:
    """Ids of live nodes with CPUs."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def plan_pool(
    nodes: Sequence[Mapping[str, float]],
    n_items: int,
    *,
    wants_gpu: bool,
    cpus_per_worker: int | None = None,
    n_workers: int | None = None,
) -> PoolPlan:
    """Plan as many workers as fit into ``nodes``, or ``n_workers``, at most one for each item and at least one.

    With GPUs, one worker for each, with an equal share of its node's CPUs. Otherwise a worker has ``cpus_per_worker``
    CPUs; by default its share of a node's CPUs for the expected items, at least 8.

    Raises:
        UsageError: no node has that many CPUs.
    """
    gpu_nodes = [node for node in nodes if node.get("GPU", 0) >= 1] if wants_gpu else []
    usable = gpu_nodes or [node for node in nodes if node.get("CPU", 0) >= 1]
    largest = int(max((node.get("CPU", 0) for node in usable), default=0))
    if cpus_per_worker and usable and cpus_per_worker > largest:
        raise UsageError(f"--cpus-per-worker {cpus_per_worker}: the largest node of the cluster has {largest} CPUs")
    if gpu_nodes:
        num_cpus = cpus_per_worker or min(int(node.get("CPU", 0) // node["GPU"]) for node in gpu_nodes)
    else:
        per_node = math.ceil(n_items / max(1, len(usable)))
        num_cpus = cpus_per_worker or max(1, min(largest, max(CPUS_OF_ONE_OF_MANY, largest // per_node)))
    fits = sum(_fits(node, num_cpus, bool(gpu_nodes)) for node in usable)
    return PoolPlan(size=max(1, min(n_workers or fits, n_items)), num_cpus=num_cpus, num_gpus=int(bool(gpu_nodes)))


def plan_workers(
    nodes: Sequence[Mapping[str, float]], n_workers: int, *, use_gpu: bool, cpus_per_worker: int | None = None
) -> tuple[PoolPlan, int]:
    """Plan workers that must all run at once; also returns the number that fits into ``nodes``.

    With a GPU, each has an equal share of its node's CPUs; otherwise as many CPUs as let all workers fit.
    """
    kind = "GPU" if use_gpu else "CPU"
    usable = [node for node in nodes if node.get(kind, 0) >= 1]
    shares = [int(node.get("CPU", 0) // (node["GPU"] if use_gpu else 1)) for node in usable]

    def fitting(num_cpus: int) -> int:
        return sum(_fits(node, num_cpus, use_gpu) for node in usable)

    choices = range(max(shares, default=1), 0, -1)
    num_cpus = cpus_per_worker or next((n for n in choices if fitting(n) >= n_workers), 1)
    return PoolPlan(size=n_workers, num_cpus=num_cpus, num_gpus=int(use_gpu)), fitting(num_cpus)


def _fits(node: Mapping[str, float], num_cpus: int, with_gpu: bool) -> int:
    by_cpu = int(node.get("CPU", 0) // num_cpus) if num_cpus else math.inf
    return int(min(by_cpu, node["GPU"] if with_gpu else math.inf))
