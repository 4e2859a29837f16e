"""RECO in this process: what it learns from, killed and resumed, alike on two workers, and the model it makes."""

import os
import sys
from contextlib import ExitStack, nullcontext
from subprocess import PIPE

import faiss
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from helpers.processes import python
from helpers.reco_gradients import K, gradients
from helpers.tiny_runs import bytes_of, killed_at
from memory_builder.base.runner import LocalRunner
from memory_builder.errors import ConfigMismatchError, EncoderError, UsageError
from memory_builder.memory import Memory
from memory_builder.storage.store import Store
from trainer.loop.checkpoint import read_checkpoints
from trainer.loop.config import LoopConfig, OptimizerConfig, TrainRunnerConfig
from trainer.loop.gradient_cache import compute_gradients
from trainer.loop.launch import run_job
from trainer.loop.losses import gather_all
from trainer.reco.config import FusionConfig, LookupConfig, NeighbourConfig
from trainer.reco.fusion import Reco
from trainer.reco.job import RecoJob, RecoPlan
from trainer.reco.learner import RecoLearner, TableSource
from trainer.reco.model import RecoModel, refined_heads
from trainer.reco.neighbour_table import NeighbourTable
from trainer.reco.training_pairs import find_neighbours

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def found(memory, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("neighbours"))
    return find_neighbours(memory, memory, folder, NeighbourConfig(looked_up=K), None, LocalRunner())


@pytest.fixture(scope="module")
def job(memory, found):
    """Six steps of eight pairs; every argument replaces a setting of the loop of that name."""

    def make(out, *, fusion=None, positives="own", ema=None, **loop):
        loop = {"batch_size": 8, "max_steps": 6, "checkpoint_every": 2, "log_every": 1} | loop
        plan = RecoPlan(
            memory=memory,
            train=memory,
            neighbours=NeighbourConfig(looked_up=K),
            fusion=FusionConfig(**{"k": K} | (fusion or {})),
            loop=LoopConfig(**loop, optimizer=OptimizerConfig(warmup=0.0, ema=ema)),
            positives=positives,
        )
        return RecoJob(plan=plan, out=str(out), neighbours=found)

    return make


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_job(job(run, ema=0.9), TrainRunnerConfig())
    return run


def test_every_pair_of_the_table_is_told_what_was_dropped(found):
    assert found.counts["pairs"] == 40
    assert found.counts["image self"] == found.counts["text self"] == 40


def test_the_loss_is_three_symmetric_contrastive_losses(found):
    torch.manual_seed(0)
    learner = RecoLearner(Reco(FusionConfig(k=K), 16).double())
    source = TableSource(table=NeighbourTable(Store(found.folder), found.ordinals), positives="own")
    vectors = torch.from_numpy(source.table.read(np.arange(8)))
    v, t, refined_v, refined_t = learner.embed({"vectors": vectors})
    assert torch.equal(v, normalize(vectors[:, 0].double(), dim=1))
    expected = torch.zeros((), dtype=torch.float64)
    for a, b in ((refined_v, refined_t), (refined_v, t), (v, refined_t)):
        logits = a @ b.T / 0.07
        expected += (cross_entropy(logits, torch.arange(8)) + cross_entropy(logits.T, torch.arange(8))) / 2
    torch.testing.assert_close(learner.loss(gather_all((v, t, refined_v, refined_t))), expected, rtol=1e-6, atol=0)


def test_fewer_neighbours_than_are_stored_are_the_first_of_each_side(found):
    table = NeighbourTable(Store(found.folder), found.ordinals)
    vectors = torch.from_numpy(table.read(np.arange(8)))
    torch.manual_seed(0)
    two = RecoLearner(Reco(FusionConfig(k=2), 16))
    kept = torch.cat([vectors[:, :4], vectors[:, 2 + K : 2 + K + 2]], 1)
    for one, other in zip(two.embed({"vectors": vectors}), two.embed({"vectors": kept}), strict=True):
        assert torch.equal(one, other)


def test_equal_captions_are_right_answers_where_asked(found):
    table = NeighbourTable(Store(found.folder), found.ordinals)
    source = TableSource(table=table, positives="caption")
    from trainer.loop.sampler import BatchIndices

    (batch,) = source.batches([BatchIndices(0, np.array([0, 1, 0]))])
    assert batch["group"][0] == batch["group"][2] != batch["group"][1]


