"""The service on a Ray cluster: replicas behind one address, each with the whole memory."""

import time

from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions

from cluster.runtime import connect, live_nodes, plan_pool
from cluster.served import ServiceConfig
from cluster.service import create_app
from memory_builder.errors import UsageError

NAME = "memory-builder"
AT_ONCE = 64
"""Requests that a replica works on at a time."""


def deploy(config: ServiceConfig, *, address: str | None, replicas: int, host: str, port: int) -> None:
    """Start replicas; returns once they answer. A replica that dies is replaced.

    Each has a whole GPU where the cluster has GPUs, and a node's CPUs divided among those that it holds.

    Args:
        config: of each.
        address: of the cluster, as for ``connect``.
        replicas: how many.
        host: to listen at, on every node that has a replica.
        port: likewise.

    Raises:
        UsageError: no cluster answers, or the memory cannot be served.
    """
    if replicas < 1:
        raise UsageError(f"--replicas {replicas}: expected at least 1")
    connect(address)
    plan = plan_pool(live_nodes(), replicas, wants_gpu=True, n_workers=replicas)
    serve.start(http_options=HTTPOptions(host=host, port=port))
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": plan.num_cpus, "num_gpus": plan.num_gpus},
    )

    def build() -> FastAPI:  # Ray takes a plain function alone for a builder, and calls it in the replica
        return create_app(config)

    try:
        serve.run(deployment(serve.ingress(build)()).bind(), name=NAME)
    except RuntimeError as error:
        raise UsageError(f"the replicas did not start: {error}") from error


def wait() -> None:
    """Until interrupted; then the replicas end."""
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()
