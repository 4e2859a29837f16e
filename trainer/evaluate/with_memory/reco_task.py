"""``memory-builder evaluate reco``: a frozen model, and with its pictures, its texts, or both refined from a memory."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.base.types import NO_ROW, Ids
from memory_builder.catalog.trusted import trusted_encoder
from memory_builder.errors import UsageError
from memory_builder.memory import Memory
from memory_builder.model.encoder import EncoderConfig
from memory_builder.storage.store import Store
from trainer.evaluate.config import Setting
from trainer.evaluate.context import Opened, open_setting, require
from trainer.evaluate.numbers.metrics import NO_ANSWER, Answers, Figures, classification_figures
from trainer.evaluate.numbers.paired import compared
from trainer.evaluate.results import (
    Result,
    describe_dataset,
    describe_memory,
    describe_model,
    predictions_table,
    write_result,
)
from trainer.evaluate.sets.datasets import Dataset
from trainer.evaluate.tasks.retrieval import Positives, retrieval
from trainer.evaluate.with_memory.refined_set import AS_IT_IS, Refined
from trainer.evaluate.with_memory.retrieved_context import check_memory, count_in_memory
from trainer.loop.run_config import read_run
from trainer.reco.config import SIDES
from trainer.reco.model import Order, RecoModel

SHOWN = 8
"""Rows kept for each picture as the reason of its answer."""
PLAIN = ("zero-shot", "retrieval")
"""The frozen model alone, by classes and by captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """What refines, and from what."""

    run: str
    """Folder of a run of ``train reco``."""
    memory: str
    """The memory to look things up in; any that was built with the run's model."""
    k: int | None = None
    """Neighbours, if not as many as in training."""
    order: Order = "average-then-refine"
    """Of a class's prompts."""
    step: int | None = None
    ema: bool = False

    def model(self) -> RecoModel:
        return RecoModel.load(self.run, step=self.step, ema=self.ema, k=self.k)


def encoder_of(run: str) -> EncoderConfig:
    """The frozen model of a run."""
    return trusted_encoder(EncoderConfig(**read_run(Store(run), "reco")["encoder"]), run)


def evaluate_reco(setting: Setting, refinement: Refinement, positives: Positives = "own") -> list[Result]:
    """Measure a classification or retrieval set without and with refinement.

    Args:
        setting: see there; its encoder is the run's, or the same weights from elsewhere.
        refinement: what refines.
        positives: of a retrieval set; see ``retrieval``.

    Raises:
        RequestError: see ``open_setting``, ``check_memory`` and ``RecoModel.load``; or the set is of another kind, or
            the memory lacks an index that the fusion searches.
    """
    model, memory = refinement.model(), Memory.open(refinement.memory)
    _check_indexes(model, memory)
    opened = open_setting(setting)
    require(opened, "classification", "retrieval")
    _check_asked(opened.test.dataset, refinement, positives)
    check_memory(memory, opened.towers)
    model.check(memory)
    nearest = memory.search(vectors=opened.test.images, side="image", k=1).scores[:, 0]
    asked = _Asked(opened, model, memory, refinement, count_in_memory(nearest))
    return asked.classification() if opened.test.dataset.kind == "classification" else asked.retrieval(positives)


def _check_indexes(model: RecoModel, memory: Memory) -> None:
    """Refuse what would be found missing only once some results are written."""
    for side in SIDES if model.k else ():
        keys = model.lookup.search(side)
        if keys not in memory.snapshot.indexes:
            raise UsageError(
                f"{memory.store.root} has no {keys} index, in which {model.name} looks up {side} queries: run "
                "memory-builder index on it first"
            )


def _check_asked(dataset: Dataset, refinement: Refinement, positives: Positives) -> None:
    """Refuse what this kind of set has no use for."""
    if dataset.kind == "classification" and positives != "own":
        raise UsageError(f"--positives is for captioned pictures, --dataset {dataset.root} has classes: leave it out")
    if dataset.kind == "retrieval" and refinement.order != "average-then-refine":
        raise UsageError(f"--order is for prompts of classes, --dataset {dataset.root} has captions: leave it out")


@dataclass(frozen=True, slots=True)
class _Asked:
    opened: Opened
    model: RecoModel
    memory: Memory
    refinement: Refinement
    n_in_memory: int
    """Pictures asked about that have a row which looks the same to the model."""

    def classification(self) -> list[Result]:
        test = self.opened.test
        refined = Refined(self.model, self.memory, self.opened.towers, test, self.refinement.order)
        told = refined.answers()
        as_it_is = told.pop(AS_IT_IS)
        plain = as_it_is.pop("zero-shot")
        results = [self._write("zero-shot", plain, plain, {})]
        for method, found in as_it_is.items():
            figures = {control: self._figures(methods[method]) for control, methods in told.items()}
            if method == "reco-text":  # the picture was not refined, the answered class was
                answered = found.top[:, :1]
                behind = np.where(answered == NO_ANSWER, NO_ROW, refined.by_class(answered[:, 0]))
            else:
                behind = refined.by_image.ids
            results.append(self._write(method, found, plain, figures, behind[:, :SHOWN]))
        return results

    def retrieval(self, positives: Positives) -> list[Result]:
        test = self.opened.test
        images, texts = (
            self.model.refine(rows, side, self.memory)
            for side, rows in zip(SIDES, (test.images, test.texts), strict=True)
        )
        methods = {
            "retrieval": (test.images, test.texts),
            "reco-image": (images, test.texts),
            "reco-text": (test.images, texts),
            "reco-both": (images, texts),
        }
        results = []
        for method, (some_images, some_texts) in methods.items():
            figures = retrieval(replace(test, images=some_images, texts=some_texts), positives).figures
            results.append(self._result(method, figures, {"positives": positives}, {}))
            write_result(self.opened.run, results[-1])
        return results

    def _figures(self, found: Answers) -> Figures:
        dataset = self.opened.test.dataset
        return classification_figures([found], dataset.tiers, len(dataset.classes))

    def _write(
        self, method: str, found: Answers, plain: Answers, controls: dict[str, Figures], reasons: Ids | None = None
    ) -> Result:
        test = self.opened.test
        extra: dict[str, Any] = {name: asdict(figures) for name, figures in controls.items()}
        extra |= {"against_zero_shot": compared(found, plain, test.dataset.tiers)}
        result = self._result(method, self._figures(found), {"order": self.refinement.order}, extra)
        columns = {} if reasons is None else {"reasons": pa.array(list(reasons), pa.list_(pa.int64()))}
        write_result(self.opened.run, result, predictions_table(test.keys, [found], **columns))
        return result

    def _result(self, method: str, figures: Figures, config: dict[str, Any], extra: dict[str, Any]) -> Result:
        # Recorded as "average": results are found again, and told apart, by what older ones say they were asked for.
        refined = {"run": self.model.name, "average": self.refinement.ema, "k": self.model.k}
        asked = {name: config[name] for name in ("positives",) if name in config}
        if method not in PLAIN:
            asked = config | refined | {"memory": self.memory.store.root}
        return Result(
            task="reco",
            method=method,
            figures=figures,
            model=describe_model(self.opened.towers),
            dataset=describe_dataset(self.opened.test.dataset, len(self.opened.test.texts)),
            config=config | refined,
            memory=describe_memory(self.memory) | {"pictures_in_memory": self.n_in_memory},
            extra=extra,
            asked=asked,
        )
