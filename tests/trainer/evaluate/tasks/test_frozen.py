"""What every task does with its model, sets and run folder."""

import json

import numpy as np
import pytest

from helpers.evaluation_sets import (
    CLASSES,
    classification_set,
    encoded,
    picture,
    retrieval_set,
    write_split,
    write_texts,
)
from memory_builder.cli import main
from memory_builder.errors import ConfigMismatchError, SourceError, UsageError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store
from trainer.evaluate.config import EvalConfig
from trainer.evaluate.context import open_context
from trainer.evaluate.results import read_predictions, read_results


def config(model_dir, dataset, out, **others) -> EvalConfig:
    return EvalConfig(encoder=EncoderConfig(model=f"local-dir:{model_dir}"), dataset=dataset, out=out, **others)


def test_zero_shot_prints_and_keeps_what_it_found(shapes, evaluate, tmp_path):
    ran = evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path, "--json")
    assert ran.code == 0, ran.err
    (line,) = ran.lines
    assert (line["task"], line["n"]) == ("zero-shot", 72)
    assert set(line["metrics"]) == set(line["ci95"]) == {"top1", "top5", "mean_per_class"}
    assert line["ci95"]["top1"][0] <= line["metrics"]["top1"] <= line["ci95"]["top1"][1]
    assert set(line["tiers"]) == {"common", "rare"}
    (result,) = read_results(Store(tmp_path))
    assert result["figures"]["metrics"] == line["metrics"]
    assert result["dataset"]["n_classes"] == 12
    assert len(result["model"]["fingerprint"]) == 64
    answers = read_predictions(Store(tmp_path), result["file"])
    right = np.array(answers["rank_0"]) == 0
    assert right.mean() == pytest.approx(line["metrics"]["top1"])
    first = np.array([top[0] for top in answers["top_0"].to_pylist()])
    assert ((first == np.array(answers["label"])) == right).all()
    table = evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path).out
    assert "common" in table
    assert f"{line['metrics']['top1']:.4f} [" in table


def test_pictures_are_embedded_once_for_all_tasks(shapes, evaluate, tmp_path, monkeypatch):
    evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path)
    monkeypatch.setattr("trainer.evaluate.sets.features.picture_batches", None)
    assert evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path).code == 0
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "eval" / "features").rglob("*.npy")}
    evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path, "--batch-size", "7")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "eval" / "features").rglob("*.npy")}
    assert len(after) == 2 * len(before)
    assert before.items() <= after.items()


def test_runs_of_one_model_share_the_features_they_are_told_to(shapes, evaluate, tmp_path, monkeypatch):
    shared = ("--dataset", shapes, "--features", tmp_path / "shared")
    assert evaluate("zero-shot", *shared, "--out", tmp_path / "a").code == 0
    monkeypatch.setattr("trainer.evaluate.sets.features.picture_batches", None)
    assert evaluate("zero-shot", *shared, "--out", tmp_path / "b").code == 0
    assert not list(tmp_path.glob("[ab]/eval/features"))


def test_features_without_their_record_are_made_anew(shapes, evaluate, tmp_path):
    evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path)
    (record,) = (tmp_path / "eval" / "features").rglob("record.json")
    record.unlink()
    (record.parent / "images.npy").write_bytes(b"half")
    assert evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path).code == 0
    assert record.exists()