def test_killed_between_checkpoints_it_goes_on_to_the_same_bytes(whole, job, tmp_path):
    again = job(tmp_path / "run", ema=0.9)
    killed_at(again, 4, tmp_path)
    assert sorted(read_checkpoints(Store(again.out))) == ["00000002"]
    faiss.omp_set_num_threads(2)  # as a look-up in this process may
    assert run_job(again, TrainRunnerConfig())
    assert bytes_of(tmp_path / "run") == bytes_of(whole)
    assert not run_job(again, TrainRunnerConfig())


def test_other_settings_in_the_same_folder_are_refused_by_name(whole, job):
    with pytest.raises(ConfigMismatchError, match=r"fusion\.norm \(post then, pre now\)"):
        run_job(job(whole, ema=0.9, fusion={"norm": "pre"}), TrainRunnerConfig())


def test_more_neighbours_than_were_looked_up_are_refused(job, tmp_path):
    with pytest.raises(UsageError, match="-k 4: more than --looked-up 3"):
        job(tmp_path, fusion={"k": 4})


WORKER = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
from helpers.reco_gradients import gradients
rank, folder = int(sys.argv[1]), sys.argv[2]
patience = timedelta(minutes=2)  # for the other one, which may have died
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
torch.save([gradients(batch, rank, 2) for batch in torch.load(f"{folder}/batches.pt")], f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_workers_have_the_loss_and_gradients_of_one(tmp_path):
    torch.manual_seed(3)
    own = {"vectors": normalize(torch.randn(8, 2 + 2 * K, 16, dtype=torch.float64), dim=-1)}
    own["vectors"][2, 4:5] = 0
    batches = [own, own | {"group": torch.tensor([0, 1, 2, 3, 0, 1, 2, 4])}]
    torch.save(batches, tmp_path / "batches.pt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as both:
        workers = [
            both.enter_context(python("-c", WORKER, rank, tmp_path, stderr=PIPE, env=environment)) for rank in range(2)
        ]
        told = [worker.communicate(timeout=300)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(told)
    expected = [gradients(batch, 0, 1) for batch in batches]
    assert expected[0]["loss"] != expected[1]["loss"]
    for rank in range(2):
        for one, other in zip(expected, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            for name, value in one.items():
                torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-13)


@pytest.fixture(scope="module")
def model(whole):
    return RecoModel.load(str(whole))


def test_without_a_memory_it_is_the_frozen_model_exactly(model, tiny_encoder, icons):
    encoder, texts = tiny_encoder(), [pair["txt"].decode() for pair in icons[:5]]
    assert np.array_equal(model.encode_text(texts), encoder.encode_texts(texts).astype(np.float32))
    one = model.encode_image(icons[0]["png"])
    assert one.shape == (1, 16)
    np.testing.assert_array_equal(model.encode_image([icons[0]["png"], icons[1]["png"]])[:1], one)


def test_with_a_memory_it_is_what_the_fusion_makes_of_the_rows_found(model, memory, icons):
    opened = Memory.open(memory)
    pictures = [pair["png"] for pair in icons[:4]]
    plain, refined = model.encode_image(pictures), model.encode_image(pictures, opened)
    np.testing.assert_allclose(np.linalg.norm(refined, axis=1), 1, atol=1e-5)
    assert not np.allclose(plain, refined, atol=1e-3)
    hits = opened.search(vectors=plain, side="image", k=K)
    neighbours = torch.from_numpy(opened.vectors(hits.ids, "text").reshape(4, K, 16)).half().float()
    expected = model.reco.image(torch.from_numpy(plain), neighbours, torch.zeros(4, K, dtype=torch.bool))
    np.testing.assert_allclose(refined, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(refined[:1], model.encode_image(pictures[0], opened), atol=1e-6)


def test_a_head_depends_on_memory_and_order(model, memory):
    opened, names = Memory.open(memory), ["cat", "dog"]
    head = model.classifier(names, ["{c}", "icon of {c}"], opened)
    other = model.classifier(names, ["{c}", "icon of {c}"], opened, order="refine-then-average")
    assert head.shape == (2, 16)
    assert not np.allclose(head, other, atol=1e-4)
    np.testing.assert_allclose(
        model.classifier(names, ["{c}"], opened),
        model.classifier(names, ["{c}"], opened, "refine-then-average"),
        atol=1e-3,
    )
    plain = model.classifier(names, ["{c}"])
    np.testing.assert_allclose(plain, model.encode_text(names), atol=1e-3)  # those are float16


def test_prompts_of_a_head_are_filled_as_those_of_retrieve(model):
    names = ["cat", "{dog}"]
    assert (model.classifier(names, ["a {}"]) == model.classifier(names, ["a {c}"])).all()
    np.testing.assert_allclose(model.classifier(names, ["a {}"]), model.encode_text(["a cat", "a {dog}"]), atol=1e-3)
    with pytest.raises(UsageError, match=r"prompt 'a photo' has no \{c\} for the class name: add it"):
        model.classifier(names, ["{c}", "a photo"])


def test_heads_by_definition():
    rows = normalize(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1).numpy()

    def turned(_, queries):
        return np.roll(queries, 1, axis=1)

    def kept(texts, _):
        return texts

    mean, swapped = normalize(torch.from_numpy(rows).mean(1), dim=-1).numpy(), np.array([1, 0])
    for order in ("average-then-refine", "refine-then-average"):
        np.testing.assert_allclose(refined_heads(rows, order, turned, swapped), turned(None, mean), atol=1e-6)
        np.testing.assert_allclose(refined_heads(rows, order, kept, swapped), mean[swapped], atol=1e-6)
    with pytest.raises(UsageError, match="order backwards"):
        refined_heads(rows, "backwards", turned)


def test_a_memory_of_another_model_is_refused(model, tmp_path, write_memory):
    write_memory(tmp_path / "other", np.eye(16, dtype=np.float32), None, fingerprint="1" * 64)
    with pytest.raises(EncoderError, match=r"build it with the same model"):
        model.refine(np.eye(16, dtype=np.float32), "image", Memory.open(tmp_path / "other"))


def test_another_checkpoint_or_the_average_can_be_chosen(whole, model):
    older = RecoModel.load(str(whole), step=4)
    average = RecoModel.load(str(whole), ema=True)
    weights = [dict(some.reco.named_parameters())["logit_scale"] for some in (model, older, average)]
    assert len({float(weight) for weight in weights}) == 3
    with pytest.raises(UsageError, match="no checkpoint of step 3; its checkpoints: 4, 6"):
        RecoModel.load(str(whole), step=3)


def pairs_whose_neighbours_know(n, seed):
    """f32[n, 2 + 2 k, 32]: image and text tell nothing of each other, what is found shows the other side, blurred."""
    vectors = torch.randn(n, 2 + 2 * K, 32, generator=torch.Generator().manual_seed(seed))
    for side in range(2):
        vectors[:, 2 + side * K : 2 + (side + 1) * K] += vectors[:, None, 1 - side]
    return normalize(vectors, dim=-1)


def test_it_learns_to_read_what_was_found_and_does_so_for_pairs_it_has_not_seen():
    torch.manual_seed(0)
    learner = RecoLearner(Reco(FusionConfig(k=K), 32))
    optimizer = torch.optim.AdamW(learner.parameters.values(), lr=3e-3)
    for step in range(150):
        compute_gradients(learner, {"vectors": pairs_whose_neighbours_know(256, step)}, None, nullcontext)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        v, t, refined_v, refined_t = learner.embed({"vectors": pairs_whose_neighbours_know(256, 1_000)})

    def right(a, b):
        return float(((a @ b.T).argmax(1) == torch.arange(256)).float().mean())

    assert right(v, t) < 0.05
    assert min(right(refined_v, t), right(v, refined_t), right(refined_v, refined_t)) > 0.5


def test_the_modalities_to_search_and_fuse_are_kept_with_the_run(memory, tmp_path):
    lookup = LookupConfig(image_search="text", image_fuse="image")
    config = NeighbourConfig(lookup=lookup, looked_up=K)
    found = find_neighbours(memory, memory, str(tmp_path / "n"), config, None, LocalRunner())
    loop = LoopConfig(batch_size=8, max_steps=1)
    plan = RecoPlan(memory=memory, train=memory, neighbours=config, fusion=FusionConfig(k=K), loop=loop)
    run_job(RecoJob(plan=plan, out=str(tmp_path / "run"), neighbours=found), TrainRunnerConfig())
    assert RecoModel.load(str(tmp_path / "run")).lookup == lookup
