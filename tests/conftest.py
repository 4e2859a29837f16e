"""What tests share: the small bundled model, an S3 server, and memories made of vectors alone."""

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from memory_builder.catalog.create_memory import (
    settle_description,
)
from memory_builder.catalog.description import (
    Description,
)
from memory_builder.catalog.manifest import (
    Manifest,
)
from memory_builder.catalog.metadata import (
    metadata_table,
)
from memory_builder.catalog.plan import (
    extend_plan,
)
from memory_builder.embedding.commit_shard import commit_shard
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.readers.shard import (
    Source,
)
from memory_builder.storage.records import (
    config_hash,
)
from memory_builder.storage.store import Store, sha256

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
HERE = Path(__file__).parent
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
    """The long ones first."""
    rooms = [*LONGEST_FIRST, *sorted({item.path.relative_to(HERE).parts[0] for item in items} - {*LONGEST_FIRST})]
    items.sort(key=lambda item: rooms.index(item.path.relative_to(HERE).parts[0]))


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The bundled model's folder, as ``local-dir:`` takes it."""
    return MODEL_DIR


@pytest.fixture(scope="session")
def encoder(model_dir: Path) -> Encoder:
    """The bundled model, loaded once."""
    return load_encoder(EncoderConfig(model=f"local-dir:{model_dir}"))


@dataclass(frozen=True)
class S3:
    """A bucket of a real S3 server on this machine."""

    url: str
    """``s3://bucket/prefix``, new for every test."""
    options: dict[str, Any]
    """What Store and fsspec need to reach it."""

    def store(self, path: str = "") -> Store:
        return Store(f"{self.url}/{path}".rstrip("/"), **self.options)


def one_at_a_time(put: Callable[..., Any]) -> Callable[..., Any]:
    """S3 decides a conditional put at once; the server looks, then puts, and two of its threads may both win."""
    lock = threading.Lock()

    def put_in_turn(*args: Any, **named: Any) -> Any:
        with lock:
            return put(*args, **named)

    return put_in_turn


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


def unit(vectors: Floats) -> Floats:
    """Rows scaled to length 1; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)


def clustered(n: int, d: int, seed: int, *, n_clusters: int = 200) -> tuple[Floats, Floats]:
    """Image and text vectors as a CLIP gives them: clusters, and the two modalities on cones of their own.

    Returns:
        (images f32[n, d], texts f32[n, d]), unit rows; row i of both belong together.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n_clusters, d))
    images = centres[rng.integers(0, n_clusters, n)] + 0.5 * rng.standard_normal((n, d))
    texts = images + 0.5 * rng.standard_normal((n, d)) + rng.standard_normal(d)
    return unit(images), unit(texts)


def write_memory(
    root: str | Path,
    images: Floats | None,
    texts: Floats | None,
    *,
    shard_rows: int = 1_000,
    fingerprint: str = "0" * 64,
    model: str = "synthetic",
    fold: bool = True,
    columns: dict[str, str] | None = None,
    fields: Callable[[int], dict[str, Any]] = lambda _: {},
    **storage_options: Any,
) -> Store:
    """A memory made of given vectors, written through the package's own functions: what ``embed`` would leave.

    Args:
        root: where.
        images: f32[n, d]; a zero row is a pair without an image. None: no pair has one.
        texts: likewise, of the captions.
        shard_rows: rows a shard; the last one takes the rest.
        fingerprint: of the encoder; ask with text or image only if this is the one of ``model``.
        model: as EncoderConfig takes it.
        fold: also write manifest.parquet, as the driver does at the end.
        columns: metadata columns beside the fixed ones, as ``--columns`` takes them.
        fields: what the json of row i says.
        storage_options: passed to fsspec.

    Row i has key ``00000123`` and caption ``caption 123``, and no url.
    """
    sides = [side for side in (images, texts) if side is not None]
    n, d = sides[0].shape
    images_f16, texts_f16 = (
        np.zeros((n, d), np.float16) if side is None else unit(side).astype(np.float16) for side in (images, texts)
    )
    store = Store(root, **storage_options)
    description = Description(
        model=model,
        pretrained=None,
        fingerprint=fingerprint,
        d=d,
        columns=columns or {},
        config={"fingerprint": fingerprint},
        config_hash=config_hash({"fingerprint": fingerprint}),
    )
    settle_description(store, description)
    starts = range(0, n, shard_rows)
    sources = [Source(uri=f"/synthetic/{start:09d}.tar", bytes=1, etag="1") for start in starts]
    for shard, start in zip(extend_plan(store, sources), starts, strict=True):
        rows = range(start, min(n, start + shard_rows))
        some_images, some_texts = images_f16[rows.start : rows.stop], texts_f16[rows.start : rows.stop]
        has_image, has_text = some_images.any(axis=1).tolist(), some_texts.any(axis=1).tolist()
        found = [
            {
                "key": f"{row:08d}",
                "caption": f"caption {row}" if text else None,
                "width": 64 if image else None,
                "height": 64 if image else None,
                "sha256": sha256(str(row).encode()) if image else None,
                "member": f"{row:08d}.png",
                "has_image": image,
                "has_text": text,
            }
            for row, image, text in zip(rows, has_image, has_text, strict=True)
        ]
        described = [(row, fields(i)) for i, row in zip(rows, found, strict=True)]
        table = metadata_table(described, columns or {})
        commit_shard(
            store,
            shard,
            images=some_images,
            texts=some_texts,
            metadata=table,
            rejects=[],
            partial=None,
            hash_of_config=description.config_hash,
            seconds={"total": 0.0},
        )
    if fold:
        Manifest.read(store).fold(store)
    return store


@pytest.fixture(name="write_memory", scope="session")
def write_memory_fixture() -> Callable[..., Store]:
    """``write_memory`` above."""
    return write_memory


@pytest.fixture(name="clustered", scope="session")
def clustered_fixture() -> Callable[..., tuple[Floats, Floats]]:
    """``clustered`` above."""
    return clustered
