"""The tasks that learn from a set's own pictures: linear probe and fine-tuning, at several numbers of shots."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from trainer.evaluate.config import Setting
from trainer.evaluate.context import Opened, open_setting, require
from trainer.evaluate.numbers.metrics import Answers, classification_figures
from trainer.evaluate.results import Result, describe_dataset, describe_model, predictions_table, write_result
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.tasks import finetune, linear_probe
from trainer.evaluate.tasks.linear_probe import Lesson
from trainer.evaluate.tasks.shots import ShotOptions, choose, draw

Learn = Callable[[Lesson, str, int, Any], Answers]
"""(lesson, shots, seed, params) → answers."""


def evaluate_linear_probe(setting: Setting, options: ShotOptions) -> list[Result]:
    """A head on frozen features.

    Raises:
        RequestError: see ``open_setting``; or there are no pictures to learn from.
    """
    return _evaluate(open_setting(setting), options, "linear-probe", linear_probe.probe, linear_probe.GRID, {})


def evaluate_few_shot(setting: Setting, options: ShotOptions, last_layers: int | None) -> list[Result]:
    """The image tower learns too; arguments and errors as above, and see ``finetune.tune``."""
    opened = open_setting(setting)
    learn = partial(finetune.tune, opened.towers)
    asked = {"last_layers": last_layers}
    return _evaluate(opened, options, "few-shot", learn, finetune.grid(last_layers), asked)


def _evaluate(
    opened: Opened, options: ShotOptions, task: str, learn: Learn, grid: Sequence[Any], asked: dict[str, Any]
) -> list[Result]:
    require(opened, "classification")
    asked = asked | {"n_seeds": options.n_seeds, "train_split": opened.setting.train_split, "dev": opened.dev_name}
    lesson = _lesson(opened, opened.test)
    dev = None if opened.dev is None else _lesson(opened, opened.dev)
    results = []
    for shots in options.shots:
        score = None if dev is None else partial(_top1, learn, dev, shots, options.n_seeds)
        params, how = choose(grid, score)
        rounds = [learn(lesson, shots, seed, params) for seed in range(options.n_seeds)]
        n_train = [len(draw(lesson.train.labels, shots, seed)) for seed in range(options.n_seeds)]
        dataset = opened.test.dataset
        result = Result(
            task=task,
            method=task,
            figures=classification_figures(rounds, dataset.tiers, len(dataset.classes)),
            model=describe_model(opened.towers),
            dataset=describe_dataset(dataset),
            config={"shots": shots, "n_seeds": options.n_seeds, **asdict(params), **how},
            extra={
                "n_train": n_train,
                "top1_by_seed": [float((found.rank == 0).mean()) for found in rounds],
            },
            asked=asked,
        )
        write_result(opened.run, result, predictions_table(opened.test.keys, rounds))
        results.append(result)
    return results


def _lesson(opened: Opened, embedded: Embedded) -> Lesson:
    return Lesson(train=opened.train(embedded), test=embedded, classifier=opened.classifier(embedded))


def _top1(learn: Learn, lesson: Lesson, shots: str, n_seeds: int, params: Any) -> float:
    """Mean top-1 over the draws: what settings are chosen by."""
    return float(np.mean([(learn(lesson, shots, seed, params).rank == 0).mean() for seed in range(n_seeds)]))
