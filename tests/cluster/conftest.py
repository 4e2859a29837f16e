"""One small cluster for all tests here, with its job server."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cluster  # noqa: F401, sets what Ray reads as it is imported, so before any test imports that
import memory_builder

DEMO = Path(memory_builder.__file__).parent / "demo"


@dataclass(frozen=True)
class SmallCluster:
    """Two CPUs, joined by this process."""

    address: str
    job_server: str


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[SmallCluster]:
    """Joined already, so a RayRunner uses it whatever its address. Workers can import the tests' tasks."""
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        # Nodes, and so workers and jobs, take their environment from here.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.delenv("RAY_ADDRESS", raising=False)
        # Other tests run beside these, and Ray's workers would let them go first.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process of its own for every run
        context = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=True,
            dashboard_port=port,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    yield SmallCluster(context.address_info["gcs_address"], f"http://127.0.0.1:{port}")
    ray.shutdown()


@pytest.fixture(scope="session")
def sample() -> list[str]:
    """The bundled shards."""
    return sorted(str(path) for path in (DEMO / "sample").glob("*.tar.gz"))


@pytest.fixture(scope="session")
def model() -> str:
    """The bundled model, as ``--model`` takes it."""
    return f"local-dir:{DEMO / 'model'}"
