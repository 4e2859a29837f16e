"""What is refused, or told, before a model is trained on a subset."""

import json

import numpy as np
import pytest

from helpers.tiny_runs import write_subset
from memory_builder.errors import UsageError
from memory_builder.model.encoder import Encoder
from memory_builder.storage.store import Store
from trainer.loop.config import TrainRunnerConfig
from trainer.loop.launch import run_job
from trainer.react.learner import ReactLearner
from trainer.react.precompute import Precompute
from trainer.react.subset import open_subset, prepare_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_classes_are_refused_where_no_pair_has_one_before_anything_is_computed(job, icons, tmp_path, monkeypatch):
    bare = [{"png": some["png"], "txt": some["txt"]} for some in icons[:10]]
    folder = write_subset(tmp_path / "bare", bare)
    monkeypatch.setattr(Precompute, "_images", lambda _: pytest.fail("was computed"))
    with pytest.raises(UsageError, match=r"--positives class: none of the 10 pairs of .*bare has a class; name a"):
        run_job(job(tmp_path / "run", subset=str(folder), positives="class"), TrainRunnerConfig())


def test_pairs_without_a_class_are_counted_where_others_have_one(job, icons, tmp_path, capsys):
    some = [*icons[:7], *(icon | {"json": json.dumps({"class": None}).encode()} for icon in icons[7:10])]
    folder = write_subset(tmp_path / "some", some)
    run_job(job(tmp_path / "run", subset=str(folder), positives="class", max_steps=1), TrainRunnerConfig())
    assert (
        "--positives class: 3 of 10 pairs have no class; their only positive is their own caption"
        in capsys.readouterr().err
    )
    run_job(job(tmp_path / "captions", subset=str(folder), positives="caption", max_steps=1), TrainRunnerConfig())
    assert "--positives" not in capsys.readouterr().err


def test_what_float16_cannot_hold_is_refused_and_what_is_no_number_before_is_not(job, tmp_path, monkeypatch):
    frozen, times = ReactLearner.frozen_outputs, []
    monkeypatch.setattr(ReactLearner, "frozen_outputs", lambda self, pixels: frozen(self, pixels) * times[-1])
    for factor, dtype, error in ((1e6, "float16", True), (1e6, "float32", False), (float("inf"), "float16", False)):
        times.append(factor)
        asked = job(tmp_path / f"{factor}-{dtype}", cache_dtype=dtype, max_steps=1)
        precompute = prepare(asked, tmp_path / f"cache-{factor}-{dtype}")
        if error:
            with pytest.raises(
                UsageError, match=r"reaches \d.*, more than float16 holds \(65,504\): train with --cache-dtype"
            ):
                precompute._frozen_outputs(np.arange(2))
        else:
            assert precompute._frozen_outputs(np.arange(2)).dtype == dtype


def prepare(job, cache):
    """As ``ReactJob.work`` does."""
    encoder = Encoder(job.encoder)
    return Precompute(
        encoder=encoder,
        learner=job.learner(encoder),
        pairs=prepare_pairs(open_subset(job.subset), Store(cache)),
        cache=Store(cache),
        data=job.data,
        loop=job.loop,
    )