def test_a_run_on_an_object_store_is_written_and_reported_there(shapes, evaluate, s3, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run, features = f"{s3.url}/run", f"{s3.url}/features"
    ran = evaluate("zero-shot", "--dataset", shapes, "--out", run, "--features", features)
    assert ran.code == 0, ran.err
    (result,) = read_results(s3.store("run"))
    assert len(read_predictions(s3.store("run"), result["file"])) == 72
    assert len(s3.store("features").list("eval/features", "directory")) == 1
    assert main(["report", run, "--out", f"{s3.url}/pages/report.html"]) == 0
    assert b"zero-shot" in s3.store("pages").read("report.html")
    assert not list((tmp_path / "here").iterdir())
    assert main(["report", run]) == 0
    assert [path.name for path in (tmp_path / "here").glob("*.html")] == ["report.html"]


def test_settings_are_not_chosen_on_what_is_measured(shapes, dev_shapes, model_dir, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(shapes)
    with pytest.raises(UsageError, match=r"--dev .* is the test set"):
        config(model_dir, shapes, tmp_path, dev=link)
    for given in ({"split": "train"}, {"dev": dev_shapes, "dev_split": "train"}):
        context = open_context(config(model_dir, shapes, tmp_path, **given))
        with pytest.raises(UsageError, match="--train-split train is the split that is evaluated"):
            context.train(context.dev or context.test)
    with pytest.raises(UsageError, match="--batch-size 0"):
        config(model_dir, shapes, tmp_path, batch_size=0)
    assert config(model_dir, shapes, tmp_path, dev=shapes, dev_split="val").dev_split == "val"


def test_a_dev_set_that_holds_a_measured_picture_is_refused(shapes, model_dir, tmp_path):
    write_texts(tmp_path / "dev", classnames=CLASSES, zeroshot_classification_templates="{c}")
    samples = [{"png": encoded(picture(0, seed)), "cls": b"0"} for seed in (0, 900)]
    write_split(tmp_path / "dev", "test", samples, n_tars=1)
    with pytest.raises(UsageError, match=r"--dev: 1 of the 72 pictures .* such as s0000000: take them out"):
        open_context(config(model_dir, shapes, tmp_path / "run", dev=tmp_path / "dev"))
    captioned = retrieval_set(tmp_path / "captioned")
    with pytest.raises(UsageError, match=r"is a retrieval set, --dataset .* a classification one"):
        open_context(config(model_dir, shapes, tmp_path / "run", dev=captioned))


def test_a_picture_that_cannot_be_decoded_is_refused_by_name(model_dir, tmp_path):
    root = classification_set(tmp_path / "set", splits={"test": 1})
    write_split(root, "test", [{"png": encoded(picture(0, 0))[:-30], "cls": b"0"}], n_tars=1)
    with pytest.raises(SourceError, match=r"picture s0000000 cannot be decoded \(image is damaged\): repair it"):
        open_context(config(model_dir, root, tmp_path / "run"))


def test_a_run_belongs_to_one_model(shapes, model_dir, evaluate, tmp_path):
    evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path)
    (record,) = (tmp_path / "eval").glob("*.json")
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"model": {"name": "other", "fingerprint": "f" * 64}}))
    with pytest.raises(ConfigMismatchError, match=r"fingerprint ffffffffffff, .*name another --out"):
        open_context(config(model_dir, shapes, tmp_path))


def test_a_task_refuses_sets_it_cannot_be_asked_about(shapes, captioned, evaluate, tmp_path):
    ran = evaluate("retrieval", "--dataset", shapes, "--out", tmp_path)
    assert (ran.code, "is a classification set" in ran.err) == (2, True)
    ran = evaluate("zero-shot", "--dataset", captioned, "--out", tmp_path)
    assert (ran.code, "this task evaluates classification or multilabel sets" in ran.err) == (2, True)


def test_equal_captions_of_other_pictures_count_when_asked(evaluate, tmp_path):
    root = tmp_path / "set"
    write_texts(root, dataset_type="retrieval")
    samples = [{"png": encoded(picture(i % 12, i)), "txt": CLASSES[i % 12].encode()} for i in range(36)]
    write_split(root, "test", samples)
    (own,) = evaluate("retrieval", "--dataset", root, "--out", tmp_path, "--json").lines
    (equal,) = evaluate("retrieval", "--dataset", root, "--out", tmp_path, "--positives", "caption", "--json").lines
    for name, value in own["metrics"].items():
        assert equal["metrics"][name] >= value
    assert equal["metrics"]["text_to_image_recall@1"] > own["metrics"]["text_to_image_recall@1"]
    evaluate("retrieval", "--dataset", root, "--out", tmp_path)
    results = {result["config"]["positives"]: result for result in read_results(Store(tmp_path))}
    assert results["own"]["figures"]["metrics"] == own["metrics"]
    assert results["caption"]["figures"]["metrics"] == equal["metrics"]
    assert len(read_results(Store(tmp_path))) == 2


def test_sets_in_folders_of_one_name_do_not_overwrite_each_other(evaluate, tmp_path):
    for home in ("a", "b"):
        root = classification_set(tmp_path / home / "icons", splits={"test": 1}, first_seed=ord(home))
        evaluate("zero-shot", "--dataset", root, "--out", tmp_path / "run")
        evaluate("zero-shot", "--dataset", root, "--out", tmp_path / "run")
    assert len(read_results(Store(tmp_path / "run"))) == 2
