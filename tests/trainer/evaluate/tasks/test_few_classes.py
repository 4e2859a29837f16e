"""What is printed and kept where intervals cannot be trusted."""

import json

import numpy as np

from helpers.evaluation_sets import CLASSES, encoded, picture, write_split, write_texts
from trainer.evaluate.numbers.metrics import Answers, classification_figures
from trainer.evaluate.numbers.paired import compare_top1


def answered(labels: list[int], right: list[bool]) -> Answers:
    rank = np.where(right, 0, 1)
    return Answers(labels=np.array(labels), rank=rank, top=np.zeros((len(rank), 1), np.int64))


def test_over_one_class_there_is_neither_interval_nor_p():
    found, other = answered([0, 0, 1, 2], [True, False, True, True]), answered([0, 0, 1, 2], [False] * 4)
    tiers = ["rare", "common", "common"]
    figures = classification_figures([found], tiers, 3)
    assert figures.tiers["rare"].ci95 == {"top1": None, "mean_per_class": None}
    assert None not in figures.tiers["common"].ci95.values()
    told = compare_top1(found, other, tiers)
    assert told["rare"] == {"value": 0.5, "low": None, "high": None, "p": None}
    assert told["common"]["p"] < 0.05
    json.dumps(told, allow_nan=False)


def test_from_twenty_classes_on_nothing_is_remarked():
    for n, remarked in ((20, False), (19, True)):
        figures = classification_figures([answered(list(range(n)), [True] * n)], (), n)
        assert bool(figures.remark) == remarked
    tiers = ["rare"] * 2 + ["common"] * 20
    assert classification_figures([answered(list(range(22)), [True] * 22)], tiers, 22).remark


def test_the_printed_table_says_so(shapes, evaluate, tmp_path):
    out = evaluate("zero-shot", "--dataset", shapes, "--out", tmp_path / "run").out
    assert "Intervals over fewer than 20 classes (in retrieval, pictures) are too narrow" in out
    root = tmp_path / "one"
    write_texts(root, classnames=CLASSES, zeroshot_classification_templates="{c}")
    write_split(root, "test", [{"png": encoded(picture(0, seed)), "cls": b"0"} for seed in (1, 2)], n_tars=1)
    given = ("zero-shot", "--dataset", root, "--out", tmp_path / "run")
    assert "[" not in evaluate(*given).out
    (line,) = evaluate(*given, "--json").lines
    assert set(line["ci95"].values()) == {None}
