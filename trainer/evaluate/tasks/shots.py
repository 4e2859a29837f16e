"""Few-shot sampling: draws of a few pictures of each class, and the choice of hyperparameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from memory_builder.errors import UsageError
from trainer.evaluate.numbers.arrays import Labels

ALL = "all"
Params = TypeVar("Params")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShotOptions:
    """Numbers of pictures of each class, and of draws."""

    shots: tuple[str, ...] = ("1", "2", "4", "8", "16", ALL)
    """Positive integers, or all."""
    n_seeds: int = 3

    def __post_init__(self) -> None:
        wrong = [shots for shots in self.shots if shots != ALL and not (shots.isdecimal() and int(shots))]
        if wrong or not self.shots:
            raise UsageError(f"--shots {' '.join(wrong) or 'nothing'}: expected positive integers, or {ALL}")
        if self.n_seeds < 1:
            raise UsageError(f"--n-seeds {self.n_seeds}: at least 1")


def draw(labels: Labels, shots: str, seed: int) -> Labels:
    """Draw pictures of each class: i64[m] indices, ascending. More shots of one seed include those of fewer."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if shots == ALL:
        return np.arange(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    nth = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[nth < int(shots)])


def choose(grid: Sequence[Params], score: Callable[[Params], float] | None) -> tuple[Params, dict[str, object]]:
    """Choose the hyperparameters with the best score, the first of equals; without ``score`` the default, the first.

    Returns:
        (hyperparameters, the fields of a result that say how they were chosen).
    """
    if score is None:
        return grid[0], {"chosen_on": "nothing: published defaults"}
    scores = [score(params) for params in grid]
    best = int(np.argmax(scores))
    return grid[best], {"chosen_on": "dev", "dev_top1": scores[best], "n_settings_tried": len(grid)}
