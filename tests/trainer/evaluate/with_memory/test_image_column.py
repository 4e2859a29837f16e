"""Pictures of a memory are read again from the column they were embedded from."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import memory_builder as mb
from memory_builder import Memory
from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.embed_shard import EmbedConfig
from memory_builder.model.encoder import EncoderConfig
from trainer.evaluate.report.pictures import Pictures
from trainer.evaluate.with_memory.baselines.pixels import _named_pictures


@pytest.fixture
def memory(tmp_path: Path, model_dir: Path) -> Memory:
    """Three pictures in the column ``bild``; ``image`` holds something else."""
    pictures = []
    for shade in (40, 120, 200):
        Image.new("RGB", (32, 32), (shade, 10, 10)).save(file := io.BytesIO(), "png")
        pictures.append(file.getvalue())
    columns = {"key": ["a", "b", "c"], "bild": pictures, "caption": ["one", "two", "three"], "image": ["no"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "odd.parquet")
    mb.embed(
        [str(tmp_path / "odd.parquet")],
        str(tmp_path / "memory"),
        encoder=EncoderConfig(model=f"local-dir:{model_dir}"),
        config=EmbedConfig(image_key="bild"),
        runner=LocalRunner(),
    )
    return Memory.open(tmp_path / "memory")


def test_the_pixel_control_reads_it(memory: Memory) -> None:
    census = SimpleNamespace(ids=memory.row_ids(0), labels=np.arange(3))
    assert sorted(label for _, label in _named_pictures(memory, census)) == [0, 1, 2]


def test_the_report_reads_it(memory: Memory) -> None:
    pictures, root = Pictures(), memory.store.root
    pictures.read_rows(root, memory.row_ids(0).tolist())
    shown = [pictures.row(root, row_id) for row_id in memory.row_ids(0).tolist()]
    assert [caption for _, caption in shown] == ["one", "two", "three"]
    assert all(picture is not None and picture.startswith("data:image/") for picture, _ in shown)
    assert not pictures.missing
