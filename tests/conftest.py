"""What tests share: the small bundled model, an S3 server, and memories made of vectors alone."""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from xdist.scheduler import LoadScopeScheduling

import memory_builder
from helpers import memories
from helpers.s3 import S3, one_at_a_time
from memory_builder.base.log import logger
from memory_builder.commands.logs import LineHandler
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.storage.store import Store

# Tests start many processes, and each would compile all of torch and open_clip anew: 20 s instead of 4.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Threads that wait for each other by spinning take five times as long where other processes want the same two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when faiss or torch is loaded, which none of the above does
# Two processes of tests have two cores; one thread each does what two do in a tenth less of their time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What this user named on this machine (memory_builder/named.py) is that of the tests, in their processes too.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="memory-builder-state-")
# How long one example takes says how busy the machine is.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

LONGEST_FIRST = ("cluster", "end_to_end")
SLOW = (*LONGEST_FIRST, "examples", "trainer")
"""Folders whose tests take most of the time: ``pytest -m "not slow"`` leaves them out."""
HERE = Path(__file__).parent
# Processes that tests start import helpers, too: Ray's workers, and scripts of helpers/.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
MODEL_DIR = Path(memory_builder.__file__).parent / "demo" / "model"
Floats = npt.NDArray[np.float32]


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Two processes share the tests file by file; all that need Ray, in tests/cluster, go to one of them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "tests/cluster" if file.startswith("tests/cluster/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """xdist's own groups do nothing with pytest 9.2: it sets an attribute that is no longer read."""
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first; those of some folders are marked slow."""
    for item in items:
        if item.path.relative_to(HERE).parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)
    rooms = [*LONGEST_FIRST, *sorted({item.path.relative_to(HERE).parts[0] for item in items} - {*LONGEST_FIRST})]
    items.sort(key=lambda item: rooms.index(item.path.relative_to(HERE).parts[0]))


@pytest.fixture(scope="session", autouse=True)
def log() -> None:
    """Library calls of tests log to standard error, in plain lines, as commands do off a terminal."""
    logger.addHandler(LineHandler())
    logger.setLevel(logging.INFO)


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The bundled model's folder, as ``local-dir:`` takes it."""
    return MODEL_DIR


@pytest.fixture(scope="session")
def encoder(model_dir: Path) -> Encoder:
    """The bundled model, loaded once."""
    return load_encoder(EncoderConfig(model=f"local-dir:{model_dir}"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Where the server listens; the environment leads there too, for code that opens URLs without options."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "_key_response_put", one_at_a_time(S3Response._key_response_put))
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket="memories")
        client.close()
        yield endpoint
    S3FileSystem.clear_instance_cache()
    server.stop()


_PREFIXES = count()


@pytest.fixture
def s3(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A fresh prefix of a bucket, and a cache of fetched files that is this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": s3_endpoint}}
    return S3(f"s3://memories/test-{next(_PREFIXES)}", options)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty root on disk, then one on S3."""
    if request.param == "local":
        return Store(tmp_path / "root")
    s3: S3 = request.getfixturevalue("s3")
    return s3.store()


@pytest.fixture(scope="session")
def write_memory() -> Callable[..., Store]:
    """``helpers.memories.write_memory``."""
    return memories.write_memory


@pytest.fixture(scope="session")
def clustered() -> Callable[..., tuple[memories.Floats, memories.Floats]]:
    """``helpers.memories.clustered``."""
    return memories.clustered
