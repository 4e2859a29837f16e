"""OVEN's annotations and pictures become a set that evaluate reads, and what is wrong with them is said."""

import importlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from trainer.evaluate.sets.datasets import open_dataset

oven = importlib.import_module("oven")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions about two entities; the third one's picture is missing."""
    rows = [
        {
            "data_id": f"oven_entity_val_{i}",
            "image_id": f"oven_{i:08d}",
            "question": "what is this?",
            "entity_id": f"Q{i % 2}",
            "entity_text": f"thing {i % 2}",
            "data_split": ("val_seen", "val_unseen")[i % 2],
        }
        for i in range(3)
    ]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for i in range(2):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (i * 255, 0, 0)).save(file, "JPEG")
        (tmp_path / "images" / "00").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "00" / f"oven_{i:08d}.jpg").write_bytes(file.getvalue())
    (tmp_path / "wikipedia.jsonl").write_text('{"id": "Q1", "content": "thing 1"}\n{"id": "Q9", "content": "other"}\n')
    return tmp_path


def test_the_set_has_tiers_and_further_entities(data: Path) -> None:
    config = oven.Oven(
        annotations=data / "val.jsonl",
        images=data / "images",
        out=data / "oven",
        entities=data / "wikipedia.jsonl",
    )
    assert oven.convert(config).endswith("1 left out as their picture is missing")
    dataset = open_dataset(data / "oven", "test")
    assert dataset.classes == ("thing 0", "thing 1", "other")
    assert dataset.tiers == ("seen", "unseen", "not asked about")
    assert [(example.key, example.labels) for example in dataset.examples()] == [
        ("oven_entity_val_0", (0,)),
        ("oven_entity_val_1", (1,)),
    ]


def test_a_split_without_answers_and_a_wrong_folder_are_named(data: Path) -> None:
    def convert(annotations: str, images: str) -> str:
        return oven.convert(oven.Oven(annotations=data / annotations, images=data / images, out=data / "oven"))

    with pytest.raises(oven.OvenError, match=r"has none of the 3 pictures: expected oven_00000000\.jpg"):
        convert("val.jsonl", "elsewhere")
    row = json.loads((data / "val.jsonl").read_text().splitlines()[0])
    (data / "test.jsonl").write_text(json.dumps({**row, "entity_id": None}))
    with pytest.raises(oven.OvenError, match=r"line 1 lacks entity_id: .* take val"):
        convert("test.jsonl", "images")
    (data / "broken.jsonl").write_text("{")
    with pytest.raises(oven.OvenError, match=r"broken\.jsonl, line 1: no JSON"):
        convert("broken.jsonl", "images")
