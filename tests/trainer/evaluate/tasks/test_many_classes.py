"""Millions of classes: what is held at a time is bounded, and what is answered does not depend on the bounds."""

import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from memory_builder.base.types import unit_rows
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.model.templates import fill
from memory_builder.storage.store import Store
from trainer.evaluate.numbers import metrics
from trainer.evaluate.sets.datasets import open_dataset
from trainer.evaluate.sets.features import embed_dataset
from trainer.evaluate.with_memory.refined_set import UNCHANGED, RefinedSet
from trainer.evaluate.with_memory.retrieved_context import derangement
from trainer.reco import model as refining
from trainer.reco.config import FusionConfig, LookupConfig
from trainer.reco.fusion import Reco
from trainer.reco.model import RecoModel

ORDERS = ("average-then-refine", "refine-then-average")
K = 4


@pytest.mark.parametrize("may_abstain", [False, True])
def test_answers_are_the_same_however_many_pictures_are_scored_at_a_time(may_abstain, monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, (50, 40)).astype(np.float32)  # with many ties
    scores[rng.random(scores.shape) < 0.1] = np.nan
    labels, seen, given = rng.integers(0, 40, 50), [], scores.copy()

    def score(part):
        seen.append(part.stop - part.start)
        return scores[part]

    whole = metrics.answers(score, labels, 40, may_abstain=may_abstain)
    for held, most in ((400, 10), (1, 1)):
        seen.clear()
        monkeypatch.setattr(metrics, "SCORES", held)
        parts = metrics.answers(score, labels, 40, may_abstain=may_abstain)
        assert max(seen) == most
        assert (parts.rank == whole.rank).all()
        assert (parts.top == whole.top).all()
    np.testing.assert_array_equal(scores, given)  # what a method keeps is not changed


