"""A run in this process: killed, resumed, refused, without room."""

import json
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny_runs import bytes_of, killed_at, write_subset
from memory_builder.errors import (
    ConfigMismatchError,
    CorruptMemoryError,
    EncoderError,
    LossError,
    SourceError,
    StorageFullError,
    UsageError,
)
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.locks import hold_lock
from memory_builder.storage.store import Store, sha256
from trainer.loop.checkpoint import pack, read_checkpoints
from trainer.loop.config import LoopConfig, OptimizerConfig, TrainRunnerConfig
from trainer.loop.distributed import World
from trainer.loop.launch import run_job
from trainer.loop.losses import info_nce
from trainer.loop.run_config import read_run
from trainer.loop.train_state import TrainState, make_optimizer, take_step
from trainer.react.augment import AugmentConfig, augmented
from trainer.react.config import GatedConfig
from trainer.react.learner import ReactLearner
from trainer.react.subset import open_subset, prepare_pairs, read_picture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_job(job(run, ema=0.9), TrainRunnerConfig())
    return run


def test_a_run_leaves_what_learns_and_nothing_frozen(whole):
    assert sorted(read_checkpoints(Store(whole))) == ["00000004", "00000006"]
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
    progress = TrainState({"w": torch.nn.Parameter(torch.zeros(2))}, LoopConfig())
    for step in range(1, 14):
        progress.step = step
        progress.save(run, 13, 0.0, keep)
        newest = range(max(1, step + 1 - keep), step + 1)
        assert list(read_checkpoints(run)) == run.list("checkpoints", "directory") == [f"{some:08d}" for some in newest]


def test_the_optimizers_state_comes_back_laid_out_as_its_parameters(tmp_path):
    parameters = {"conv": torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))}
    progress = TrainState(parameters, LoopConfig())
    parameters["conv"].grad = torch.randn_like(parameters["conv"])
    take_step(progress.optimizer, parameters, OptimizerConfig(), 0.1)
    progress.save(Store(tmp_path), 1, 0.0, 1)
    before = progress.optimizer.state[parameters["conv"]]
    after = TrainState.resume(Store(tmp_path), parameters, LoopConfig()).optimizer.state[parameters["conv"]]
    assert before.keys() == after.keys()
    for what, tensor in after.items():
        assert torch.equal(tensor, before[what])
        assert tensor.stride() == before[what].stride(), what


def test_parameters_are_moved_in_two_groups_not_one_by_one():
    parameters = {str(i): torch.nn.Parameter(torch.zeros([2] * (i % 3))) for i in range(9)}
    groups = make_optimizer(parameters, OptimizerConfig()).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 3), (0.0, 6)]


def test_a_finished_run_is_left_alone(whole, job, capsys):
    before = bytes_of(whole)
    assert not run_job(job(whole, ema=0.9), TrainRunnerConfig())
    assert "is finished: 6 steps" in capsys.readouterr().err
    assert bytes_of(whole) == before


def test_killed_between_checkpoints_it_goes_on_to_the_same_bytes(whole, job, tmp_path):
    again = job(tmp_path / "run", ema=0.9)
    killed_at(again, 4, tmp_path)
    assert sorted(read_checkpoints(Store(again.out))) == ["00000002"]
    run_job(again, TrainRunnerConfig())
    assert bytes_of(tmp_path / "run") == bytes_of(whole)


def test_a_run_that_moves_to_another_kind_of_device_says_so(whole, job, tmp_path, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "00000006")
    state = run / "checkpoints" / "00000004" / "state.json"
    state.write_text(state.read_text().replace('"bf16": false', '"bf16": true'))  # as a GPU with bf16 leaves it
    run_job(job(run, ema=0.9), TrainRunnerConfig())
    assert "run: bf16 was True so far and is False from here on, on a cpu device" in capsys.readouterr().err
    assert [state.bf16 for state in read_checkpoints(Store(run)).values()] == [True, False]


