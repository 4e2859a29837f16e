"""Zero-shot classification as in CLIP: a class is the mean of its prompts' unit embeddings.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision (2021), section 3.1.4.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memory_builder.errors import SourceError
from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import (
    Answers,
    Figures,
    answers,
    classification_figures,
    linear,
    multilabel_figures,
)
from trainer.evaluate.sets.features import Embedded


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotResult:
    """Metrics and predictions of a classifier of class embeddings."""

    figures: Figures
    answers: Answers | None
    """Predictions on a classification set."""
    by_class: dict[str, npt.NDArray[np.float64]]
    """Metric → f64[c] by class on a multilabel set, NaN for classes that do not occur."""


def zero_shot(embedded: Embedded, classifier: Floats) -> ZeroShotResult:
    """Measure f32[c, d] class embeddings on a classification or multilabel set.

    Raises:
        SourceError: no picture of a multilabel set shows any class.
    """
    dataset, logits = embedded.dataset, linear(embedded.images, classifier)
    if dataset.kind == "multilabel":
        if not embedded.present.any():
            raise SourceError(
                f"{dataset.root} {dataset.split}: no picture has a label, so average precision is undefined: "
                "set a 1 in their .npy for each class"
            )
        figures, by_class = multilabel_figures(logits(slice(None)), embedded.present, dataset.tiers)
        return ZeroShotResult(figures=figures, answers=None, by_class=by_class)
    predicted = answers(logits, embedded.labels, len(dataset.classes))
    figures = classification_figures([predicted], dataset.tiers, len(dataset.classes))
    return ZeroShotResult(figures=figures, answers=predicted, by_class={})
