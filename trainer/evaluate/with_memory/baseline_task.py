"""``memory-builder evaluate baselines``: what a memory is worth without training, beside controls that keep it honest.

Every method is measured three times: as it is; with names permuted consistently in memory and classes, where the
model's knowledge of names is worth nothing; and with names permuted in the memory alone, where retrieval must not help.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from memory_builder.base.progress import say
from memory_builder.base.types import NO_ROW, Ids
from memory_builder.errors import SourceError
from memory_builder.memory import Memory
from trainer.evaluate.config import Setting
from trainer.evaluate.context import Opened, open_setting, require
from trainer.evaluate.numbers.arrays import Labels
from trainer.evaluate.numbers.metrics import NO_ANSWER, Answers, Score, answers, classification_figures, linear
from trainer.evaluate.numbers.paired import compared
from trainer.evaluate.results import (
    Result,
    describe_dataset,
    describe_memory,
    describe_model,
    predictions_table,
    write_result,
)
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.tasks.shots import choose
from trainer.evaluate.with_memory.baselines import cache, fusion, head, priming, vote
from trainer.evaluate.with_memory.baselines.pixels import nearest_pixels
from trainer.evaluate.with_memory.label_counts import Census, take_census
from trainer.evaluate.with_memory.names import Names
from trainer.evaluate.with_memory.retrieved_context import (
    Evidence,
    check_memory,
    count_in_memory,
    derangement,
    gather,
    scramble,
)

SHOWN = 8
"""Rows kept for each picture as the reason of its answer."""


class Baseline(Protocol):
    """Settings of a method."""

    def score(self, evidence: Evidence) -> Score:
        """The method on this evidence."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to use a memory."""

    name: str
    grid: Sequence[Baseline]
    """Settings to choose from, the default first."""
    by_picture: bool
    """Its reasons are a picture's neighbours; else the rows that the answered class found."""
    may_abstain: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """All that methods are measured on."""

    opened: Opened
    memory: Memory
    evidence: Evidence
    consistent: Evidence
    """Names permuted in memory and classes."""
    broken: Evidence
    """Names permuted in the memory alone."""
    n_in_memory: int
    """Pictures that have a row which looks the same to the model."""
    census: Census
    zero_shot: Answers

    @property
    def labels(self) -> Labels:
        return self.opened.test.labels

    @property
    def asked(self) -> dict[str, Any]:
        """What every method but zero-shot rests on."""
        return {"memory": self.memory.store.root}


METHODS = (
    Method(name="knn", grid=vote.CAPTION_GRID, by_picture=True),
    Method(name="knn-name", grid=vote.NAME_GRID, by_picture=True, may_abstain=True),
    Method(name="priming", grid=priming.GRID, by_picture=False),
    Method(name="cache", grid=cache.GRID, by_picture=False),
    Method(name="wise-head", grid=head.GRID, by_picture=False),
    Method(name="mean-fusion", grid=fusion.GRID, by_picture=True),
)


def evaluate_baselines(setting: Setting, memory_root: str, *, pixels: bool = True) -> list[Result]:
    """Zero-shot, every baseline, and the controls, each compared with zero-shot.

    Args:
        setting: see there.
        memory_root: the memory, built with the same model.
        pixels: also the pixel nearest neighbour, which decodes all pictures of the memory that name a class.

    Raises:
        RequestError: see ``open_setting`` and ``check_memory``.
    """
    opened = open_setting(setting)
    require(opened, "classification")
    memory = Memory.open(memory_root)
    check_memory(memory, opened.towers)
    scene = _scene(opened, memory)
    dev = None if opened.dev is None else gather(memory, opened.dev, opened.classifier(opened.dev))
    results = [_zero_shot(scene)]
    for method in METHODS:
        score = (
            None if dev is None or opened.dev is None else partial(_top1, dev, opened.dev.labels, method.may_abstain)
        )
        params, how = choose(method.grid, score)
        results.append(_measure(scene, method, params, how))
        say(f"{method.name}: {results[-1].figures.metrics['top1']:.4f}")
    results.append(_name_centroid(scene))
    if pixels:
        results += _pixels(scene)
    return results


def _scene(opened: Opened, memory: Memory) -> Scene:
    test, classifier = opened.test, opened.classifier(opened.test)
    names, n_classes = Names(test.dataset.classes), len(test.dataset.classes)
    evidence, permutation = gather(memory, test, classifier), derangement(n_classes)
    consistent, broken = scramble(evidence, names, opened.towers, permutation)
    return Scene(
        opened=opened,
        memory=memory,
        evidence=evidence,
        consistent=consistent,
        broken=broken,
        n_in_memory=count_in_memory(evidence.similarity[:, 0]),
        census=take_census(memory, names, n_classes),
        zero_shot=answers(linear(test.images, classifier), test.labels, n_classes),
    )