def test_random_augmentation_is_the_same_for_any_number_of_readers(job, subset, tmp_path):
    pairs = prepare_pairs(open_subset(str(subset)), Store(tmp_path / "cache"))
    places = pairs.locations(np.arange(4))
    config = AugmentConfig(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0)
    forward = [augmented(read_picture(place), config, 1, place.pair) for place in places]
    backward = [augmented(read_picture(place), config, 1, place.pair) for place in reversed(places)][::-1]
    assert np.array_equal(np.stack(forward), np.stack(backward))
    assert not np.array_equal(forward[0], augmented(read_picture(places[0]), config, 2, places[0].pair))
    run_job(job(tmp_path / "run", augmentation="react", max_steps=2), TrainRunnerConfig())
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert np.isfinite(first["loss"])


@pytest.mark.parametrize(
    "precision",
    [
        "bf16",
        pytest.param(
            "auto",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")],
        ),
    ],
)
def test_in_bf16_as_on_a_gpu_a_run_learns_what_it_learns_in_fp32(precision, job, tmp_path):
    found = {}
    for asked in (precision, "fp32"):
        run_job(job(tmp_path / asked, precision=asked), TrainRunnerConfig())
        lines = [json.loads(line) for line in (tmp_path / asked / "metrics.jsonl").read_text().splitlines()]
        found[asked] = [line["loss"] for line in lines]
    assert found[precision] != found["fp32"]
    assert found[precision] == pytest.approx(found["fp32"], rel=0.02)


def test_what_is_computed_once_is_kept_for_each_precision(job, tiny_encoder, tmp_path):
    encoder, cache = tiny_encoder(), tmp_path / "cache"

    def kept(precision):
        run_job(
            replace(job(tmp_path / precision, precision=precision, max_steps=1), cache=str(cache)), TrainRunnerConfig()
        )
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
    message = r"was trained with other settings: loop\.seed \(0 then, 1 now\)\. Use the same settings or another --out"
    with pytest.raises(ConfigMismatchError, match=message):
        run_job(job(whole, ema=0.9, seed=1), TrainRunnerConfig())
    other = write_subset(tmp_path / "other", icons[:20])
    with pytest.raises(ConfigMismatchError, match=r"was trained with other settings: subset_digest"):
        run_job(job(whole, ema=0.9, subset=str(other)), TrainRunnerConfig())


