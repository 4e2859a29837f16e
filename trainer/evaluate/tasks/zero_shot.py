"""Zero-shot classification as CLIP defines it: a class is the mean of its prompts' unit embeddings.

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
class ZeroShot:
    """What a classifier of class embeddings does on a set."""

    figures: Figures
    answers: Answers | None
    """Of a classification set."""
    by_class: dict[str, npt.NDArray[np.float64]]
    """Of a multilabel set: f64[c] by metric, NaN for classes that no picture shows."""


def zero_shot(embedded: Embedded, classifier: Floats) -> ZeroShot:
    """Measure f32[c, d] class embeddings on a classification or multilabel set.

    Raises:
        SourceError: no picture of a multilabel set shows any class.
    """
    dataset, logits = embedded.dataset, linear(embedded.images, classifier)
    if dataset.kind == "multilabel":
        if not embedded.present.any():
            raise SourceError(
                f"{dataset.root} {dataset.split}: no picture shows any class, so there is no precision to measure: set "
                "a 1 in their .npy for each class they show"
            )
        figures, by_class = multilabel_figures(logits(slice(None)), embedded.present, dataset.tiers)
        return ZeroShot(figures=figures, answers=None, by_class=by_class)
    found = answers(logits, embedded.labels, len(dataset.classes))
    figures = classification_figures([found], dataset.tiers, len(dataset.classes))
    return ZeroShot(figures=figures, answers=found, by_class={})
