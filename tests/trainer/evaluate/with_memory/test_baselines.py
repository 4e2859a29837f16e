"""Each baseline on retrieved made by hand, where what it must answer is known."""

from dataclasses import replace

import numpy as np
import pytest

from memory_builder.base.types import NO_ROW
from trainer.evaluate.numbers.metrics import answers
from trainer.evaluate.with_memory.baselines import cache, fusion, head, priming, vote
from trainer.evaluate.with_memory.names import NO_CLASS, ClassNames
from trainer.evaluate.with_memory.retrieved_context import RetrievedContext, derangement, scramble

N_CLASSES, PER_CLASS, K, D = 6, 4, 5, 32


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def labels():
    return np.repeat(np.arange(N_CLASSES), 20)


@pytest.fixture(scope="module")
def retrieved(labels) -> RetrievedContext:
    """Images lie near their class's image centre, captions near its name, and names know nothing of images."""
    rng = np.random.default_rng(0)
    centres, texts = unit(rng.standard_normal((N_CLASSES, D))), unit(rng.standard_normal((N_CLASSES, D)))
    images = unit(centres[labels] + 0.1 * rng.standard_normal((len(labels), D)))
    of_rows = np.repeat(np.arange(N_CLASSES), PER_CLASS)
    rows = unit(centres[of_rows] + 0.1 * rng.standard_normal((len(of_rows), D)))
    cosines = images @ rows.T
    index = np.argsort(-cosines, axis=1)[:, :K]
    return RetrievedContext(
        images=images,
        classifier=texts,
        ids=index,
        similarity=np.take_along_axis(cosines, index, 1),
        index=index,
        captions=tuple(f"this is thing{label}" for label in of_rows),
        caption_vectors=unit(texts[of_rows] + 0.05 * rng.standard_normal((len(of_rows), D))),
        caption_class=of_rows,
        class_ids=np.arange(len(of_rows)).reshape(N_CLASSES, PER_CLASS),
        class_vectors=rows.reshape(N_CLASSES, PER_CLASS, D),
    )


METHODS = [
    vote.CaptionVote(k=3),
    vote.NameVote(k=3),
    priming.Priming(alpha=0.3),
    cache.Cache(alpha=100.0),
    head.WiseHead(learning_rate=0.1, alpha=1.0),
    fusion.MeanFusion(k=3, share=0.8),
]
NAMED = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


def top1(method, retrieved, labels) -> float:
    may_abstain = isinstance(method, vote.NameVote)
    return float((answers(method.score(retrieved), labels, N_CLASSES, may_abstain=may_abstain).rank == 0).mean())


def zero_shot(retrieved, labels) -> float:
    return float(((retrieved.images @ retrieved.classifier.T).argmax(axis=1) == labels).mean())


@NAMED
def test_a_memory_that_knows_beats_names_that_do_not(method, retrieved, labels):
    assert zero_shot(retrieved, labels) < 0.4
    assert top1(method, retrieved, labels) > 0.9


@NAMED
def test_a_memory_with_wrong_names_falls_to_chance(method, retrieved, labels):
    permutation = derangement(N_CLASSES)
    wrong = replace(
        retrieved,
        caption_class=permutation[retrieved.caption_class],
        caption_vectors=retrieved.caption_vectors.reshape(N_CLASSES, PER_CLASS, D)[permutation].reshape(-1, D),
        class_vectors=retrieved.class_vectors[np.argsort(permutation)],
    )
    assert top1(method, wrong, labels) < 0.1


@NAMED
def test_a_memory_that_finds_nothing_leaves_the_names_or_no_answer(method, retrieved, labels):
    nothing = replace(
        retrieved,
        ids=np.full_like(retrieved.ids, NO_ROW),
        similarity=np.full_like(retrieved.similarity, -np.inf),
        index=np.zeros_like(retrieved.index),
        class_ids=np.full_like(retrieved.class_ids, NO_ROW),
        class_vectors=np.zeros_like(retrieved.class_vectors),
    )
    found = top1(method, nothing, labels)
    if isinstance(method, vote.NameVote):
        assert found == 0
    elif isinstance(method, vote.CaptionVote):
        assert found == 0, "not the first class by luck"
        assert (answers(method.score(nothing), labels, N_CLASSES).top == -1).all()
    else:
        assert found == zero_shot(retrieved, labels)


