"""The service as replicas on Ray Serve: the same answers, and a replica that is killed is replaced."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from ray.util.state import list_actors

import memory_builder as mb
from memory_builder import Hits, Memory, RemoteMemory, UsageError
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.indexing.config import IndexConfig
from memory_builder.model.encoder import EncoderConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20"),  # Ray Serve's own
]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, sample: list[str], model: str) -> str:
    root = str(tmp_path_factory.mktemp("served") / "memory")
    runner = LocalRunner()
    mb.embed(sample[:1], root, encoder=EncoderConfig(model=model), config=EmbedConfig(), runner=runner)
    mb.index(root, keys=["image"], config=IndexConfig(), runner=runner)
    return root


@pytest.fixture(scope="module")
def there(memory: str, ray_cluster: object) -> Iterator[RemoteMemory]:
    assert ray_cluster
    from ray import serve

    from cluster.replicas import deployed
    from cluster.session import ServiceConfig

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    at = {"address": None, "host": "127.0.0.1", "port": port}
    config = ServiceConfig(memory=memory)
    with pytest.raises(UsageError, match="expected at least 1"), deployed(config, replicas=0, **at):
        pass
    with deployed(config, replicas=1, **at):
        with pytest.raises(UsageError, match="already"), deployed(config, replicas=1, **at):
            pass
        yield RemoteMemory.open(f"http://127.0.0.1:{port}")
    assert not serve.status().applications


def test_a_replica_answers_as_the_memory_does_and_one_that_dies_is_replaced(
    there: RemoteMemory, memory: str, ray_cluster: Any
) -> None:
    here = Memory.open(memory)
    mine = here.search(text="cat")
    np.testing.assert_array_equal(there.search(text="cat").ids, mine.ids)
    vectors = here.vectors(here.row_ids(0))
    np.testing.assert_array_equal(there.search(vectors=vectors).ids, here.search(vectors=vectors).ids)
    with pytest.raises(UsageError, match="greater than or equal to 1"):
        there.search(text="cat", k=0)
    actors = list_actors(address=ray_cluster.job_server)
    (replica,) = [actor for actor in actors if actor.class_name.startswith("ServeReplica")]
    os.kill(replica.pid, signal.SIGKILL)
    np.testing.assert_array_equal(soon(lambda: there.search(text="cat")).ids, mine.ids)


def soon(ask: Callable[[], Hits]) -> Hits:
    """What is answered once there is a replica again."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return ask()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.mark.parametrize(
    ("nodes", "replicas", "plan"),
    [
        pytest.param([{"CPU": 2.0}], 1, (1, 2, 0), id="alone it has the node"),
        pytest.param([{"CPU": 2.0}], 2, (2, 1, 0), id="two share a small node"),
        pytest.param([{"CPU": 32.0}, {"CPU": 32.0}], 4, (4, 16, 0), id="two a node"),
        pytest.param([{"CPU": 32.0}, {"CPU": 4.0}], 4, (4, 1, 0), id="unequal nodes"),
        pytest.param([{"CPU": 64.0, "GPU": 8.0}], 2, (2, 8, 1), id="a gpu each"),
    ],
)
def test_replicas_share_what_there_is(
    nodes: list[dict[str, float]], replicas: int, plan: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    from cluster.replicas import PoolPlan, plan_replicas

    size, num_cpus, num_gpus = plan
    assert plan_replicas(nodes, replicas) == PoolPlan(size=size, num_cpus=num_cpus, num_gpus=num_gpus)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("nodes", "replicas", "told"),
    [([{"CPU": 2.0}], 3, "CPUs for 2 of 3"), ([{"CPU": 4.0, "GPU": 1.0}], 2, "GPUs for 1 of 2")],
)
def test_replicas_that_have_no_room_are_told_of(
    nodes: list[dict[str, float]], replicas: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from cluster.replicas import plan_replicas

    plan_replicas(nodes, replicas)
    assert f"the cluster has {told} replicas: waiting for more nodes" in capsys.readouterr().err