def _top1(evidence: Evidence, labels: Labels, may_abstain: bool, params: Baseline) -> float:
    """What settings are chosen by."""
    found = answers(params.score(evidence), labels, len(evidence.classifier), may_abstain=may_abstain)
    return float((found.rank == 0).mean())


def _zero_shot(scene: Scene) -> Result:
    test = scene.opened.test
    found = answers(linear(test.images, scene.consistent.classifier), scene.labels, len(test.dataset.classes))
    return _write(scene, "zero-shot", scene.zero_shot, {}, {}, {"names_scrambled": _figures(test, found)})


def _measure(scene: Scene, method: Method, params: Any, how: dict[str, object]) -> Result:
    test = scene.opened.test
    ask = partial(answers, labels=scene.labels, n_classes=len(test.dataset.classes), may_abstain=method.may_abstain)
    found, consistent, broken = (
        ask(params.score(evidence)) for evidence in (scene.evidence, scene.consistent, scene.broken)
    )
    controls = {"names_scrambled": _figures(test, consistent), "memory_scrambled": _figures(test, broken)}
    reasons = scene.evidence.ids[:, :SHOWN] if method.by_picture else _reasons(scene.evidence, found)
    asked = scene.asked | {"dev": scene.opened.dev_name}
    return _write(scene, method.name, found, asked, {**asdict(params), **how}, controls, reasons)


def _reasons(evidence: Evidence, found: Answers) -> Ids:
    """i64[n, ≤ 8] the rows of the answered class that are most like the picture."""
    kept = np.zeros((len(found.labels), min(SHOWN, evidence.class_ids.shape[1])), np.int64)
    for i, answer in enumerate(found.top[:, 0]):
        if answer == NO_ANSWER:
            kept[i] = NO_ROW
            continue
        order = np.argsort(-(evidence.class_vectors[answer] @ evidence.images[i]), kind="stable")
        kept[i] = evidence.class_ids[answer, order][: kept.shape[1]]
    return kept


def _name_centroid(scene: Scene) -> Result:
    """A class is the mean image of the rows that name it; one that none names is never answered."""
    test, census = scene.opened.test, scene.census
    unnamed = np.where(census.counts > 0, 0, -np.inf).astype(np.float32)
    by_centroid = linear(test.images, census.centroids)
    n_classes = len(test.dataset.classes)
    found = answers(lambda part: by_centroid(part) + unnamed, scene.labels, n_classes, may_abstain=True)
    return _write(scene, "name-centroid", found, scene.asked, {}, {})


def _pixels(scene: Scene) -> list[Result]:
    test = scene.opened.test
    try:
        nearest = nearest_pixels(scene.memory, test.dataset, scene.census, len(test.dataset.classes))
    except SourceError as error:
        say(f"pixel is left out: the pictures of {scene.memory.store.root} cannot be read ({error})")
        return []
    read = {"read": nearest.n_read, "named": len(scene.census.ids)}
    if read["read"] < read["named"]:
        say(f"pixel: {read['read']:,} of {read['named']:,} pictures of {scene.memory.store.root} read")
        if not read["read"]:
            say("pixel is left out: none of them can be read")
            return []
    found = answers(nearest.score(), scene.labels, len(test.dataset.classes), may_abstain=True)
    return [_write(scene, "pixel", found, scene.asked, {}, {"pictures": read})]


def _write(
    scene: Scene,
    name: str,
    found: Answers,
    asked: dict[str, Any],
    config: dict[str, Any],
    controls: dict[str, Any],
    reasons: Ids | None = None,
) -> Result:
    opened, dataset = scene.opened, scene.opened.test.dataset
    counts = scene.census.counts
    result = Result(
        task="baselines",
        method=name,
        figures=classification_figures([found], dataset.tiers, len(dataset.classes)),
        model=describe_model(opened.towers),
        dataset=describe_dataset(dataset),
        config=config,
        memory=describe_memory(scene.memory)
        | {
            "rows_by_class": counts.tolist(),
            "classes_without_rows": int((counts == 0).sum()),
            "pictures_in_memory": scene.n_in_memory,
        },
        extra=controls | {"against_zero_shot": compared(found, scene.zero_shot, dataset.tiers)},
        asked=asked,
    )
    columns = {} if reasons is None else {"reasons": pa.array(list(reasons), pa.list_(pa.int64()))}
    write_result(opened.run, result, predictions_table(opened.test.keys, [found], **columns))
    return result


def _figures(embedded: Embedded, found: Answers) -> dict[str, Any]:
    dataset = embedded.dataset
    return asdict(classification_figures([found], dataset.tiers, len(dataset.classes)))
