import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.coca_model import CoCa

from helpers.evaluation_sets import encoded, picture, picture_folders
from memory_builder.errors import UsageError
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store
from trainer.evaluate.config import EvalConfig
from trainer.evaluate.context import open_context
from trainer.evaluate.results import read_results
from trainer.evaluate.sets.features import picture_batches
from trainer.evaluate.tasks.finetune import TuneParams, tune
from trainer.evaluate.tasks.heads import HeadParams, train_head
from trainer.evaluate.tasks.linear_probe import FewShotSplit
from trainer.evaluate.tasks.shots import ShotOptions, choose, draw


def test_draws_hold_so_many_of_each_class_and_grow():
    labels = np.array([2, 0, 0, 0, 2, 0, 4])
    two, four = draw(labels, "2", 0), draw(labels, "4", 0)
    assert np.bincount(labels[two]).tolist() == [2, 0, 2, 0, 1]
    assert set(two) < set(four) == set(range(7))
    assert draw(labels, "all", 5).tolist() == list(range(7))
    assert len({tuple(draw(labels, "2", seed)) for seed in range(9)}) > 1
    assert draw(labels, "2", 3).tolist() == draw(labels, "2", 3).tolist()


@pytest.mark.parametrize("shots", [("0",), ("some",), (), ("-1",), ("1.5",)])
def test_shots_that_cannot_be_are_refused(shots):
    with pytest.raises(UsageError, match="--shots"):
        ShotOptions(shots=shots)
    with pytest.raises(UsageError, match="--n-seeds 0"):
        ShotOptions(n_seeds=0)


def test_a_setting_is_chosen_by_its_score_and_by_nothing_without_one():
    assert choose([1, 2, 3], lambda params: -abs(params - 2.2)) == (
        2,
        {"chosen_on": "dev", "dev_top1": pytest.approx(-0.2), "n_settings_tried": 3},
    )
    assert choose([1, 2], None)[0] == 1
    assert choose([5, 6], lambda _: 0.5)[0] == 5


