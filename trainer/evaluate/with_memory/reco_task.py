"""``memory-builder evaluate reco``: a frozen model, and the same with its images, texts or both refined by RECO."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.base.types import MODALITIES, NO_ROW, Ids
from memory_builder.catalog.trusted_sources import trusted_encoder
from memory_builder.errors import UsageError
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store
from trainer.evaluate.config import EvalConfig
from trainer.evaluate.context import EvalContext, open_context, require
from trainer.evaluate.numbers.metrics import NO_ANSWER, Answers, Figures, classification_figures
from trainer.evaluate.numbers.paired import compare_top1
from trainer.evaluate.results import (
    Result,
    describe_dataset,
    describe_memory,
    describe_model,
    predictions_table,
    write_result,
)
from trainer.evaluate.sets.datasets import Dataset
from trainer.evaluate.tasks.retrieval import retrieval
from trainer.evaluate.with_memory.refined_set import UNCHANGED, RefinedSet
from trainer.evaluate.with_memory.retrieved_context import check_memory, count_in_memory
from trainer.loop.config import Positives
from trainer.loop.run_config import read_run
from trainer.reco.model import PromptOrder, RecoModel

REASONS = 8
"""Rows stored for each picture as the reason of its prediction."""
FROZEN = ("zero-shot", "retrieval")
"""Methods of the frozen model alone, on classification and on retrieval sets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """A RECO run, the memory that it searches, and how."""

    run: str
    """Folder of a run of ``train reco``."""
    memory: str
    """The memory to search, built with the run's frozen model."""
    k: int | None = None
    """Number of neighbours (default: as in training)."""
    order: PromptOrder = "average-then-refine"
    step: int | None = None
    ema: bool = False

    def model(self) -> RecoModel:
        return RecoModel.load(self.run, step=self.step, ema=self.ema, k=self.k)


def encoder_of(run: str) -> EncoderConfig:
    """The frozen model of a run of ``train reco``."""
    return trusted_encoder(EncoderConfig(**read_run(Store(run), "reco")["encoder"]), run)


def evaluate_reco(config: EvalConfig, refinement: Refinement, positives: Positives = "own") -> list[Result]:
    """Evaluate a classification or retrieval set without and with refinement.

    Args:
        config: see ``EvalConfig``; its encoder is the run's frozen model, or the same weights from elsewhere.
        refinement: the RECO run and the memory.
        positives: positives of a retrieval set; see ``retrieval``.

    Raises:
        RequestError: see ``open_context``, ``check_memory`` and ``RecoModel.load``; or the set is a multilabel set, or
            the memory lacks an index that RECO searches.
    """
    model, memory = refinement.model(), Memory.open(refinement.memory)
    _check_indexes(model, memory)
    context = open_context(config)
    require(context, "classification", "retrieval")
    _check_flags(context.test.dataset, refinement, positives)
    check_memory(memory, context.towers)
    model.check(memory)
    nearest = memory.search(vectors=context.test.images, side="image", k=1).scores[:, 0]
    task = _Task(context, model, memory, refinement, count_in_memory(nearest))
    return task.classification() if context.test.dataset.kind == "classification" else task.retrieval(positives)


def _check_indexes(model: RecoModel, memory: Memory) -> None:
    """Refuse a memory without the indexes that RECO searches, before any result is written."""
    for query_modality in MODALITIES if model.k else ():
        modality = model.lookup.search(query_modality)
        if modality not in memory.snapshot.indexes:
            raise UsageError(
                f"{memory.store.root} has no {modality} index, which {model.name} searches with {query_modality}s: "
                "run memory-builder index on it first"
            )


def _check_flags(dataset: Dataset, refinement: Refinement, positives: Positives) -> None:
    """Refuse flags without effect on this kind of set."""
    if dataset.kind == "classification" and positives != "own":
        raise UsageError(
            f"--positives is for retrieval sets, --dataset {dataset.root} is a classification set: leave it out"
        )
    if dataset.kind == "retrieval" and refinement.order != "average-then-refine":
        raise UsageError(
            f"--order is for classification sets, --dataset {dataset.root} is a retrieval set: leave it out"
        )


@dataclass(frozen=True, slots=True)
class _Task:
    context: EvalContext
    model: RecoModel
    memory: Memory
    refinement: Refinement
    n_in_memory: int
    """Pictures of the set that the memory holds, by cosine."""

    def classification(self) -> list[Result]:
        """Evaluate zero-shot classification, unrefined and refined, with controls."""
        test = self.context.test
        refined = RefinedSet(self.model, self.memory, self.context.towers, test, self.refinement.order)
        controls = refined.answers()
        unchanged = controls.pop(UNCHANGED)
        frozen = unchanged.pop("zero-shot")
        results = [self._write("zero-shot", frozen, frozen, {})]
        for method, predicted in unchanged.items():
            figures = {control: self._figures(methods[method]) for control, methods in controls.items()}
            if method == "reco-text":  # the predicted class was refined, not the picture
                top = predicted.top[:, :1]
                reasons = np.where(top == NO_ANSWER, NO_ROW, refined.by_class(top[:, 0]))
            else:
                reasons = refined.by_image.ids
            results.append(self._write(method, predicted, frozen, figures, reasons[:, :REASONS]))
        return results

    def retrieval(self, positives: Positives) -> list[Result]:
        """Evaluate image–text retrieval, unrefined and refined."""
        test = self.context.test
        images = self.model.refine(test.images, "image", self.memory)
        texts = self.model.refine(test.texts, "text", self.memory)
        methods = {
            "retrieval": test,
            "reco-image": replace(test, images=images),
            "reco-text": replace(test, texts=texts),
            "reco-both": replace(test, images=images, texts=texts),
        }
        results = []
        for method, embedded in methods.items():
            results.append(self._result(method, retrieval(embedded, positives).figures, {"positives": positives}, {}))
            write_result(self.context.run, results[-1])
        return results

    def _figures(self, predicted: Answers) -> Figures:
        dataset = self.context.test.dataset
        return classification_figures([predicted], dataset.tiers, len(dataset.classes))

    def _write(
        self, method: str, predicted: Answers, frozen: Answers, controls: dict[str, Figures], reasons: Ids | None = None
    ) -> Result:
        test = self.context.test
        extra: dict[str, Any] = {name: asdict(figures) for name, figures in controls.items()}
        extra |= {"against_zero_shot": compare_top1(predicted, frozen, test.dataset.tiers)}
        result = self._result(method, self._figures(predicted), {"order": self.refinement.order}, extra)
        columns = {} if reasons is None else {"reasons": pa.array(list(reasons), pa.list_(pa.int64()))}
        write_result(self.context.run, result, predictions_table(test.keys, [predicted], **columns))
        return result

    def _result(self, method: str, figures: Figures, config: dict[str, Any], extra: dict[str, Any]) -> Result:
        # ``ema`` is recorded as "average": older results are compared by their arguments, and have this name.
        refined = {"run": self.model.name, "average": self.refinement.ema, "k": self.model.k}
        arguments = {name: config[name] for name in ("positives",) if name in config}
        if method not in FROZEN:
            arguments = config | refined | {"memory": self.memory.store.root}
        return Result(
            task="reco",
            method=method,
            figures=figures,
            model=describe_model(self.context.towers),
            dataset=describe_dataset(self.context.test.dataset, len(self.context.test.texts)),
            config=config | refined,
            memory=describe_memory(self.memory) | {"pictures_in_memory": self.n_in_memory},
            extra=extra,
            asked=arguments,
        )
