"""Linear probe: a head on frozen features, initialised with the class names, trained on a few pictures of each class.

Initialising with names and training with AdamW at 1e-3 and weight decay 0.01 follows Lin et al., Multimodality Helps
Unimodality (2023); the frozen features and the shots are those of Radford et al. (2021), section 4.
"""

from dataclasses import dataclass, replace

from trainer.evaluate.numbers.arrays import Floats
from trainer.evaluate.numbers.metrics import Answers, answers, linear
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.tasks.heads import HeadParams, train_head
from trainer.evaluate.tasks.shots import draw

DEFAULT = HeadParams(learning_rate=1e-3, epochs=20)
GRID = (DEFAULT, *(replace(DEFAULT, learning_rate=lr) for lr in (1e-4, 3e-4, 3e-3, 1e-2)))


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShotSplit:
    """Train and test pictures, and the initial classifier."""

    train: Embedded
    test: Embedded
    classifier: Floats
    """f32[c, d]."""


def probe(split: FewShotSplit, shots: str, seed: int, params: HeadParams) -> Answers:
    """Train a head on one draw of pictures, and predict with it."""
    labels = split.train.labels
    chosen = draw(labels, shots, seed)
    head = train_head(split.train.images[chosen], labels[chosen], split.classifier, params, seed)
    return answers(linear(split.test.images, head), split.test.labels, len(head))
