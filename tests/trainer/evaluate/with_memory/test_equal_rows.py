"""Rows that are equal have equal scores, so that of equal captions, pictures and classes none is better by chance."""

import numpy as np
import pyarrow as pa
import pytest

from trainer.evaluate.numbers.arrays import ScoredRows
from trainer.evaluate.numbers.metrics import answers, linear
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.tasks.retrieval import retrieval


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [7, 80, 1001])
@pytest.mark.parametrize("d", [3, 192, 200])
def test_equal_rows_have_equal_scores_wherever_they_stand(n: int, d: int) -> None:
    rows, queries = unit(n, d), unit(50, d, seed=1)
    rows[-1], rows[n // 2] = rows[0], rows[1]
    scores = ScoredRows(rows).scores(queries)
    assert np.array_equal(scores[:, -1], scores[:, 0])
    assert np.array_equal(scores[:, n // 2], scores[:, 1])
    np.testing.assert_allclose(scores, queries @ rows.T, atol=1e-6)


def test_a_picture_whose_caption_stands_twice_is_right_at_rank_one() -> None:
    """Issue: with a matrix product alone the other picture's equal caption had a greater score by one bit."""
    texts = unit(80, 192)
    texts[53] = texts[4]
    images = texts[::2] + 0.3 * unit(40, 192, seed=2)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    captions = [[f"{i}", f"{i} again"] for i in range(40)]
    examples = pa.table({"captions": captions})
    measured = retrieval(Embedded(dataset=None, images=images, texts=texts, examples=examples))
    assert measured.image_to_text[2] == 0


def test_of_two_classes_of_one_name_the_first_is_always_the_answer() -> None:
    classifier = unit(101, 192)
    classifier[100] = classifier[3]
    images = np.repeat(classifier[3:4], 64, axis=0) + 0.1 * unit(64, 192, seed=3)
    labels = np.full(64, 100)
    asked = answers(linear(images, classifier), labels, 101)
    assert set(asked.top[:, 0].tolist()) == {3}
    assert set(asked.rank.tolist()) == {1}
