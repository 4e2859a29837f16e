"""Paired comparison of two methods on the same pictures."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trainer.evaluate.numbers.intervals import Difference, paired_difference
from trainer.evaluate.numbers.metrics import Answers, class_sums


def compare_top1(a: Answers, b: Answers, tiers: Sequence[str]) -> dict[str, Any]:
    """Paired difference of top-1 (a - b), for all classes and for each tier; None for bounds over one class."""
    parts = {"all": np.ones(len(a.labels), np.bool_)}
    parts |= {tier: np.array([named == tier for named in tiers])[a.labels] for tier in dict.fromkeys(tiers)}
    return {
        name: _without_nan(
            paired_difference(
                class_sums(a.rank[inside] == 0, a.labels[inside]),
                class_sums(b.rank[inside] == 0, b.labels[inside]),
            )
        )
        for name, inside in parts.items()
        if inside.any()
    }


def _without_nan(difference: Difference) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in asdict(difference).items()}  # JSON has no NaN
