"""Replicas of the service on a Ray cluster, behind one address, each with the whole memory."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import RayServeException

from cluster.runtime import PoolPlan, connect, live_nodes, plan_pool
from cluster.service import create_app
from cluster.session import ServiceConfig
from memory_builder.base.log import logger
from memory_builder.errors import UsageError

NAME = "memory-builder"
AT_ONCE = 64
"""Limit of concurrent requests of a replica."""


@contextmanager
def deployed(config: ServiceConfig, *, address: str | None, replicas: int, host: str, port: int) -> Iterator[None]:
    """Run replicas of the service within this block; dead ones are replaced, and other applications are unaffected.

    Each has a whole GPU if the cluster has GPUs, and otherwise an equal share of a node's CPUs.

    Args:
        config: configuration of each replica.
        address: Ray cluster, as for ``connect``.
        replicas: number of replicas.
        host: address to listen at, on every node with a replica.
        port: port to listen at.

    Raises:
        UsageError: no cluster answers, it serves a memory already, or the memory cannot be served.
    """
    if replicas < 1:
        raise UsageError(f"--replicas {replicas}: expected at least 1")
    connect(address)
    plan = plan_replicas(live_nodes(), replicas)
    serve.start(http_options=HTTPOptions(host=host, port=port))
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus},
    )

    def build() -> FastAPI:  # Ray requires a plain function, and calls it in the replica
        return create_app(config)

    if NAME in serve.status().applications:
        raise UsageError("this cluster serves a memory already: stop that service first")
    try:
        try:
            serve.run(deployment(serve.ingress(build)()).bind(), name=NAME)
        except (RuntimeError, RayServeException) as error:
            raise UsageError(f"the replicas did not start: {error}") from error
        yield
    finally:
        serve.delete(NAME)
        if not serve.status().applications:
            serve.shutdown()


def plan_replicas(nodes: Sequence[Mapping[str, float]], replicas: int) -> PoolPlan:
    """Plan the resources of each replica; logs if the nodes have too few, since Ray then waits for more."""
    plan = plan_pool(nodes, replicas, wants_gpu=True)
    largest = int(max((node.get("CPU", 0) for node in nodes), default=0))
    shared = max(1, largest // math.ceil(replicas / max(1, len(nodes))))
    for cpus in () if plan.num_gpus else (shared, 1):  # 1: for nodes too unequal for equal shares
        plan = plan_pool(nodes, replicas, wants_gpu=False, cpus_per_worker=cpus)
        if plan.size == replicas:
            break
    if plan.size < replicas:
        resource = "GPUs" if plan.num_gpus else "CPUs"
        logger.info(f"the cluster has {resource} for {plan.size} of {replicas} replicas: waiting for more nodes")
    return plan
