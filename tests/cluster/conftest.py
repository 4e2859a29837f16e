"""One small cluster for all tests here, with its job server."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL

import pytest

import cluster  # noqa: F401, sets what Ray reads as it is imported, so before any test imports that
import memory_builder
from helpers.processes import python

DEMO = Path(memory_builder.__file__).parent / "demo"


@dataclass(frozen=True)
class SmallCluster:
    """Two CPUs, joined by this process."""

    address: str
    job_server: str


def free_ports(n: int) -> list[int]:
    """Ports that no one listens at: Ray's own defaults belong to whatever other cluster runs on this machine."""
    with ExitStack() as sockets:
        taken = [sockets.enter_context(socket.socket()) for _ in range(n)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[SmallCluster]:
    """Joined already, so a RayRunner uses it whatever its address. Workers can import the tests' tasks."""
    import ray

    port, dashboard, agent = free_ports(3)
    flags = ("--head", "--block", "--num-cpus=2", "--include-dashboard=true", "--disable-usage-stats")
    ports = (f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}")
    with pytest.MonkeyPatch.context() as patch:
        # Nodes, and so workers and jobs, take their environment from here.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a head of 2.60 asks for a token otherwise
        # Other tests run beside these, and Ray's workers would let them go first.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process of its own for every run
        command = ("-m", "ray.scripts.scripts", "start", "--node-ip-address=127.0.0.1", *flags, *ports)
        with python(*command, stdout=DEVNULL, stderr=DEVNULL) as head:
            wait_for(port)
            wait_for(dashboard)
            ray.init(address=f"127.0.0.1:{port}", logging_level=logging.ERROR, log_to_driver=False)
            yield SmallCluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
            ray.shutdown()
            head.send_signal(signal.SIGTERM)
            head.wait(60)


def wait_for(port: int) -> None:
    """Until something listens at a port."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens at port {port}")


@pytest.fixture(scope="session")
def sample() -> list[str]:
    """The bundled shards."""
    return sorted(str(path) for path in (DEMO / "sample").glob("*.tar.gz"))


@pytest.fixture(scope="session")
def model() -> str:
    """The bundled model, as ``--model`` takes it."""
    return f"local-dir:{DEMO / 'model'}"
