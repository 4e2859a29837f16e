"""Tasks that train on a few pictures of each class: linear probe and fine-tuning, at several numbers of shots."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from trainer.evaluate.config import EvalConfig
from trainer.evaluate.context import EvalContext, open_context, require
from trainer.evaluate.numbers.metrics import Answers, classification_figures
from trainer.evaluate.results import Result, describe_dataset, describe_model, predictions_table, write_result
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.tasks import finetune, linear_probe
from trainer.evaluate.tasks.linear_probe import FewShotSplit
from trainer.evaluate.tasks.shots import ShotOptions, choose, draw

Learn = Callable[[FewShotSplit, str, int, Any], Answers]
"""(split, shots, seed, hyperparameters) → predictions."""


def evaluate_linear_probe(config: EvalConfig, options: ShotOptions) -> list[Result]:
    """Evaluate a linear head on frozen features.

    Raises:
        RequestError: see ``open_context``; or the set has no train split.
    """
    return _evaluate(open_context(config), options, "linear-probe", linear_probe.probe, linear_probe.GRID, {})


def evaluate_few_shot(config: EvalConfig, options: ShotOptions, last_layers: int | None) -> list[Result]:
    """Evaluate fine-tuning of the image tower, or of its last layers; errors as above, and see ``finetune.tune``."""
    context = open_context(config)
    learn, arguments = partial(finetune.tune, context.towers), {"last_layers": last_layers}
    return _evaluate(context, options, "few-shot", learn, finetune.grid(last_layers), arguments)


def _evaluate(
    context: EvalContext, options: ShotOptions, task: str, learn: Learn, grid: Sequence[Any], arguments: dict[str, Any]
) -> list[Result]:
    """Choose hyperparameters of ``grid``, train and evaluate with each number of shots; write the results."""
    require(context, "classification")
    common = {"n_seeds": options.n_seeds, "train_split": context.config.train_split, "dev": context.dev_name}
    test = _split(context, context.test)
    dev = None if context.dev is None else _split(context, context.dev)
    dataset, results = context.test.dataset, []
    for shots in options.shots:
        score = None if dev is None else partial(_top1, learn, dev, shots, options.n_seeds)
        params, how = choose(grid, score)
        rounds = [learn(test, shots, seed, params) for seed in range(options.n_seeds)]
        n_train = [len(draw(test.train.labels, shots, seed)) for seed in range(options.n_seeds)]
        top1 = [float((answers.rank == 0).mean()) for answers in rounds]
        result = Result(
            task=task,
            method=task,
            figures=classification_figures(rounds, dataset.tiers, len(dataset.classes)),
            model=describe_model(context.towers),
            dataset=describe_dataset(dataset),
            config={"shots": shots, "n_seeds": options.n_seeds, **asdict(params), **how},
            extra={"n_train": n_train, "top1_by_seed": top1},
            asked=arguments | common,
        )
        write_result(context.run, result, predictions_table(context.test.keys, rounds))
        results.append(result)
    return results


def _split(context: EvalContext, embedded: Embedded) -> FewShotSplit:
    return FewShotSplit(train=context.train(embedded), test=embedded, classifier=context.classifier(embedded))


def _top1(learn: Learn, split: FewShotSplit, shots: str, n_seeds: int, params: Any) -> float:
    """Mean top-1 over the seeds, to choose hyperparameters by."""
    return float(np.mean([(learn(split, shots, seed, params).rank == 0).mean() for seed in range(n_seeds)]))
