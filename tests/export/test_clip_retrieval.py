"""What is exported for clip-retrieval counts rows as it does, and its real back end serves it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.bundled import HELPERS
from memory_builder.base.runner import LocalRunner
from memory_builder.base.types import row_ids
from memory_builder.cli import main
from memory_builder.indexing.config import IndexConfig
from memory_builder.indexing.driver import index as index_memory
from memory_builder.memory import Memory
from memory_builder.model.encoder import Encoder

N = 900
DELETED = [0, 17, (1 << 32) + 299, (2 << 32) + 5]
QUERY_TEXTS = ["red panda", "green arrow"]


def build(root: Path, encoder: Encoder, write_memory: Any, clustered: Any, key: str | None) -> Memory:
    """Three shards of rows, some deleted, one without a picture, with the bundled model's fingerprint."""
    images, texts = clustered(N, encoder.d, seed=0)
    images[20] = 0
    texts[40:42] = encoder.encode_texts(QUERY_TEXTS)
    write_memory(root, images, texts, shard_rows=300, fingerprint=encoder.fingerprint, model=encoder.config.model)
    config = IndexConfig(index_key=key, train_threads=1, train_points_per_list=40, part_rows=300)
    index_memory(str(root), keys=("image", "text"), config=config, runner=LocalRunner())
    return Memory.open(root).delete(ids=DELETED)


def read_index(path: Path) -> Any:
    flags = faiss.IO_FLAG_ONDISK_SAME_DIR if path.is_dir() else faiss.IO_FLAG_MMAP
    return faiss.read_index(str(path / "populated.index" if path.is_dir() else path), flags)


@pytest.fixture(params=[(None, "4G"), ("IVF8,SQ8", "4G"), ("IVF8,SQ8", "1K")], ids=["exact", "file", "folder"])
def exported(
    request: pytest.FixtureRequest, tmp_path: Path, encoder: Encoder, write_memory: Any, clustered: Any
) -> tuple[Memory, Path]:
    key, max_file = request.param
    memory = build(tmp_path / "memory", encoder, write_memory, clustered, key)
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path / "memory"), str(out), "--as", "clip-retrieval", "--max-file", max_file]
    assert main(arguments) == 0
    assert (out / "image.index").is_dir() == (max_file == "1K")
    return memory, out


def test_numbers_in_the_indexes_are_rows_of_the_metadata(exported: tuple[Memory, Path]) -> None:
    memory, out = exported
    metadata = pq.read_table(out / "metadata" / "metadata_00000.parquet")
    every = np.concatenate([row_ids(ordinal, np.arange(300)) for ordinal in range(3)])
    assert metadata["row_id"].to_pylist() == np.setdiff1d(every, DELETED).tolist()
    assert metadata["image_path"].to_pylist() == memory.rows(metadata["row_id"].to_numpy())["key"].to_pylist()
    for keys, n in (("image", N - 5), ("text", N - 4)):
        index = read_index(out / f"{keys}.index")
        assert index.ntotal == n
        numbers = np.arange(100, 120)
        vectors = memory.vectors(metadata["row_id"].to_numpy()[numbers], keys)  # type: ignore[arg-type]
        assert index.search(vectors, 1)[1][:, 0].tolist() == numbers.tolist()
    assert json.loads((out / "indices_paths.json").read_text())["memory"]["indice_folder"] == str(out)


@pytest.mark.skipif("CLIP_RETRIEVAL_PYTHON" not in os.environ, reason="CLIP_RETRIEVAL_PYTHON names no Python")
def test_the_real_back_end_serves_it(exported: tuple[Memory, Path], model_dir: Path, tmp_path: Path) -> None:
    memory, out = exported
    config = json.loads((model_dir / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "bundled.json").write_text(json.dumps(config))
    vectors = memory.vectors(row_ids(1, np.arange(3)), "image")
    common = {"num_images": 5, "indice_name": "memory", "deduplicate": False}
    requests: list[Any] = [
        ["/knn-service", {"embedding_input": vector.tolist(), "modality": "image"} | common] for vector in vectors
    ]
    requests += [["/knn-service", {"text": text, "modality": "text"} | common] for text in QUERY_TEXTS]
    requests += [["/metadata", {"ids": [0, N - 5], "indice_name": "memory"}]]
    model = f"open_clip:bundled/{model_dir / 'open_clip_model.safetensors'}"
    client = HELPERS / "clip_back_client.py"
    command = [os.environ["CLIP_RETRIEVAL_PYTHON"], str(client), str(out / "indices_paths.json"), model, str(tmp_path)]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("answers: ")]
    *found, metadata = json.loads(line.removeprefix("answers: "))
    for vector, hits in zip(vectors, found[:3], strict=True):
        ours = memory.search(vectors=vector, k=5)
        assert [hit["row_id"] for hit in hits] == ours.ids[0].tolist()
        np.testing.assert_allclose([hit["similarity"] for hit in hits], ours.scores[0], atol=0.01)
        assert hits[0]["caption"] == memory.rows(ours.ids[0])["caption"][0].as_py()
    assert [hits[0]["row_id"] for hits in found[3:]] == [40, 41]
    assert [row["metadata"]["row_id"] for row in metadata] == [1, (2 << 32) + 299]


def test_what_cannot_be_exported(tmp_path: Path, write_memory: Any, clustered: Any, capsys: Any) -> None:
    write_memory(tmp_path / "memory", *clustered(50, 8, seed=0))
    export = ["export", str(tmp_path / "memory"), str(tmp_path / "out"), "--as", "clip-retrieval"]
    assert main(export) == 2
    assert "no index to serve" in capsys.readouterr().err
    index_memory(str(tmp_path / "memory"), keys=("text",), config=IndexConfig(), runner=LocalRunner())
    assert main([*export, "--max-file", "1K"]) == 2
    assert "raise --max-file" in capsys.readouterr().err
    assert main([*export, "--hits", "x"]) == 2
    assert "--as clip-retrieval" in capsys.readouterr().err
    assert main(export) == 0
    (tmp_path / "out" / "text.index").unlink()
    (tmp_path / "out" / "text.index").mkdir()
    assert main(export) == 2
    assert "remove it, or use another OUT" in capsys.readouterr().err
