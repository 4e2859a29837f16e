"""The whole of ``evaluate baselines`` on a memory of shapes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.evaluation_sets import CLASSES
from memory_builder.base.runner import LocalRunner
from memory_builder.cli import main
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store
from trainer.evaluate.results import read_predictions, read_results
from trainer.evaluate.with_memory.baseline_task import METHODS
from trainer.evaluate.with_memory.retrieved_context import count_in_memory


@pytest.fixture(scope="module")
def ran(memory, shapes, dev_shapes, evaluate, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    given = ("--memory", memory, "--dataset", shapes, "--dev", dev_shapes, "--out", out, "--json")
    done = evaluate("baselines", *given)
    assert done.code == 0, done.err
    return done, Store(out)


@pytest.fixture(scope="module")
def results(ran):
    return {result["method"]: result for result in read_results(ran[1])}


def test_pictures_that_the_memory_holds_are_told_of(capsys):
    assert count_in_memory(np.array([0.9995, 0.5, -np.inf], np.float32)) == 1
    assert "warning: the memory holds 1 of the 3 pictures (cosine 0.999 or more)" in capsys.readouterr().err
    assert count_in_memory(np.array([0.998], np.float32)) == 0
    assert not capsys.readouterr().err


def test_every_method_and_control_has_a_line_and_a_record(ran, results):
    printed = {line["method"]: line for line in ran[0].lines}
    expected = {"zero-shot", *(method.name for method in METHODS), "name-centroid", "pixel"}
    assert set(printed) == set(results) == expected
    for name, line in printed.items():
        assert line["task"] == "baselines"
        assert line["metrics"] == results[name]["figures"]["metrics"]
        assert set(line["ci95"]) == set(line["metrics"])


def test_what_the_memory_holds_is_said(results):
    told = results["knn"]["memory"]
    assert told["rows"] == 144
    assert told["rows_by_class"] == [12] * 11 + [0]
    assert (told["classes_without_rows"], told["pictures_in_memory"]) == (1, 0)


def test_every_method_beats_chance_and_the_right_ones_beat_names(results):
    chance = 1 / len(CLASSES)
    for result in results.values():
        assert result["figures"]["ci95"]["top1"][0] > chance, result["method"]
    for name in ("knn-name", "name-centroid"):
        against = results[name]["extra"]["against_zero_shot"]["all"]
        assert against["low"] > 0
        assert against["p"] < 0.05
    gains = {method.name: results[method.name]["extra"]["against_zero_shot"]["all"]["value"] for method in METHODS}
    assert min(gains.values()) > -0.05, gains  # a setting chosen on dev may lose some pictures of test
    assert np.median(list(gains.values())) > 0, gains
    assert set(results["knn"]["extra"]["against_zero_shot"]) == {"all", "common", "rare"}


def test_settings_were_chosen_on_dev(results):
    for method in METHODS:
        config = results[method.name]["config"]
        assert (config["chosen_on"], config["n_settings_tried"]) == ("dev", len(method.grid))


def test_with_names_scrambled_everywhere_only_the_memory_knows(results):
    assert results["zero-shot"]["extra"]["names_scrambled"]["metrics"]["top1"] < 0.2
    by_name = results["knn-name"]
    assert by_name["extra"]["names_scrambled"]["metrics"] == by_name["figures"]["metrics"]
    assert results["knn"]["extra"]["names_scrambled"]["metrics"]["top1"] > 0.3


def test_with_names_scrambled_in_the_memory_alone_retrieval_helps_nothing(results):
    wrong = {m.name: results[m.name]["extra"]["memory_scrambled"]["metrics"]["top1"] for m in METHODS}
    zero_shot = results["zero-shot"]["figures"]["metrics"]["top1"]
    assert wrong["knn-name"] <= 1 / len(CLASSES)
    assert wrong["knn"] < zero_shot - 0.1
    assert max(wrong.values()) < zero_shot + 0.1, "what keeps the names may keep what they know"


def test_a_class_that_the_memory_does_not_name_is_not_answered_by_luck(ran, results):
    for name in ("knn-name", "name-centroid", "pixel"):
        answers = read_predictions(ran[1], results[name]["file"])
        last = np.array(answers["label"]) == 11
        assert last.sum() == 6
        assert (np.array(answers["rank_0"])[last] == 11).all(), name


def test_reasons_are_rows_of_the_memory(ran, results, memory):
    opened = Memory.open(memory)
    for method in METHODS:
        answers = read_predictions(ran[1], results[method.name]["file"])
        reasons, first = answers["reasons"].to_pylist(), [top[0] for top in answers["top_0"].to_pylist()]
        assert {len(some) for some in reasons} == {8}
        captions = opened.rows(np.array(reasons)[:, 0])["caption"].to_pylist()
        if not method.by_picture:
            named = [CLASSES[label].upper() in caption for label, caption in zip(first, captions, strict=True)]
            assert np.mean(named) > 0.3


def test_without_pictures_of_the_memory_pixels_are_left_out_and_said(memory, shapes, evaluate, tmp_path):
    shard = Path(Memory.open(memory).source(0))
    hidden = shard.rename(shard.with_suffix(".hidden"))
    try:
        ran = evaluate("baselines", "--memory", memory, "--dataset", shapes, "--out", tmp_path, "--json")
    finally:
        hidden.rename(shard)
    assert ran.code == 0, ran.err
    assert "skipping pixel" in ran.err
    assert "pixel" not in {line["method"] for line in ran.lines}
    configs = [result["config"] for result in read_results(Store(tmp_path)) if result["config"]]
    assert {config["chosen_on"] for config in configs} == {"nothing: published defaults"}


@pytest.mark.parametrize("left", [0.5, 0.0])
def test_pictures_of_the_memory_that_cannot_be_read_are_counted(memory, shapes, evaluate, tmp_path, left):
    shard = Path(Memory.open(memory).source(0))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(left * len(whole))])
    try:
        ran = evaluate("baselines", "--memory", memory, "--dataset", shapes, "--out", tmp_path)
    finally:
        shard.write_bytes(whole)
    assert ran.code == 0, ran.err
    n_read = int(re.search(r"pixel: (\d+) of 132 pictures of .* read", ran.err)[1])
    told = [result["extra"]["pictures"] for result in read_results(Store(tmp_path)) if result["method"] == "pixel"]
    assert ("skipping pixel" in ran.err) == (n_read == 0) == (left == 0)
    assert told == ([{"read": n_read, "named": 132}] if n_read else [])
    assert n_read < 132


def test_two_memories_in_one_run_keep_their_results_and_say_in_which_state_they_were(
    memory, shapes, dev_shapes, evaluate, tmp_path
):
    other, out = Path(shutil.copytree(memory, tmp_path / "other")), tmp_path / "run"
    opened = Memory.open(other)
    opened.delete(ids=opened.row_ids(0)[:40])
    given = ("--dataset", shapes, "--out", out, "--no-pixels")
    for root in (memory, other, memory, other):
        assert evaluate("baselines", "--memory", root, *given).code == 0
    results = [result for result in read_results(Store(out)) if result["method"] != "zero-shot"]
    assert len(results) == 2 * 7
    for result in results:
        there = Memory.open(result["memory"]["root"])
        assert (result["memory"]["rows"], result["memory"]["snapshot"]) == (len(there), there.snapshot.number)
    assert len({result["memory"]["snapshot"] for result in results}) == 2
    main(["report", str(out), "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert page.count('<th scope="row">zero-shot</th>') == 1
    for name in ("memory", "other"):
        assert f'<th scope="row">knn, memory {name}</th>' in page
        assert f"{name} rows a class" in page
    assert evaluate("baselines", "--memory", memory, *given, "--dev", dev_shapes).code == 0
    assert [result["method"] for result in read_results(Store(out))].count("knn") == 3


def test_a_memory_of_another_model_is_refused(shapes, evaluate, write_memory, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20, 192)).astype(np.float32)
    write_memory(tmp_path / "memory", vectors, vectors)
    ran = evaluate("baselines", "--memory", tmp_path / "memory", "--dataset", shapes, "--out", tmp_path / "run")
    assert (ran.code, "evaluate the model that built the memory" in ran.err) == (2, True)


def test_a_memory_that_was_not_indexed_is_refused(memory, shapes, evaluate, model_dir, tmp_path):
    config = json.loads((memory / "memory.json").read_text())
    assert config["fingerprint"]
    encoder = EncoderConfig(model=f"local-dir:{model_dir}")
    shards = [Memory.open(memory).source(0)]
    embed(shards, str(tmp_path / "memory"), encoder=encoder, config=EmbedConfig(), runner=LocalRunner())
    ran = evaluate("baselines", "--memory", tmp_path / "memory", "--dataset", shapes, "--out", tmp_path / "run")
    assert (ran.code, "has no image index: run memory-builder index" in ran.err) == (2, True), ran.err
