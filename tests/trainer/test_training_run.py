"""A run in this process: killed, resumed, refused, without room."""

import json
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import bytes_of, killed_at, write_subset

from memory_builder.encoder import EncoderConfig
from memory_builder.errors import (
    ConfigMismatchError,
    CorruptMemoryError,
    EncoderError,
    SourceError,
    StorageFullError,
    UsageError,
)
from memory_builder.storage import Store, sha256
from trainer.augment import Look, augmented
from trainer.checkpoint import Progressed, read_states
from trainer.loop import LossError
from trainer.losses import info_nce
from trainer.react import ReactLearner
from trainer.run import run_job
from trainer.settings import LoopConfig, Where
from trainer.subset import open_subset, prepare_pairs, read_picture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_job(job(run, ema=0.9), Where())
    return run


def test_a_run_leaves_what_learns_and_nothing_frozen(whole):
    assert sorted(read_states(Store(whole))) == ["00000004", "00000006"]
    tensors = load_file(whole / "checkpoints" / "00000006" / "trainable.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"visual", "logit_scale"}
    assert all("gated_attn_block" in name for name in tensors if name != "logit_scale")
    average = load_file(whole / "checkpoints" / "00000006" / "ema.safetensors")
    assert average.keys() == tensors.keys()
    assert any(not torch.equal(average[name], tensors[name]) for name in tensors)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "lr", "gradient_norm", "epoch", "gates", "logit_scale", "pairs_per_s", "memory_bytes"} <= set(
        lines[0]
    )
    assert list((whole / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("keep", range(1, 7))
def test_the_newest_checkpoints_stay_as_many_as_were_asked_for(keep, tmp_path):
    run = Store(tmp_path)
    progress = Progressed({"w": torch.nn.Parameter(torch.zeros(2))}, LoopConfig())
    for step in range(1, 14):
        progress.step = step
        progress.save(run, 13, 0.0, keep)
        newest = range(max(1, step + 1 - keep), step + 1)
        assert list(read_states(run)) == run.list("checkpoints", "directory") == [f"{some:08d}" for some in newest]


def test_a_finished_run_is_left_alone(whole, job, capsys):
    before = bytes_of(whole)
    assert not run_job(job(whole, ema=0.9), Where())
    assert "is finished: 6 steps" in capsys.readouterr().err
    assert bytes_of(whole) == before


def test_killed_between_checkpoints_it_goes_on_to_the_same_bytes(whole, job, tmp_path):
    again = job(tmp_path / "run", ema=0.9)
    killed_at(again, 4, tmp_path)
    assert sorted(read_states(Store(again.out))) == ["00000002"]
    run_job(again, Where())
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


def test_random_augmentation_is_the_same_for_any_number_of_readers(job, subset, tmp_path):
    pairs = prepare_pairs(open_subset(str(subset)), Store(tmp_path / "cache"))
    places = pairs.places(np.arange(4))
    look = Look(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0)
    forward = [augmented(read_picture(place), look, 1, place.pair) for place in places]
    backward = [augmented(read_picture(place), look, 1, place.pair) for place in reversed(places)][::-1]
    assert np.array_equal(np.stack(forward), np.stack(backward))
    assert not np.array_equal(forward[0], augmented(read_picture(places[0]), look, 2, places[0].pair))
    run_job(job(tmp_path / "run", augmentation="react", max_steps=2), Where())
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert np.isfinite(first["loss"])


def test_what_is_computed_once_is_kept_for_each_precision(job, tiny_encoder, tmp_path):
    encoder, cache = tiny_encoder(), tmp_path / "cache"

    def kept(precision):
        run_job(replace(job(tmp_path / precision, precision=precision, max_steps=1), cache=str(cache)), Where())
        return {what: {path.name for path in (cache / what).iterdir()} for what in ("images", "texts")}

    single = kept("fp32")
    decisive = {"fingerprint": encoder.fingerprint, "subset": open_subset(job(tmp_path).subset).digest}
    images = {"bf16": False, "dtype": "float16", "first": 1} | decisive
    named = {"images": images, "texts": decisive}  # what is kept already must be found again
    for what, told in named.items():
        assert single[what] == {sha256(json.dumps(told, sort_keys=True).encode())[:16]}
    half, double = kept("bf16"), kept("fp64")
    assert half["texts"] == single["texts"]
    assert [len(half["images"]), len(double["images"]), len(double["texts"])] == [2, 3, 2]
    assert double["images"] > half["images"] > single["images"]


def test_other_settings_in_the_same_folder_are_refused_by_name(whole, job, icons, tmp_path):
    message = r"was trained otherwise: loop\.seed \(0 there, 1 asked\)\. Use the same settings or another --out"
    with pytest.raises(ConfigMismatchError, match=message):
        run_job(job(whole, ema=0.9, seed=1), Where())
    other = write_subset(tmp_path / "other", icons[:20])
    with pytest.raises(ConfigMismatchError, match=r"was trained otherwise: subset_digest"):
        run_job(job(whole, ema=0.9, subset=str(other)), Where())


def test_a_damaged_checkpoint_is_named(job, tmp_path):
    asked = job(tmp_path / "run", max_steps=2)
    run_job(asked, Where())
    longer = tmp_path / "run" / "checkpoints" / "00000002" / "state.json"
    told = json.loads(longer.read_text())
    longer.write_text(json.dumps(told | {"n_steps": 4}))
    (tmp_path / "run" / "checkpoints" / "00000002" / "optimizer.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CorruptMemoryError, match=r"optimizer\.safetensors is not what its state\.json says: remove"):
        run_job(asked, Where())


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(job, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ReactLearner,
        "loss",
        lambda self, gathered: ReactLearner.plain(self, gathered) * (float("nan") if self.n == 5 else 1),
    )
    monkeypatch.setattr(ReactLearner, "plain", _count, raising=False)
    monkeypatch.setattr(ReactLearner, "n", 0, raising=False)
    with pytest.raises(LossError, match=r"the loss of step 5 is nan, at learning rate .*lower --learning-rate"):
        run_job(job(tmp_path / "run"), Where())
    states = read_states(Store(tmp_path / "run"))
    assert sorted(states) == ["00000002", "00000004"]
    assert torch.isfinite(load_file(tmp_path / "run/checkpoints/00000004/trainable.safetensors")["logit_scale"])


def _count(self, gathered):
    type(self).n += 1
    return info_nce(gathered, 0, 1, self.model.logit_scale.exp())


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"batch_size": 1}, UsageError, r"--batch-size 1: at least 2, because a pair is told from the others"),
        ({"batch_size": 41}, UsageError, r"--batch-size 41: there are 40 pairs; name as many at most"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(job, tmp_path, asked, error, message):
    with pytest.raises(error, match=message):
        run_job(job(tmp_path / "run", **asked), Where())


def test_a_subset_without_tars_or_pairs_is_refused(job, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty holds no \.tar: name a folder that memory-builder retrieve wrote"):
        run_job(job(tmp_path / "run", subset=str(tmp_path / "empty")), Where())
    write_subset(tmp_path / "bare", [{"txt": b"no picture"}])
    with pytest.raises(SourceError, match="there is not one usable pair to train on"):
        run_job(job(tmp_path / "run", subset=str(tmp_path / "bare")), Where())


def test_pairs_without_caption_or_picture_are_counted_and_left_out(job, icons, tmp_path, capsys):
    spoilt = [{"png": icons[0]["png"]}, {"png": icons[1]["png"][:-40], "txt": b"cut"}, *icons[2:30]]
    write_subset(tmp_path / "spoilt", spoilt)
    run_job(job(tmp_path / "run", subset=str(tmp_path / "spoilt"), max_steps=1), Where())
    assert "28 pairs; left out: 1 image is damaged, 1 no caption" in capsys.readouterr().err


def test_a_subset_of_another_encoder_is_refused_unless_it_is_meant(job, icons, tmp_path):
    folder = write_subset(tmp_path / "theirs", icons[:16])
    (folder / "retrieve.json").write_text(json.dumps({"model": "ViT-X", "fingerprint": "f" * 64}))
    with pytest.raises(SourceError, match=r"is not finished: run the same memory-builder retrieve again"):
        run_job(job(tmp_path / "run", subset=str(folder)), Where())
    (folder / "subset.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"was retrieved with ViT-X \(ffffffffffff\), and .* --any-encoder"):
        run_job(job(tmp_path / "run", subset=str(folder)), Where())
    assert run_job(job(tmp_path / "run", subset=str(folder), any_encoder=True, max_steps=1), Where())


def test_without_room_for_a_checkpoint_the_one_before_is_whole(job, tmp_path):
    asked = job(tmp_path / "run", keep=9)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def report(figures):
        if figures["step"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))

    try:
        with pytest.raises(StorageFullError, match=r"no room to write .*trainable\.safetensors"):
            asked.work(report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert sorted(read_states(Store(asked.out))) == ["00000002"]
    run_job(asked, Where())
    assert sorted(read_states(Store(asked.out))) == ["00000002", "00000004", "00000006"]


def test_another_run_may_be_the_start(whole, job, tmp_path, model_dir):
    run_job(job(tmp_path / "run", start_from=str(whole), max_steps=1, learning_rate=1e-12), Where())
    began = load_file(tmp_path / "run/checkpoints/00000001/trainable.safetensors")
    for name, tensor in load_file(whole / "checkpoints/00000006/trainable.safetensors").items():
        assert torch.allclose(began[name], tensor, atol=1e-8), name
    other = EncoderConfig(model=f"local-dir:{model_dir}")
    with pytest.raises(EncoderError, match=r"was trained in .*and this is another model"):
        run_job(job(tmp_path / "other", start_from=str(whole), encoder=other, any_encoder=True), Where())


def test_flags_of_ray_need_ray():
    with pytest.raises(UsageError, match="need --runner ray"):
        Where(workers=2)
