import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from trainer.evaluate.numbers.intervals import Sums
from trainer.evaluate.numbers.metrics import (
    Answers,
    answers,
    class_sums,
    classification_figures,
    eleven_points,
    linear,
    multilabel_figures,
)


def test_figures_of_hand_made_answers():
    labels = np.array([0, 0, 0, 1, 1, 2])
    rank = np.array([0, 1, 5, 0, 4, 7])
    found = Answers(labels=labels, rank=rank, top=np.zeros((6, 5), np.int64))
    figures = classification_figures([found], ["common", "common", "rare"] + ["rare"] * 5, 8)
    assert (figures.n, figures.n_classes) == (6, 3)
    assert figures.metrics == pytest.approx({"top1": 2 / 6, "top5": 4 / 6, "mean_per_class": (1 / 3 + 1 / 2 + 0) / 3})
    assert figures.tiers["common"].metrics == pytest.approx({"top1": 2 / 5, "top5": 4 / 5, "mean_per_class": 5 / 12})
    assert (figures.tiers["rare"].n, figures.tiers["rare"].metrics["top1"]) == (1, 0.0)
    low, high = figures.ci95["top1"]
    assert 0 <= low < 2 / 6 < high <= 0.5


def test_several_seeds_are_averaged_picture_by_picture():
    labels = np.array([0, 1])
    rounds = [Answers(labels=labels, rank=np.array(rank), top=np.zeros((2, 2), np.int64)) for rank in ([0, 1], [0, 0])]
    assert classification_figures(rounds, (), 2).metrics == {"top1": 0.75, "mean_per_class": 0.75}


def test_answers_agree_with_scikit_learn_across_chunks_of_pictures():
    rng = np.random.default_rng(0)
    n, n_classes = 2_500, 12
    scores = rng.standard_normal((n, n_classes)).astype(np.float32)
    labels = rng.integers(0, n_classes, n)
    found = answers(lambda part: scores[part], labels, n_classes)
    figures = classification_figures([found], (), n_classes)
    every = np.arange(n_classes)
    assert figures.metrics["top1"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=every))
    assert figures.metrics["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=every))
    assert figures.metrics["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(axis=1)))
    assert (found.top[:, 0] == scores.argmax(axis=1)).all()
    assert ((found.top == labels[:, None]).any(axis=1) == (found.rank < 5)).all()


def test_of_equal_scores_the_smaller_label_comes_first():
    found = answers(lambda part: np.ones((3, 4), np.float32)[part], np.array([0, 1, 3]), 4)
    assert found.rank.tolist() == [0, 1, 3]
    assert found.top.tolist() == [[0, 1, 2, 3]] * 3


def test_linear_scores_are_a_hundred_cosines():
    images, classes = np.eye(3, dtype=np.float32), np.array([[0, 1, 0], [0.6, 0, 0.8]], np.float32)
    assert linear(images, classes)(slice(0, 3)) == pytest.approx(np.array([[0, 60], [100, 0], [0, 80]]))


def test_class_sums_of_chosen_classes():
    sums = class_sums(np.array([True, False, True]), np.array([5, 5, 9]), np.array([5, 7]))
    assert (sums.hits.tolist(), sums.counts.tolist()) == ([1.0], [2.0])
    with pytest.raises(ValueError, match="without pictures"):
        Sums(hits=np.zeros(2), counts=np.array([1.0, 0.0]))


def test_average_precision_by_hand():
    present = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], bool)
    scores = np.array([[0.9, 0.9, 0], [0.8, 0.1, 0], [0.7, 0.2, 0], [0.1, 0.3, 0]], np.float32)
    figures, by_class = multilabel_figures(scores, present, ["a", "b", "b"])
    # Class 0 at ranks 1 and 3 of 4: (1 + 2/3) / 2; class 1 at ranks 2 and 4: (1/2 + 2/4) / 2; class 2 has no picture.
    assert by_class["mAP"] == pytest.approx(np.array([5 / 6, 1 / 2, np.nan]), nan_ok=True)
    assert figures.metrics["mAP"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert (figures.n, figures.n_classes) == (4, 2)
    assert figures.tiers["b"].metrics["mAP"] == pytest.approx(1 / 2)


def test_eleven_points_by_hand():
    # Right at ranks 1 and 3: precision 1 up to recall 0.5 (six points), 2/3 beyond (five points).
    present, scores = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    assert eleven_points(present, scores) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert eleven_points(present[::-1], scores) == pytest.approx(1 / 2)
