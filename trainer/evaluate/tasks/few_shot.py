"""Tasks that train on a few pictures of each class: linear probe and fine-tuning, at several numbers of shots."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
    task = _Task(open_context(config), options, "linear-probe", linear_probe.probe, linear_probe.GRID, {})
    return task.evaluate()


def evaluate_few_shot(config: EvalConfig, options: ShotOptions, last_layers: int | None) -> list[Result]:
    """Evaluate fine-tuning of the image tower, or of its last layers.

    Raises:
        RequestError: see ``open_context`` and ``finetune.tune``; or the set has no train split.
    """
    context = open_context(config)
    learn = partial(finetune.tune, context.towers)
    return _Task(
        context, options, "few-shot", learn, finetune.grid(last_layers), {"last_layers": last_layers}
    ).evaluate()


@dataclass(frozen=True, slots=True)
class _Task:
    context: EvalContext
    options: ShotOptions
    name: str
    learn: Learn
    grid: Sequence[Any]
    """Hyperparameters to choose from, the default first."""
    arguments: dict[str, Any]
    """Arguments of the command that this task alone has."""

    def evaluate(self) -> list[Result]:
        """Train and evaluate with each number of shots; write the results."""
        context, n_seeds = self.context, self.options.n_seeds
        require(context, "classification")
        test = self._split(context.test)
        dev = None if context.dev is None else self._split(context.dev)
        return [self._evaluate(test, dev, shots, n_seeds) for shots in self.options.shots]

    def _evaluate(self, test: FewShotSplit, dev: FewShotSplit | None, shots: str, n_seeds: int) -> Result:
        context, dataset = self.context, self.context.test.dataset
        params, how = choose(self.grid, None if dev is None else partial(self._top1, dev, shots))
        rounds = [self.learn(test, shots, seed, params) for seed in range(n_seeds)]
        n_train = [len(draw(test.train.labels, shots, seed)) for seed in range(n_seeds)]
        common = {"n_seeds": n_seeds, "train_split": context.config.train_split, "dev": context.dev_name}
        result = Result(
            task=self.name,
            method=self.name,
            figures=classification_figures(rounds, dataset.tiers, len(dataset.classes)),
            model=describe_model(context.towers),
            dataset=describe_dataset(dataset),
            config={"shots": shots, "n_seeds": n_seeds, **asdict(params), **how},
            extra={
                "n_train": n_train,
                "top1_by_seed": [float((answers.rank == 0).mean()) for answers in rounds],
            },
            asked=self.arguments | common,
        )
        write_result(context.run, result, predictions_table(context.test.keys, rounds))
        return result

    def _split(self, embedded: Embedded) -> FewShotSplit:
        context = self.context
        return FewShotSplit(train=context.train(embedded), test=embedded, classifier=context.classifier(embedded))

    def _top1(self, split: FewShotSplit, shots: str, params: Any) -> float:
        """Mean top-1 over the seeds, to choose hyperparameters by."""
        ranks = [self.learn(split, shots, seed, params).rank for seed in range(self.options.n_seeds)]
        return float(np.mean([(rank == 0).mean() for rank in ranks]))