def test_the_memory_that_answers_take_does_not_grow_with_the_classes(monkeypatch):
    monkeypatch.setattr(metrics, "SCORES", 1 << 21)
    images, labels, peaks = np.eye(64, 4, dtype=np.float32), np.arange(64), []
    for n_classes in (1 << 17, 1 << 20):
        score = metrics.linear(images, np.ones((n_classes, 4), np.float32))
        tracemalloc.start()
        metrics.answers(score, labels, n_classes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 24 * metrics.SCORES  # all at once, 64 pictures × 2²⁰ classes, would take ten times as much


class Counted:
    """A model that counts the passes of its text tower."""

    def __init__(self, model) -> None:
        self.model, self.passes = model, []

    def encode_text(self, tokens):
        self.passes.append(len(tokens))
        return self.model.encode_text(tokens)


@pytest.mark.parametrize(("t", "expected"), [(1, [128, 22]), (3, [126, 126, 126, 72]), (80, [80] * 150)])
def test_prompts_go_through_the_model_in_batches_of_whole_classes(t, expected, towers):
    names = [f"thing no {i}" for i in range(150 if t < 80 else 5)]
    templates = [f"{i} {{c}}" for i in range(t)]
    counted = Counted(towers.model)
    head = replace(towers, model=counted).classifier(names, templates)
    assert counted.passes == expected[: len(names)]
    alone = np.stack([towers.encode_texts([fill(template, name) for template in templates]) for name in names])
    np.testing.assert_allclose(head, unit_rows(alone.mean(axis=1)), atol=1e-6)


@pytest.fixture(scope="module")
def embedded(shapes, towers, tmp_path_factory):
    return embed_dataset(open_dataset(shapes), towers, Store(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def model(towers, model_dir):
    """Half of what is refined are its neighbours."""
    reco = Reco(FusionConfig(fusion="mean", k=K), towers.d).requires_grad_(False)
    config = EncoderConfig(model=f"local-dir:{model_dir}")
    return RecoModel(
        reco=reco, lookup=LookupConfig(), encoder_config=config, fingerprint=towers.fingerprint, name="run", k=K
    )


@pytest.fixture
def refined(model, memory, towers, embedded):
    return partial(RefinedSet, model, Memory.open(memory), towers, embedded)


def refined_texts(model, memory, order, texts, askers):
    """f32[c, t, d] prompts, and those that look up for them → f32[c, d], by definition, class by class."""
    heads = []
    for text, asker in zip(texts, askers, strict=True):
        if order == "average-then-refine":
            text, asker = (unit_rows(rows.mean(axis=0, keepdims=True)) for rows in (text, asker))
        found = torch.from_numpy(model.find(asker, "text", memory).vectors.astype(np.float32))
        some = model.reco.text(torch.from_numpy(text), found, torch.zeros(found.shape[:2], dtype=torch.bool))
        heads.append(unit_rows(some.numpy().mean(axis=0)))
    return np.stack(heads)


def ranks(images, heads, labels):
    scores = images @ heads.T
    return (scores > scores[np.arange(len(labels)), labels][:, None]).sum(axis=1)


@pytest.mark.parametrize("order", ORDERS)
def test_refined_class_names_are_those_of_the_definition_under_controls_too(
    order, refined, model, memory, towers, embedded
):
    names, templates = embedded.dataset.classes, embedded.dataset.templates
    prompts = np.stack([towers.encode_texts([fill(template, name) for template in templates]) for name in names])
    permutation = derangement(len(names))
    expected = {
        UNCHANGED: (prompts, prompts),
        "names_scrambled": (prompts[permutation], prompts),
        "memory_scrambled": (prompts, prompts[np.argsort(permutation)]),
    }
    told = refined(order).answers()
    assert list(told) == list(expected)
    found = {}
    for condition, (texts, askers) in expected.items():
        heads = refined_texts(model, Memory.open(memory), order, texts, askers)
        found[condition] = ranks(embedded.images, heads, embedded.labels)
        assert (told[condition]["reco-text"].rank == found[condition]).all()
    assert len({tuple(some) for some in found.values()}) == 3
    plain = unit_rows(prompts.mean(axis=1))
    assert (told[UNCHANGED]["zero-shot"].rank == ranks(embedded.images, plain, embedded.labels)).all()


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_answers_whatever_is_held_at_a_time(order, refined, embedded, monkeypatch):
    whole = refined(order)
    expected, rows = whole.answers(), whole.by_class(embedded.labels)
    monkeypatch.setattr(refining, "BATCH", 5)
    monkeypatch.setattr("trainer.evaluate.sets.towers.PROMPTS", 4)
    monkeypatch.setattr("trainer.evaluate.with_memory.refined_set.COLUMNS", 7)
    monkeypatch.setattr(metrics, "SCORES", 100)
    parts = refined(order)
    for condition, methods in parts.answers().items():
        assert methods.keys() == expected[condition].keys()
        for method, found in methods.items():
            assert (found.rank == expected[condition][method].rank).all()
            assert (found.top == expected[condition][method].top).all()
    assert (parts.by_class(embedded.labels) == rows).all()
    assert rows.shape == (len(embedded), K)


@pytest.mark.parametrize(("order", "most"), [*zip(ORDERS, (5, 3), strict=True)])  # a class has three prompts
def test_classes_are_encoded_once_and_their_neighbours_held_block_by_block(
    order, most, refined, model, towers, monkeypatch
):
    asked, find, counted = [], RecoModel.find, Counted(towers.model)

    def counting(self, vectors, side, memory):
        asked.append((side, len(vectors)))
        return find(self, vectors, side, memory)

    monkeypatch.setattr(refining, "BATCH", 5)
    monkeypatch.setattr(RecoModel, "find", counting)
    one = RefinedSet(model, refined.args[1], replace(towers, model=counted), refined.args[3], order)
    assert counted.passes == [36]
    one._heads()
    one._heads(derangement(12))
    assert counted.passes == [36]
    assert max(n for side, n in asked if side == "text") == most
