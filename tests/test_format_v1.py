"""Format v1 is frozen: a memory written by the first version opens, answers and verifies for ever."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import memory_builder.model.encoder as encoder_module
from memory_builder import EncoderConfig, EncoderError, Memory
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.driver import embed
from memory_builder.embedding.embed_shard import EmbedConfig
from memory_builder.maintenance.info import read_info
from memory_builder.maintenance.verify import verify
from memory_builder.storage.store import Store

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "memory-v1-expected.json").read_text())


@pytest.fixture
def root(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / "memory-v1", tmp_path / "memory"))


@pytest.mark.parametrize("keys", ["image", "text"])
def test_it_answers_as_it_did(root, keys):
    memory = Memory.open(root)
    queries = memory.vectors([0, (1 << 32) + 7], keys)
    hits = memory.search(vectors=queries, k=3, keys=keys)
    assert hits.ids.tolist() == EXPECTED[keys]["ids"]
    np.testing.assert_allclose(hits.scores, EXPECTED[keys]["scores"], atol=1e-3)


def test_its_rows_read_as_they_did(root):
    memory = Memory.open(root)
    assert memory.rows([0, (1 << 32) + 7]).to_pylist() == EXPECTED["rows"]
    assert memory.metadata([0, (1 << 32) + 7]).to_pylist() == EXPECTED["metadata"]


def test_it_is_whole_and_says_what_is_in_it(root):
    store = Store(root)
    assert verify(store, LocalRunner()) == []
    info = read_info(store)
    assert (info.rows, info.shards["done"], info.rejects, info.snapshot) == (40, 2, {"not an image": 1}, 2)
    assert {keys: index["index_key"] for keys, index in info.indexes.items()} == {
        "image": "IDMap2,Flat",
        "text": "IVF2_HNSW4,PQ8x4np",
    }


def test_another_model_is_refused(root, encoder):
    memory = Memory.open(root, encoder=encoder.config)
    with pytest.raises(EncoderError, match="was built with local-dir:/tmp/icon-clip, 7cf8c7400a48"):
        memory.search(text="moon", k=1, keys="text")


@pytest.fixture
def of_that_time(root, monkeypatch):
    """The model of that time is bundled no more: another bears its fingerprint."""
    encoder_module.load_encoder.cache_clear()
    monkeypatch.setattr(encoder_module, "_fingerprint", lambda *_: Memory.open(root).description.fingerprint)
    yield
    encoder_module.load_encoder.cache_clear()


@pytest.mark.usefixtures("of_that_time")
def test_more_can_be_embedded_into_it(root, tmp_path, model_dir):
    shard = tmp_path / "more.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in (("new.txt", b"something new"), ("new.png", png())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = embed(
        [str(shard)],
        str(root),
        encoder=EncoderConfig(model=f"local-dir:{model_dir}"),
        config=EmbedConfig(columns=("set:string", "palette:bool")),
        runner=LocalRunner(),
    )
    assert (report.n_embedded, report.n_rows) == (1, 41)
    assert verify(Store(root), LocalRunner()) == []


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    return buffer.getvalue()
