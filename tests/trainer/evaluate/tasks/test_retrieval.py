import numpy as np
import pyarrow as pa
import pytest

from trainer.evaluate.sets.datasets import Dataset
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.tasks.retrieval import retrieval


def embedded(tmp_path, images, texts, captions):
    dataset = Dataset(root=tmp_path, split="test", kind="retrieval", layout="tars", files=())
    examples = pa.table({"key": [str(i) for i in range(len(captions))], "captions": captions})
    return Embedded(
        dataset=dataset, images=np.array(images, np.float32), texts=np.array(texts, np.float32), examples=examples
    )


def test_recall_by_hand(tmp_path):
    # Picture 0 has two captions, one near it; picture 1's caption is nearest picture 0.
    some = embedded(tmp_path, [[1, 0], [0, 1]], [[0.8, 0.6], [0.6, 0.8], [0.96, 0.28]], [["cat", "a cat"], ["Cat "]])
    found = retrieval(some)
    assert found.text_to_image.tolist() == [0, 1, 1]
    # Picture 0 prefers caption 2 of picture 1, then its own; picture 1 prefers captions 1 and 0 of picture 0.
    assert found.image_to_text.tolist() == [1, 2]
    assert found.figures.metrics["text_to_image_recall@1"] == pytest.approx(1 / 3)
    assert found.figures.metrics["image_to_text_recall@1"] == 0
    assert found.figures.metrics["image_to_text_recall@5"] == 1
    assert found.figures.ci95["text_to_image_recall@1"] == (0.0, 0.5)


def test_with_caption_positives_an_equal_caption_is_right(tmp_path):
    some = embedded(tmp_path, [[1, 0], [0, 1]], [[0.8, 0.6], [0.6, 0.8], [0.96, 0.28]], [["cat", "a cat"], ["Cat "]])
    found = retrieval(some, "caption")
    # "Cat " belongs to both pictures now; "a cat" to picture 0 and, through it, to nothing else.
    assert found.text_to_image.tolist() == [0, 1, 0]
    assert found.image_to_text.tolist() == [0, 1]


def test_of_equal_scores_the_first_key_comes_first(tmp_path):
    some = embedded(tmp_path, [[1, 0]] * 3, [[1, 0]] * 3, [["a"], ["b"], ["c"]])
    found = retrieval(some)
    assert found.text_to_image.tolist() == found.image_to_text.tolist() == [0, 1, 2]
