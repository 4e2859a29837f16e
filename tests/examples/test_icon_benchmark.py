"""The benchmark's files, and the base model trained on them: the same bytes twice, and a kill changes nothing."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import base_model
import benchmark
import numpy as np
import open_clip
import pretrain
import pytest
import torch
from base_data import black_on_white, read_set, rows_of_step
from PIL import Image


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_picture_is_where_its_split_says(built: benchmark.Benchmark) -> None:
    held: dict[str, list[str]] = {}
    for path in sorted(built.out.rglob("*.tar")):
        with tarfile.open(path) as tar:
            held[str(path.relative_to(built.out))] = [
                Path(name).stem for name in tar.getnames() if name.endswith(".png")
            ]
    keys = [key for names in held.values() for key in names]
    few_shot = len(held["test-few-shot/test/0.tar"])
    assert len(set(keys)) == 96 * 7 // 8  # all but the dropped
    assert len(keys) == len(set(keys)) + few_shot  # few-shot classes are common ones too
    assert len(held["base/00000.tar"]) == 18
    assert len(held["memory/00001.tar"]) == 6
    with tarfile.open(built.out / "memory" / "00001.tar") as tar:
        stream = tar.extractfile("set--n51.txt")
        assert stream is not None
        assert stream.read() == b"thing 0 icon"


def test_evaluation_sets_are_in_the_layout_of_clip_benchmark(built: benchmark.Benchmark) -> None:
    folder = built.out / "test-few-shot"
    names, pictures, labels = read_set(folder)
    assert sorted(names) == [f"thing {number}" for number in range(len(names))]
    assert pictures.shape == (len(labels), 3, 64, 64)
    assert (folder / "dataset_type.txt").read_text() == "classification\n"
    assert (folder / "train" / "nshards.txt").read_text() == "1\n"
    assert "{c} icon" in (folder / "zeroshot_classification_templates.txt").read_text()


def test_the_same_bytes_for_any_number_of_workers(built: benchmark.Benchmark, tmp_path: Path) -> None:
    benchmark.write_benchmark(replace(built, out=tmp_path, workers=2))
    assert files(tmp_path) == files(built.out)


@pytest.fixture
def small(built: benchmark.Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pretrain.Pretrain:
    """Return the config of a training of four steps, with a model a hundredth of the size."""
    vision = {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = base_model.TEXT | {"width": 16, "heads": 2, "layers": 1}
    monkeypatch.setattr(base_model, "MODEL", base_model.MODEL | {"vision_cfg": vision, "text_cfg": text})
    return pretrain.Pretrain(
        pairs=built.out / "base", dev=built.out, out=tmp_path / "whole", batch=8, pairs_seen=32, warmup_steps=2,
        evaluate_pairs=16, threads=1,
    )  # fmt: skip


def test_training_goes_on_bit_for_bit_where_it_stopped(small: pretrain.Pretrain, tmp_path: Path) -> None:
    pretrain.pretrain(small)
    parts = replace(small, out=tmp_path / "parts")
    for stop in (1, 3, None):
        pretrain.pretrain(replace(parts, stop_after_steps=stop))
    whole, resumed = (torch.load(c.out / "checkpoint.pt", weights_only=True) for c in (small, parts))
    assert whole["step"] == resumed["step"] == 4
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name


def test_the_model_opens_in_open_clip_and_training_can_begin_with_it(small: pretrain.Pretrain, tmp_path: Path) -> None:
    pretrain.pretrain(small)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{small.out / 'model'}")
    picture = preprocess(Image.new("RGB", (64, 64)))[None]
    assert model.encode_image(picture).shape == (1, 192)
    assert "Trained from scratch" in (small.out / "model" / "README.md").read_text()
    lines = [json.loads(line) for line in (small.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["pairs"] for line in lines if "loss" in line] == [16, 32]
    assert {"dev-common", "dev-rare", "dev-absent", "pairs_per_s"} <= lines[-1].keys()
    again = replace(small, out=tmp_path / "again", start_from=small.out / "model")
    begun = pretrain.Training(again, torch.device("cpu")).model
    assert torch.equal(begun.visual.proj.half(), model.visual.proj.half())


def test_drawings_are_easy_first_and_never_at_the_end(small: pretrain.Pretrain) -> None:
    training = pretrain.Training(replace(small, pairs_seen=800), torch.device("cpu"))
    shares = []
    for training.step in range(0, 101, 10):
        shares.append(round(training.easy(), 3))
    assert shares == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0]
    none = pretrain.Training(replace(small, all_easy_until=0, easy_until=0), torch.device("cpu"))
    assert none.easy() == 0


def test_what_is_easy_is_black_on_white_whatever_its_colours() -> None:
    pictures = torch.zeros(2, 3, 64, 64)
    pictures[:, 0] = 1
    pictures[:, :, 20:40, 20:40] = torch.tensor([-1.0, 0.5, 0.25])[None, :, None, None]
    pictures[1] = -pictures[1]
    plain = black_on_white(pictures)
    assert torch.equal(plain[0], plain[1])
    assert plain[0, :, 0, 0].tolist() == [1, 1, 1]
    assert plain[0, :, 30, 30].tolist() == [-1, -1, -1]


def test_an_epoch_shows_every_pair_once() -> None:
    rows = np.concatenate([rows_of_step(40, step, 8, 0) for step in range(5)])
    assert sorted(rows) == list(range(40))
    assert rows_of_step(40, 5, 8, 0).tolist() != rows_of_step(40, 0, 8, 0).tolist()
