"""Linear probe: a head on frozen features, trained on a few pictures of each class, started from the class names.

Starting from names and training with AdamW at 1e-3 and weight decay 0.01 follows Lin et al., Multimodality Helps
Unimodality (2023); the frozen features and the shots are those of Radford et al. (2021), section 4.
"""

from dataclasses import dataclass, replace

from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import Answers, answers, linear
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.tasks.heads import HeadParams, train_head
from trainer.evaluate.tasks.shots import draw

DEFAULT = HeadParams(learning_rate=1e-3, epochs=20)
GRID = (DEFAULT, *(replace(DEFAULT, learning_rate=rate) for rate in (1e-4, 3e-4, 3e-3, 1e-2)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """Pictures to learn from, pictures to answer, and the classifier to begin with."""

    train: Embedded
    test: Embedded
    classifier: Floats
    """f32[c, d]."""


def probe(lesson: Lesson, shots: str, seed: int, params: HeadParams) -> Answers:
    """Train on one draw and answer."""
    labels = lesson.train.labels
    chosen = draw(labels, shots, seed)
    head = train_head(lesson.train.images[chosen], labels[chosen], lesson.classifier, params, seed)
    return answers(linear(lesson.test.images, head), lesson.test.labels, len(head))