def test_a_head_learns_what_its_names_got_wrong_and_stays_without_pictures():
    rng = np.random.default_rng(0)
    centres = np.eye(3, 16, dtype=np.float32)
    x = centres[np.arange(60) % 3] + 0.1 * rng.standard_normal((60, 16), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    wrong = centres[[1, 2, 0]]
    params = HeadParams(learning_rate=0.1, epochs=20)
    head = train_head(x, np.arange(60) % 3, wrong, params, 0)
    assert ((x @ wrong.T).argmax(axis=1) == np.arange(60) % 3).mean() == 0
    assert ((x @ head.T).argmax(axis=1) == np.arange(60) % 3).mean() == 1
    assert np.linalg.norm(head, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert (train_head(x, np.arange(60) % 3, wrong, params, 0) == head).all()
    assert (wrong == centres[[1, 2, 0]]).all()
    assert train_head(x[:0], np.zeros(0, np.int64), wrong, params, 0) is wrong


def test_the_probe_gains_with_shots_and_chooses_on_dev(shapes, dev_shapes, evaluate, tmp_path):
    (before,) = evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path, "--json").lines
    ran = evaluate(
        "linear-probe", "--dataset", shapes, "--dev", dev_shapes, "--out", tmp_path, "--shots", "1", "all", "--json"
    )
    assert ran.code == 0, ran.err
    one, every = ran.lines
    assert (one["shots"], every["shots"]) == ("1", "all")
    assert every["metrics"]["top1"] > one["metrics"]["top1"]
    assert every["ci95"]["top1"][0] > before["ci95"]["top1"][1]
    results = {r["config"].get("shots"): r for r in read_results(Store(tmp_path)) if r["task"] == "linear-probe"}
    assert results["1"]["extra"]["n_train"] == [12] * 3
    assert results["all"]["extra"]["n_train"] == [60] * 3
    assert results["1"]["config"]["chosen_on"] == "dev"
    assert results["1"]["config"]["n_settings_tried"] > 1
    assert np.mean(results["1"]["extra"]["top1_by_seed"]) == pytest.approx(one["metrics"]["top1"])


def test_without_dev_published_defaults_are_used_and_said(shapes, evaluate, tmp_path):
    evaluate("linear-probe", "--dataset", shapes, "--out", tmp_path, "--shots", "2", "--n-seeds", "1")
    (result,) = read_results(Store(tmp_path))
    assert result["config"]["chosen_on"] == "nothing: published defaults"
    assert result["config"]["learning_rate"] == 1e-3


@pytest.fixture(scope="module")
def context(shapes, model_dir, tmp_path_factory):
    encoder = EncoderConfig(model=f"local-dir:{model_dir}")
    return open_context(EvalConfig(encoder=encoder, dataset=shapes, out=tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def split(context) -> FewShotSplit:
    return FewShotSplit(
        train=context.train(context.test), test=context.test, classifier=context.classifier(context.test)
    )


def test_labels_that_stand_for_other_folders_are_refused_whatever_the_classes_are_called(model_dir, tmp_path):
    for split in ("test", "train"):
        picture_folders(tmp_path, split=split)
    (tmp_path / "classnames.txt").write_text("\n".join(f"class {label}" for label in range(12)))
    last = max((tmp_path / "train").iterdir())
    last.rename(last.with_name("a"))  # now first, so that every label has moved
    config = EvalConfig(encoder=EncoderConfig(model=f"local-dir:{model_dir}"), dataset=tmp_path, out=tmp_path / "run")
    context = open_context(config)
    with pytest.raises(UsageError, match="the classes of train and test differ: a label must mean the same in both"):
        context.train(context.test)


def test_fine_tuning_learns_and_leaves_the_model_as_it_was(context, split):
    before = {name: tensor.clone() for name, tensor in context.towers.model.state_dict().items()}
    params = TuneParams(learning_rate=1e-4, epochs=4, last_layers=2)
    found = tune(context.towers, split, "all", 0, params)
    zero_shot = (split.test.images @ split.classifier.T).argmax(axis=1) == split.test.labels
    assert (found.rank == 0).mean() > zero_shot.mean() + 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in context.towers.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in context.towers.model.parameters())


def test_without_learning_the_tuned_tower_answers_as_the_model(context, split):
    found = tune(context.towers, split, "1", 0, TuneParams(learning_rate=0.0, head_learning_rate=0.0, epochs=1))
    scores = split.test.images @ split.classifier.T
    assert (found.top[:, 0] == scores.argmax(axis=1)).all()


def test_a_tower_that_gives_its_tokens_too_is_tuned(context, split):
    size = context.towers.pixels(encoded(picture(0, 0))).shape[0]
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": size, "patch_size": 16, "width": 32, "head_width": 8, "layers": 2, "output_tokens": True}
    pooling = {"attentional_pool": True, "attn_pooler_heads": 2}
    coca = CoCa(16, text, text | {"embed_cls": True, "output_tokens": True}, vision | pooling).eval()
    head = np.eye(12, 16, dtype=np.float32)
    params = TuneParams(learning_rate=0.0, head_learning_rate=0.0, epochs=1)
    found = tune(replace(context.towers, model=coca, d=16), replace(split, classifier=head), "1", 0, params)
    with torch.inference_mode():
        pixels = np.concatenate([pixels for _, pixels in picture_batches(split.test.dataset, context.towers, 64)])
        images = coca.encode_image(context.towers.normalised(pixels), normalize=True).numpy()
    assert (found.top[:, 0] == (images @ head.T).argmax(axis=1)).all()


def test_only_the_asked_layers_learn(context, split, monkeypatch):
    import trainer.evaluate.tasks.finetune as module

    kept = []
    monkeypatch.setattr(module, "_encode", lambda _, visual, __: kept.append(visual) or split.test.images)
    tune(context.towers, split, "1", 0, TuneParams(epochs=1, last_layers=1))
    tune(context.towers, split, "1", 0, TuneParams(epochs=1))
    original = context.towers.model.visual.state_dict()
    moved = [{name for name, t in visual.state_dict().items() if not torch.equal(t, original[name])} for visual in kept]
    assert {name.split(".")[2] for name in moved[0] if name.startswith("transformer")} == {"5"}
    assert "conv1.weight" not in moved[0]
    assert "conv1.weight" in moved[1]
    with pytest.raises(UsageError, match="--last-layers 7: the image tower has 6 blocks"):
        tune(context.towers, split, "1", 0, TuneParams(last_layers=7))


def test_fine_tuning_by_the_command(shapes, evaluate, tmp_path):
    given = ("--dataset", shapes, "--out", tmp_path, "--shots", "1", "--n-seeds", "2", "--last-layers", "1", "--json")
    (line,) = evaluate("few-shot", *given).lines
    assert (line["task"], line["shots"], line["n"]) == ("few-shot", "1", 72)


def test_pictures_that_were_learnt_from_are_not_asked_about(shapes, evaluate, tmp_path):
    root = shutil.copytree(shapes, tmp_path / "set")
    shutil.copy(root / "test" / "0.tar", root / "train" / "0.tar")
    (root / "train" / "nshards.txt").write_text("1")
    ran = evaluate("linear-probe", "--dataset", root, "--out", tmp_path / "run", "--shots", "1")
    assert (ran.code, "--train-split train: 36 of the 72 pictures" in ran.err) == (2, True), ran.err
