"""The service as replicas on Ray Serve: the same answers, and a replica that is killed is replaced."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from ray.util.state import list_actors

from memory_builder import Hits, Memory, RemoteMemory, UsageError, build
from memory_builder.describe import EmbedConfig
from memory_builder.encoder import EncoderConfig
from memory_builder.indexing import IndexConfig
from memory_builder.runner import LocalRunner

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20"),  # Ray Serve's own
]


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory, sample: list[str], model: str) -> str:
    root = str(tmp_path_factory.mktemp("served") / "memory")
    runner = LocalRunner()
    build.embed(sample[:1], root, encoder=EncoderConfig(model=model), config=EmbedConfig(), runner=runner)
    build.index(root, keys=["image"], config=IndexConfig(), runner=runner)
    return root


@pytest.fixture(scope="module")
def there(memory: str, ray_cluster: object) -> Iterator[RemoteMemory]:
    assert ray_cluster
    from ray import serve

    from cluster.replicas import deploy
    from cluster.served import ServiceConfig

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UsageError, match="expected at least 1"):
        deploy(ServiceConfig(memory=memory), address=None, replicas=0, host="127.0.0.1", port=port)
    deploy(ServiceConfig(memory=memory), address=None, replicas=1, host="127.0.0.1", port=port)
    yield RemoteMemory.open(f"http://127.0.0.1:{port}")
    serve.shutdown()


def test_a_replica_answers_as_the_memory_does_and_one_that_dies_is_replaced(there: RemoteMemory, memory: str) -> None:
    here = Memory.open(memory)
    mine = here.search(text="cat")
    np.testing.assert_array_equal(there.search(text="cat").ids, mine.ids)
    vectors = here.vectors(here.row_ids(0))
    np.testing.assert_array_equal(there.search(vectors=vectors).ids, here.search(vectors=vectors).ids)
    with pytest.raises(UsageError, match="at least 1"):
        there.search(text="cat", k=0)
    (replica,) = [one for one in list_actors() if one.class_name.startswith("ServeReplica")]
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