def test_votes_by_hand(retrieved):
    two = replace(
        retrieved,
        ids=np.array([[7, 8, NO_ROW]]),
        similarity=np.array([[0.9, 0.8, -np.inf]], np.float32),
        index=np.array([[0, PER_CLASS, 0]]),
        images=retrieved.images[:1],
    )
    scores = vote.NameVote(k=3, sharpness=10.0).score(two)(slice(0, 1))
    assert scores[0] == pytest.approx([np.exp(-1), np.exp(-2), *[-np.inf] * 4])
    silent = replace(two, caption_class=np.full_like(two.caption_class, NO_CLASS))
    assert vote.NameVote(k=3).score(silent)(slice(0, 1)).tolist() == [[-np.inf] * 6]
    by_caption = vote.CaptionVote(k=3, sharpness=10.0).score(two)(slice(0, 1))
    assert by_caption.sum() == pytest.approx(np.exp(-1) + np.exp(-2), rel=1e-5)
    assert by_caption[0, :2] == pytest.approx([np.exp(-1), np.exp(-2)], rel=1e-2)


def test_priming_and_cache_by_hand():
    one = RetrievedContext(
        images=np.array([[1, 0]], np.float32),
        classifier=np.array([[0, 1], [0.6, 0.8]], np.float32),
        ids=np.array([[NO_ROW]]),
        similarity=np.array([[-np.inf]], np.float32),
        index=np.array([[0]]),
        captions=("",),
        caption_vectors=np.zeros((1, 2), np.float32),
        caption_class=np.array([NO_CLASS]),
        class_ids=np.array([[3, 4], [NO_ROW, NO_ROW]]),
        class_vectors=np.array([[[1, 0], [0, 1]], [[0, 0], [0, 0]]], np.float32),
    )
    # Class 0: text (0, 1) and centroid (1, 1)/√2, mixed half and half; class 1 keeps its text.
    mixture = np.array([0.5 / np.sqrt(2), 0.5 + 0.5 / np.sqrt(2)])
    primed = priming.Priming(alpha=0.5).score(one)(slice(0, 1))[0]
    assert primed == pytest.approx([100 * mixture[0] / np.linalg.norm(mixture), 60], rel=1e-5)
    cached = cache.Cache(alpha=2.0, beta=3.0).score(one)(slice(0, 1))[0]
    assert cached == pytest.approx([0 + 2 * (1 + np.exp(-3)), 60], rel=1e-5)


def test_a_wise_head_between_names_and_training(retrieved, labels):
    names_only = head.WiseHead(learning_rate=0.1, alpha=0.0)
    assert top1(names_only, retrieved, labels) == zero_shot(retrieved, labels)
    between = top1(head.WiseHead(learning_rate=0.1, alpha=0.5), retrieved, labels)
    assert between > zero_shot(retrieved, labels)


def test_the_first_of_every_grid_is_its_default():
    for grid in (vote.CAPTION_GRID, vote.NAME_GRID, priming.GRID, cache.GRID, head.GRID, fusion.GRID):
        assert grid[0] == type(grid[0])()
        assert len(set(grid)) == len(grid) > 1


def test_a_derangement_moves_every_class():
    for n in (2, 3, 50):
        moved = derangement(n)
        assert sorted(moved) == list(range(n))
        assert (moved != np.arange(n)).all()


class Texts:
    """A text tower that knows six names."""

    def __init__(self, retrieved) -> None:
        self.classifier = retrieved.classifier

    def encode_texts(self, texts):
        return self.classifier[[int(text[-1]) for text in texts]]


def test_consistent_names_change_nothing_but_what_the_model_knows(retrieved, labels):
    names, permutation = ClassNames([f"thing{i}" for i in range(N_CLASSES)]), derangement(N_CLASSES)
    both, memory_only = scramble(retrieved, names, Texts(retrieved), permutation)
    assert both.captions[0] == f"this is thing{permutation[0]}"
    for method in METHODS:
        assert top1(method, both, labels) > 0.9
    for method in METHODS:
        assert top1(method, memory_only, labels) < 0.1
    assert (retrieved.classifier == memory_only.classifier).all()