def contents(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.safetensors")}


CHECKPOINT_DAMAGE = {
    "optimizer cut": ("checkpoints/00000006/optimizer.safetensors", lambda data: data[:100]),
    "parameters flipped": (
        "checkpoints/00000006/trainable.safetensors",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ),
    "parameters missing": ("checkpoints/00000006/trainable.safetensors", None),
    "record empty": ("checkpoints/00000006/state.json", lambda _: b""),
    "record of other types": ("checkpoints/00000006/state.json", lambda _: b'{"step": "6", "n_steps": [], "loss": {}}'),
    "record names a path": (
        "checkpoints/00000006/state.json",
        lambda data: data.replace(b"optimizer.safetensors", b"../../../../etc/passwd"),
    ),
    "record of another step": (
        "checkpoints/00000006/state.json",
        lambda data: data.replace(b'"step": 6', b'"step": 9'),
    ),
    "settings": ("config.json", lambda data: data[:50]),
    "settings missing": ("config.json", None),
    "settings of other types": ("config.json", lambda _: b'{"kind": 7, "encoder": "../x", "fingerprint": null}'),
    "log": ("metrics.jsonl", lambda data: b'\xff\xfe {"step": \n[]\n{"step": "x"}\n' + data),
    "cached pairs": ("cache/pairs/*/pairs.parquet", lambda data: data[:40]),
    "cached pairs' record": ("cache/pairs/*/record.json", lambda _: b"[]"),
}


@pytest.mark.parametrize("kind", CHECKPOINT_DAMAGE)
def test_a_damaged_run_goes_on_from_what_is_whole_to_the_same_bytes(job, whole, tmp_path, kind, capsys):
    asked = replace(job(tmp_path / "run", ema=0.9), cache=None)
    if kind.startswith("cached"):
        run_job(asked, TrainRunnerConfig())
    else:
        shutil.copytree(whole, tmp_path / "run")
    pattern, spoil = CHECKPOINT_DAMAGE[kind]
    (path,) = (tmp_path / "run").glob(pattern)
    if spoil is None:
        path.unlink()
    else:
        path.write_bytes(spoil(path.read_bytes()))
    if not pattern.startswith("checkpoints/"):  # else it is finished, and nothing else is read
        last = max((tmp_path / "run" / "checkpoints").iterdir())
        (last / "state.json").unlink()
    capsys.readouterr()
    run_job(asked, TrainRunnerConfig())
    assert contents(tmp_path / "run") == contents(whole)
    assert read_run(Store(tmp_path / "run"), "react")
    if pattern.startswith(("checkpoints/", "config")):
        assert f"warning: {tmp_path}/run/{pattern}" in capsys.readouterr().err


def test_a_checkpoint_that_was_made_to_fit_its_record_cannot_bring_other_tensors(job, tmp_path):
    run_job(job(tmp_path / "run", max_steps=2), TrainRunnerConfig())
    folder = tmp_path / "run" / "checkpoints" / "00000002"
    state = json.loads((folder / "state.json").read_text())
    for name in ("trainable", "optimizer"):
        sound = (folder / f"{name}.safetensors").read_bytes()
        tensors = load_file(folder / f"{name}.safetensors")
        first = next(iter(tensors))
        for spoilt in (
            {**tensors, "../../x": torch.zeros(1)},
            {one: some for one, some in tensors.items() if one != first},
            {**tensors, first: torch.zeros(3, 3, 3)},
        ):
            data = pack(spoilt)
            (folder / f"{name}.safetensors").write_bytes(data)
            checksums = state["checksums"] | {f"{name}.safetensors": sha256(data)}
            (folder / "state.json").write_text(json.dumps(state | {"n_steps": 4, "checksums": checksums}))
            with pytest.raises(ConfigMismatchError, match="holds other parameters than are trained here"):
                run_job(job(tmp_path / "run", max_steps=2), TrainRunnerConfig())
        (folder / f"{name}.safetensors").write_bytes(sound)


def test_a_folder_beside_the_checkpoints_that_is_none_stays(job, tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis.txt").write_text("mine")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "00notes").mkdir(parents=True)
    (checkpoints / "00notes" / "a.txt").write_text("mine too")
    (checkpoints / "00000001").symlink_to(tmp_path / "victim")
    with suppress(CorruptMemoryError, OSError):
        run_job(job(tmp_path / "run"), TrainRunnerConfig())
    assert (tmp_path / "victim" / "thesis.txt").read_text() == "mine"
    assert (checkpoints / "00notes" / "a.txt").read_text() == "mine too"


def test_two_trainings_into_one_folder_take_turns_and_the_second_says_for_whom_it_waits(job, whole, tmp_path, capsys):
    run = tmp_path / "run"
    with ThreadPoolExecutor(1) as threads:
        with hold_lock(Store(run), "train.lock"):
            second = threads.submit(run_job, job(run, ema=0.9), TrainRunnerConfig())
            wait_until(lambda: f"waiting for {run}/train.lock, held by process" in capsys.readouterr().err)
            assert not (run / "checkpoints").exists()
        assert second.result() is True
    assert contents(run) == contents(whole)
    assert not (run / "train.lock").exists()


def wait_until(is_so, limit_s=20):
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < limit_s
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("what", "spoilt"),
    [
        ("loss", lambda loss: loss * float("nan")),
        ("gradient norm", lambda loss: loss + (loss - loss.detach()).sqrt()),  # whose slope at 0 has no end
    ],
)
def test_what_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(job, tmp_path, monkeypatch, what, spoilt):
    def loss(self, gathered):
        plain = ReactLearner.plain(self, gathered)
        return spoilt(plain) if self.n == 5 else plain

    monkeypatch.setattr(ReactLearner, "loss", loss)
    monkeypatch.setattr(ReactLearner, "plain", _count, raising=False)
    monkeypatch.setattr(ReactLearner, "n", 0, raising=False)
    with pytest.raises(LossError, match=rf"the {what} of step 5 is (nan|inf), at .*lower --learning-rate"):
        run_job(job(tmp_path / "run"), TrainRunnerConfig())
    states = read_checkpoints(Store(tmp_path / "run"))
    assert sorted(states) == ["00000002", "00000004"]
    assert torch.isfinite(load_file(tmp_path / "run/checkpoints/00000004/trainable.safetensors")["logit_scale"])


def _count(self, gathered):
    type(self).n += 1
    return info_nce(gathered, 0, 1, self.model.logit_scale.exp())


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"batch_size": 1}, UsageError, r"--batch-size 1: at least 2, as the other pairs of a batch are the negatives"),
        ({"batch_size": 41}, UsageError, r"--batch-size 41: more than the 40 training pairs; name a smaller one"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(job, tmp_path, asked, error, message):
    with pytest.raises(error, match=message):
        run_job(job(tmp_path / "run", **asked), TrainRunnerConfig())


def test_a_batch_that_workers_cannot_share_is_refused_before_anything_is_computed(job, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.react.job.world", lambda: World(0, 3))
    with pytest.raises(UsageError, match="--batch-size 8 cannot be shared equally by 3 workers"):
        replace(job(tmp_path / "run"), cache=str(tmp_path / "cache")).work(lambda _: None)
    assert not (tmp_path / "cache").exists()


def test_a_subset_without_tars_or_pairs_is_refused(job, icons, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty holds no \.tar: name a folder that memory-builder retrieve wrote"):
        run_job(job(tmp_path / "run", subset=str(tmp_path / "empty")), TrainRunnerConfig())
    write_subset(tmp_path / "bare", [{"txt": b"no picture"}])
    with pytest.raises(SourceError, match=r"too few usable pairs to train on \(0\)"):
        run_job(job(tmp_path / "run", subset=str(tmp_path / "bare")), TrainRunnerConfig())
    write_subset(tmp_path / "one", icons[:1])
    with pytest.raises(SourceError, match=r"too few usable pairs to train on \(1\)"):
        run_job(job(tmp_path / "run", subset=str(tmp_path / "one")), TrainRunnerConfig())


def test_pairs_without_caption_or_picture_are_counted_and_left_out(job, icons, tmp_path, capsys):
    spoilt = [{"png": icons[0]["png"]}, {"png": icons[1]["png"][:-40], "txt": b"cut"}, *icons[2:30]]
    write_subset(tmp_path / "spoilt", spoilt)
    run_job(job(tmp_path / "run", subset=str(tmp_path / "spoilt"), max_steps=1), TrainRunnerConfig())
    assert "28 pairs; left out: 1 image is damaged, 1 no caption" in capsys.readouterr().err


def test_pairs_whose_names_are_no_utf8_are_found(icons, tmp_path):
    subset = open_subset(str(write_subset(tmp_path / "named", icons[:4], stem="caf\udce9 ")))
    pairs = prepare_pairs(subset, Store(tmp_path / "cache"))
    assert [read_picture(place) for place in pairs.locations(np.arange(4))] == [icons[i]["png"] for i in (0, 2, 1, 3)]


def test_a_subset_of_another_encoder_is_refused_unless_it_is_meant(job, icons, tmp_path):
    folder = write_subset(tmp_path / "theirs", icons[:16])
    (folder / "retrieve.json").write_text(json.dumps({"model": "ViT-X", "fingerprint": "f" * 64}))
    with pytest.raises(SourceError, match=r"is not finished: run the same memory-builder retrieve again"):
        run_job(job(tmp_path / "run", subset=str(folder)), TrainRunnerConfig())
    (folder / "subset.json").write_text("{}")
    with pytest.raises(EncoderError, match=r"was retrieved with ViT-X \(ffffffffffff\), and .* --any-encoder"):
        run_job(job(tmp_path / "run", subset=str(folder)), TrainRunnerConfig())
    assert run_job(job(tmp_path / "run", subset=str(folder), any_encoder=True, max_steps=1), TrainRunnerConfig())


def test_without_room_for_a_checkpoint_the_one_before_is_whole(job, tmp_path):
    asked = job(tmp_path / "run", keep=9)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def report(figures):
        if figures["step"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))

    try:
        with pytest.raises(StorageFullError, match=r"no space to write .*trainable\.safetensors"):
            asked.work(report)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert sorted(read_checkpoints(Store(asked.out))) == ["00000002"]
    run_job(asked, TrainRunnerConfig())
    assert sorted(read_checkpoints(Store(asked.out))) == ["00000002", "00000004", "00000006"]


def test_another_run_may_be_the_start(whole, job, tmp_path, model_dir):
    run_job(job(tmp_path / "run", start_from=str(whole), max_steps=1, learning_rate=1e-12), TrainRunnerConfig())
    began = load_file(tmp_path / "run/checkpoints/00000001/trainable.safetensors")
    for name, tensor in load_file(whole / "checkpoints/00000006/trainable.safetensors").items():
        assert torch.allclose(began[name], tensor, atol=1e-8), name
    other = EncoderConfig(model=f"local-dir:{model_dir}")
    with pytest.raises(EncoderError, match=r"was trained on .*and this is another model"):
        run_job(job(tmp_path / "other", start_from=str(whole), encoder=other, any_encoder=True), TrainRunnerConfig())


def test_a_start_that_holds_nothing_of_what_learns_is_refused(whole, job, tmp_path):
    with pytest.raises(UsageError, match=r"does not hold visual\.\S+ and other initial parameters"):
        run_job(job(tmp_path / "run", start_from=str(whole), react={"mode": "locked-text"}), TrainRunnerConfig())


def test_gates_alone_learn_over_the_blocks_of_another_run_through_any_kill(whole, job, tmp_path):
    with pytest.raises(UsageError, match="--gates-only needs --start-from"):
        job(tmp_path / "none", react={"gates_only": True})
    alone = job(tmp_path / "alone", react={"gates_only": True}, start_from=str(whole), ema=0.9)
    run_job(alone, TrainRunnerConfig())
    last = "checkpoints/00000006/trainable.safetensors"
    began, tensors = load_file(whole / last), load_file(tmp_path / "alone" / last)
    moved = {name for name, tensor in tensors.items() if not torch.equal(tensor, began[name])}
    assert moved == {name for name in began if "alpha" in name or name == "logit_scale"}
    shutil.copytree(whole, tmp_path / "start")
    again = replace(alone, out=str(tmp_path / "again"), start_from=str(tmp_path / "start"))
    killed_at(again, 4, tmp_path)
    shutil.rmtree(tmp_path / "start")  # what was begun with it needs it no more
    run_job(again, TrainRunnerConfig())
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "alone")
    more = job(tmp_path / "more", react={"gates_only": True, "gated": GatedConfig(last_k=3)}, start_from=str(whole))
    with pytest.raises(UsageError, match=r"does not hold visual\.transformer\.resblocks\.0\.gated_attn_block\.\S+ and"):
        run_job(more, TrainRunnerConfig())


def test_flags_of_ray_need_ray():
    with pytest.raises(UsageError, match="--workers needs --runner ray"):
        TrainRunnerConfig(workers=2)
