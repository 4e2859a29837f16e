"""Both runners leave the same bytes."""

from pathlib import Path

import pytest

import memory_builder as mb
from cluster.runner import RayRunner
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.embed_shard import EmbedConfig
from memory_builder.export.faiss_ondisk import merge
from memory_builder.indexing.config import IndexConfig
from memory_builder.model.encoder import EncoderConfig
from memory_builder.retrieval.classes import Class
from memory_builder.retrieval.config import AskConfig, RetrieveConfig
from memory_builder.retrieval.driver import Request, write_subset
from memory_builder.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def files(memory: Path, *folders: str) -> dict[str, bytes]:
    paths = (path for folder in folders for path in sorted((memory / folder).rglob("*")))
    return {str(path.relative_to(memory)): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def memories(sample, model, tmp_path_factory) -> dict[str, Path]:
    """The same two shards, in this process and on the cluster, there embedded by workers of half as many threads."""
    encoder, index = EncoderConfig(model=model), IndexConfig(index_key="IVF16,PQ16x4np", part_rows=500)
    runners = {"local": (LocalRunner(), LocalRunner()), "ray": (RayRunner(cpus_per_worker=1), RayRunner())}
    memories = {name: tmp_path_factory.mktemp(name) / "memory" for name in runners}
    for name, (embedder, indexer) in runners.items():
        memory = str(memories[name])
        report = mb.embed(sample[:2], memory, encoder=encoder, config=EmbedConfig(), runner=embedder)
        assert (report.n_embedded, report.failed) == (2, {})
        mb.index(memory, keys=["image"], config=index, runner=indexer)
        merge(Store(memory), "image", runner=embedder, range_bytes=5_000)
    return memories


def test_embeddings(memories):
    expected = files(memories["local"], "img_emb", "text_emb", "metadata", "rejects", "rows")
    assert len(expected) == 2 * 5
    assert files(memories["ray"], "img_emb", "text_emb", "metadata", "rejects", "rows") == expected


def test_index(memories):
    local, ray = (files(memories[name], "index") for name in ("local", "ray"))
    timed = {path for path in local if path.endswith(("/tuning.json", "/index.json"))}
    assert sum("/parts/" in path for path in local) == 2 * 2
    assert sum("/merged/" in path for path in local) == 3
    assert ray.keys() == local.keys()
    assert {path for path in local if ray[path] != local[path]} <= timed


def test_subset(memories, sample, tmp_path):
    config = RetrieveConfig(ask=AskConfig(per_query=60, block_queries=2), shard_pairs=100, dedup=0.95)
    classes = tuple(Class(label=i, name=name) for i, name in enumerate(["cat", "umbrella", "bus", "key", "cat"]))
    summaries = []
    for name, runner in (("local", LocalRunner()), ("ray", RayRunner(cpus_per_worker=1))):
        out = str(tmp_path / name)
        asked = {"memory": str(memories["local"]), "out": out, "classes": classes, "templates": ("{c}", "a {c}")}
        summaries.append(write_subset(Request(**asked, exclude=(sample[1],), config=config), runner))
    assert summaries[0] == summaries[1]
    assert summaries[0].decontaminated > 0
    assert summaries[0].tars == 2
    local, ray = (subset_files(tmp_path / name) for name in ("local", "ray"))
    assert local == ray
    assert {"00000.tar", "00001.tar", "hits.parquet", "subset.html"} <= set(local)


def subset_files(subset: Path) -> dict[str, bytes]:
    """All but what tells of times and of places."""
    return {path: data for path, data in files(subset, ".").items() if not path.endswith(".json")}
