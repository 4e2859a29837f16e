"""Two methods on the same pictures: how far apart they are, and how far other classes would move that."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trainer.evaluate.numbers.intervals import Difference, paired_difference
from trainer.evaluate.numbers.metrics import Answers, class_sums


def compared(found: Answers, other: Answers, tiers: Sequence[str]) -> dict[str, Any]:
    """The paired difference of top-1, for all classes and for each tier; None for what one class cannot tell."""
    compared = {"all": np.ones(len(found.labels), np.bool_)}
    compared |= {tier: np.array([named == tier for named in tiers])[found.labels] for tier in dict.fromkeys(tiers)}
    return {
        name: _told(
            paired_difference(
                class_sums(found.rank[inside] == 0, found.labels[inside]),
                class_sums(other.rank[inside] == 0, other.labels[inside]),
            )
        )
        for name, inside in compared.items()
        if inside.any()
    }


def _told(difference: Difference) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in asdict(difference).items()}  # JSON has no NaN
