"""What is not a number is never a right answer."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from memory_builder.cli import main
from memory_builder.errors import EncoderError, UsageError
from memory_builder.storage.store import Store
from trainer.evaluate.numbers.metrics import answers
from trainer.evaluate.sets.datasets import Dataset, open_dataset
from trainer.evaluate.sets.features import Embedded, embed_dataset
from trainer.evaluate.tasks.finetune import TuneParams, tune
from trainer.evaluate.tasks.linear_probe import FewShotSplit
from trainer.evaluate.tasks.retrieval import retrieval
from trainer.react.load import CheckpointRef


@pytest.mark.parametrize("may_abstain", [False, True])
def test_a_right_answer_without_a_score_comes_last(may_abstain):
    scores = np.array([[np.nan, 1, 2], [np.nan] * 3, [np.nan, 1, 2], [3, np.nan, 1]], np.float32)
    found = answers(lambda part: scores[part], np.array([0, 0, 2, 0]), 3, may_abstain=may_abstain)
    assert found.rank.tolist() == [2, 2, 0, 0]
    assert found.top.tolist() == [[2, 1, -1], [-1, -1, -1], [2, 1, -1], [0, 2, -1]]


def test_so_does_a_right_picture_or_caption(tmp_path):
    dataset = Dataset(root=tmp_path, split="test", kind="retrieval", layout="tars", files=())
    rows = np.array([[1, 0], [0, 1], [np.nan, 0]], np.float32)
    examples = pa.table({"key": ["0", "1", "2"], "captions": [["a"], ["b"], ["c"]]})
    found = retrieval(Embedded(dataset=dataset, images=rows, texts=rows, examples=examples))
    assert found.text_to_image.tolist() == found.image_to_text.tolist() == [0, 0, 2]


class Diverged:
    """A model that gives no numbers."""

    def encode_image(self, pixels):
        return torch.full((len(pixels), 192), torch.nan)

    encode_text = encode_image


def test_a_model_that_gives_no_numbers_is_refused_and_keeps_nothing(towers, shapes, captioned, tmp_path):
    diverged, run = replace(towers, model=Diverged(), name="RUN (step 7)"), Store(tmp_path)
    for root in (shapes, captioned):
        with pytest.raises(EncoderError, match=r"RUN \(step 7\) gives embeddings that are not finite for .* pictures"):
            embed_dataset(open_dataset(root), diverged, run)
    assert not list(tmp_path.rglob("record.json"))
    with pytest.raises(EncoderError, match="not finite for 2 of 2 prompts of class names"):
        diverged.classifier(("cat", "dog"), ("{c}",))
    with pytest.raises(EncoderError, match="not finite for 1 of 1 texts"):
        diverged.encode_texts(["cat"])


def test_embeddings_that_were_kept_so_are_made_anew(towers, shapes, tmp_path):
    dataset, run = open_dataset(shapes), Store(tmp_path)
    before = embed_dataset(dataset, towers, run)
    (path,) = tmp_path.rglob("images.npy")
    broken = before.images.copy()
    broken[3] = np.nan
    np.save(path, broken)
    assert (embed_dataset(dataset, towers, run).images == before.images).all()
    assert np.isfinite(np.load(path)).all()


def test_fine_tuning_that_diverges_is_refused(towers, shapes, tmp_path):
    test, train = (embed_dataset(open_dataset(shapes, split), towers, Store(tmp_path)) for split in ("test", "train"))
    split = FewShotSplit(train=train, test=test, classifier=np.full((12, towers.d), np.nan, np.float32))
    with pytest.raises(EncoderError, match=r"fine-tuned, gives embeddings that are not finite for 72 of 72 pictures"):
        tune(towers, split, "1", 0, TuneParams(epochs=1))


@pytest.mark.parametrize("wise_alpha", ["nan", "inf", "-0.5"])
def test_a_wise_alpha_out_of_range_is_refused(wise_alpha, shapes, tmp_path, capsys):
    with pytest.raises(UsageError, match="--wise-alpha"):
        CheckpointRef(run="run", wise_alpha=float(wise_alpha))
    assert main(["evaluate", "zero-shot", "--run", str(tmp_path), "--dataset", str(shapes), "--share", wise_alpha]) == 2
    assert f"--wise-alpha {wise_alpha}: 0 for the frozen model" in capsys.readouterr().err
    assert CheckpointRef(run="run", wise_alpha=1.2).wise_alpha == 1.2
