"""``memory-builder evaluate baselines``: training-free methods that use a memory, with controls.

Every method is evaluated three times: unchanged; with class names permuted in memory and classes alike, where the
model's knowledge of names does not help; and with names permuted in the memory alone, where retrieval must not help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from memory_builder.base.log import logger
from memory_builder.base.types import NO_ROW, Ids
from memory_builder.errors import SourceError
from memory_builder.memory import Memory
from trainer.evaluate.config import EvalConfig
from trainer.evaluate.context import EvalContext, open_context, require
from trainer.evaluate.numbers.arrays import Labels
from trainer.evaluate.numbers.metrics import NO_ANSWER, Answers, Score, answers, classification_figures, linear
from trainer.evaluate.numbers.paired import compare_top1
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
from trainer.evaluate.with_memory.label_counts import LabelCounts, count_labels
from trainer.evaluate.with_memory.names import ClassNames
from trainer.evaluate.with_memory.retrieved_context import (
    RetrievedContext,
    check_memory,
    count_in_memory,
    derangement,
    retrieve_context,
    scramble,
)

NOTHING: Mapping[str, Any] = {}
REASONS = 8
"""Rows stored for each picture as the reason of its prediction."""


class Baseline(Protocol):
    """Hyperparameters of a method."""

    def score(self, retrieved: RetrievedContext) -> Score:
        """Scores of the classes, by retrieved rows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A baseline with its hyperparameters."""

    name: str
    grid: Sequence[Baseline]
    """Hyperparameters to choose from, the default first."""
    by_picture: bool
    """Reasons of a prediction are the picture's neighbours; else the rows retrieved for the predicted class."""
    may_abstain: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineContext:
    """A set with the rows retrieved for it, its controls, and the zero-shot predictions."""

    context: EvalContext
    memory: Memory
    retrieved: RetrievedContext
    consistent: RetrievedContext
    """Control: names permuted in memory and classes."""
    broken: RetrievedContext
    """Control: names permuted in the memory alone."""
    n_in_memory: int
    """Pictures of the set that the memory holds, by cosine."""
    label_counts: LabelCounts
    zero_shot: Answers

    @property
    def labels(self) -> Labels:
        return self.context.test.labels

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that every method but zero-shot depends on."""
        return {"memory": self.memory.store.root}


METHODS = (
    Method(name="knn", grid=vote.CAPTION_GRID, by_picture=True),
    Method(name="knn-name", grid=vote.NAME_GRID, by_picture=True, may_abstain=True),
    Method(name="priming", grid=priming.GRID, by_picture=False),
    Method(name="cache", grid=cache.GRID, by_picture=False),
    Method(name="wise-head", grid=head.GRID, by_picture=False),
    Method(name="mean-fusion", grid=fusion.GRID, by_picture=True),
)


def evaluate_baselines(config: EvalConfig, memory_root: str, *, pixels: bool = True) -> list[Result]:
    """Evaluate zero-shot, every baseline and the controls, each compared with zero-shot.

    Args:
        config: see ``EvalConfig``.
        memory_root: the memory, built with the same model.
        pixels: also the pixel nearest neighbour, which decodes all pictures of the memory whose captions name a class.

    Raises:
        RequestError: see ``open_context`` and ``check_memory``.
    """
    context = open_context(config)
    require(context, "classification")
    memory = Memory.open(memory_root)
    check_memory(memory, context.towers)
    setup = _baseline_context(context, memory)
    dev = None if context.dev is None else retrieve_context(memory, context.dev, context.classifier(context.dev))
    results = [_zero_shot(setup)]
    for method in METHODS:
        score = (
            None if dev is None or context.dev is None else partial(_top1, dev, context.dev.labels, method.may_abstain)
        )
        params, how = choose(method.grid, score)
        results.append(_measure(setup, method, params, how))
        logger.info(f"{method.name}: {results[-1].figures.metrics['top1']:.4f}")
    results.append(_name_centroid(setup))
    if pixels:
        results += _pixels(setup)
    return results


def _baseline_context(context: EvalContext, memory: Memory) -> BaselineContext:
    test, classifier = context.test, context.classifier(context.test)
    names, n_classes = ClassNames(test.dataset.classes), len(test.dataset.classes)
    retrieved, permutation = retrieve_context(memory, test, classifier), derangement(n_classes)
    consistent, broken = scramble(retrieved, names, context.towers, permutation)
    return BaselineContext(
        context=context,
        memory=memory,
        retrieved=retrieved,
        consistent=consistent,
        broken=broken,
        n_in_memory=count_in_memory(retrieved.similarity[:, 0]),
        label_counts=count_labels(memory, names, n_classes),
        zero_shot=answers(linear(test.images, classifier), test.labels, n_classes),
    )


def _top1(retrieved: RetrievedContext, labels: Labels, may_abstain: bool, params: Baseline) -> float:
    """Top-1 of a method, to choose hyperparameters by."""
    predicted = answers(params.score(retrieved), labels, len(retrieved.classifier), may_abstain=may_abstain)
    return float((predicted.rank == 0).mean())


def _zero_shot(setup: BaselineContext) -> Result:
    test = setup.context.test
    predicted = answers(linear(test.images, setup.consistent.classifier), setup.labels, len(test.dataset.classes))
    return _write(setup, "zero-shot", setup.zero_shot, controls={"names_scrambled": _figures(test, predicted)})


def _measure(setup: BaselineContext, method: Method, params: Any, how: dict[str, object]) -> Result:
    test = setup.context.test
    predict = partial(answers, labels=setup.labels, n_classes=len(test.dataset.classes), may_abstain=method.may_abstain)
    predicted, consistent, broken = (
        predict(params.score(retrieved)) for retrieved in (setup.retrieved, setup.consistent, setup.broken)
    )
    controls = {"names_scrambled": _figures(test, consistent), "memory_scrambled": _figures(test, broken)}
    reasons = setup.retrieved.ids[:, :REASONS] if method.by_picture else _reasons(setup.retrieved, predicted)
    arguments = setup.arguments | {"dev": setup.context.dev_name}
    config = {**asdict(params), **how}
    return _write(setup, method.name, predicted, arguments=arguments, config=config, controls=controls, reasons=reasons)


def _reasons(retrieved: RetrievedContext, predicted: Answers) -> Ids:
    """i64[n, ≤ 8] rows of the predicted class that are most similar to the picture."""
    reasons = np.zeros((len(predicted.labels), min(REASONS, retrieved.class_ids.shape[1])), np.int64)
    for i, answer in enumerate(predicted.top[:, 0]):
        if answer == NO_ANSWER:
            reasons[i] = NO_ROW
            continue
        order = np.argsort(-(retrieved.class_vectors[answer] @ retrieved.images[i]), kind="stable")
        reasons[i] = retrieved.class_ids[answer, order][: reasons.shape[1]]
    return reasons


def _name_centroid(setup: BaselineContext) -> Result:
    """Control: a class is the mean image of the rows that name it; a class without rows is never predicted."""
    test, label_counts = setup.context.test, setup.label_counts
    unnamed = np.where(label_counts.counts > 0, 0, -np.inf).astype(np.float32)
    by_centroid = linear(test.images, label_counts.centroids)
    n_classes = len(test.dataset.classes)
    predicted = answers(lambda part: by_centroid(part) + unnamed, setup.labels, n_classes, may_abstain=True)
    return _write(setup, "name-centroid", predicted, arguments=setup.arguments)


def _pixels(setup: BaselineContext) -> list[Result]:
    test = setup.context.test
    try:
        nearest = nearest_pixels(setup.memory, test.dataset, setup.label_counts, len(test.dataset.classes))
    except SourceError as error:
        logger.info(f"skipping pixel: the pictures of {setup.memory.store.root} cannot be read ({error})")
        return []
    read = {"read": nearest.n_read, "named": len(setup.label_counts.ids)}
    if read["read"] < read["named"]:
        logger.info(f"pixel: {read['read']:,} of {read['named']:,} pictures of {setup.memory.store.root} read")
        if not read["read"]:
            logger.info("skipping pixel: none of them can be read")
            return []
    predicted = answers(nearest.best.__getitem__, setup.labels, len(test.dataset.classes), may_abstain=True)
    return [_write(setup, "pixel", predicted, arguments=setup.arguments, controls={"pictures": read})]


def _write(
    setup: BaselineContext,
    name: str,
    predicted: Answers,
    *,
    arguments: Mapping[str, Any] = NOTHING,
    config: Mapping[str, Any] = NOTHING,
    controls: Mapping[str, Any] = NOTHING,
    reasons: Ids | None = None,
) -> Result:
    context, dataset = setup.context, setup.context.test.dataset
    counts = setup.label_counts.counts
    result = Result(
        task="baselines",
        method=name,
        figures=classification_figures([predicted], dataset.tiers, len(dataset.classes)),
        model=describe_model(context.towers),
        dataset=describe_dataset(dataset),
        config=dict(config),
        memory=describe_memory(setup.memory)
        | {
            "rows_by_class": counts.tolist(),
            "classes_without_rows": int((counts == 0).sum()),
            "pictures_in_memory": setup.n_in_memory,
        },
        extra={**controls, "against_zero_shot": compare_top1(predicted, setup.zero_shot, dataset.tiers)},
        asked=dict(arguments),
    )
    columns = {} if reasons is None else {"reasons": pa.array(list(reasons), pa.list_(pa.int64()))}
    write_result(context.run, result, predictions_table(context.test.keys, [predicted], **columns))
    return result


def _figures(embedded: Embedded, predicted: Answers) -> dict[str, Any]:
    dataset = embedded.dataset
    return asdict(classification_figures([predicted], dataset.tiers, len(dataset.classes)))
