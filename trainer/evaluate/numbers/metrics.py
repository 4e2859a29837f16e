"""Classification metrics with intervals over classes, for all classes and for each tier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.evaluate.numbers.arrays import Floats, Labels, ScoredRows
from trainer.evaluate.numbers.intervals import FEW, TOO_FEW, Sums, interval

SCALE = 100
"""Factor of the cosines: the bound at which CLIP clamps its temperature."""
CHUNK = 1_024
"""Most pictures scored at a time."""
SCORES = 1 << 26
"""Most scores in memory at a time, eight bytes each: 0.5 GB. Limits the pictures if there are many classes."""
TOP = 5
"""Top predictions stored for each picture."""
NO_ANSWER = -1
"""Pads the top predictions of a method that abstains."""
Score = Callable[[slice], Floats]
"""Slice of the pictures → f32[b, c] scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Predictions of a method for every picture of a classification set."""

    labels: Labels
    """i64[n] true labels."""
    rank: Labels
    """i64[n] number of classes ranked before the true one; 0 is correct."""
    top: Labels
    """i64[n, ≤ 5] top predictions, best first; -1 pads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Metrics with their 95 % intervals."""

    n: int
    """Pictures."""
    n_classes: int
    """Classes that have pictures."""
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float] | None]
    """None over one class."""
    tiers: dict[str, "Figures"] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        """A caution about the intervals, or an empty string."""
        return TOO_FEW if min(figures.n_classes for figures in (self, *self.tiers.values())) < FEW else ""


def answers(score: Score, labels: Labels, n_classes: int, *, may_abstain: bool = False) -> Answers:
    """Rank the classes of all pictures by a method's scores; of equal scores the smaller label comes first.

    Args:
        score: the method. A score of -inf or NaN abstains from the class; a true class with one ranks last.
        labels: i64[n] true labels.
        n_classes: c.
        may_abstain: the method gives one score to all classes it abstains from. Then the true class ranks behind every
            class of the same score, so that it is not correct by luck.
    """
    rank, top = np.zeros(len(labels), np.int64), np.zeros((len(labels), min(TOP, n_classes)), np.int64)
    step = min(CHUNK, max(1, SCORES // n_classes))
    for start in range(0, len(labels), step):
        part = slice(start, min(start + step, len(labels)))
        scores = np.array(score(part))  # a copy, which is changed below
        scores[np.isnan(scores)] = -np.inf  # else no class would rank before a true class of NaN
        rank[part] = _ranks(scores, labels[part][:, None], may_abstain)
        top[part] = _top_classes(scores)
    return Answers(labels=labels, rank=rank, top=top)


def _ranks(scores: Floats, truth: Labels, may_abstain: bool) -> Labels:
    """f32[b, c], i64[b, 1] true labels → i64[b] number of classes ranked before the true one."""
    own, classes = np.take_along_axis(scores, truth, 1), np.arange(scores.shape[1])
    before = scores == own
    before &= np.where(may_abstain | np.isneginf(own), classes != truth, classes < truth)
    before |= scores > own
    ranks: Labels = before.sum(axis=1)
    return ranks


def _top_classes(scores: Floats) -> Labels:
    """f32[b, c] → i64[b, ≤ 5] the best classes, best first; of equal ones the smaller label. -1 for scores of -inf.

    Overwrites the best scores with -inf.
    """
    rows, top = np.arange(len(scores)), []
    for _ in range(min(TOP, scores.shape[1])):
        best = scores.argmax(axis=1)
        top.append(np.where(np.isneginf(scores[rows, best]), NO_ANSWER, best))
        scores[rows, best] = -np.inf
    return np.stack(top, axis=1)


def linear(images: Floats, classifier: Floats) -> Score:
    """Logits of unit rows: SCALE × cosine. Classes of the same name have equal logits."""
    classes = ScoredRows(classifier)
    return lambda part: classes.scores(SCALE * images[part])


def class_sums(hits: npt.NDArray[np.floating | np.bool_], labels: Labels, classes: Labels | None = None) -> Sums:
    """Hits of n pictures → sums over the pictures of each class, or of each given class."""
    classes = np.unique(labels) if classes is None else classes
    index = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    in_classes = classes[index] == labels
    counts = np.bincount(index[in_classes], minlength=len(classes)).astype(np.float64)
    sums = np.bincount(index[in_classes], weights=hits[in_classes], minlength=len(classes)).astype(np.float64)
    return Sums(hits=sums[counts > 0], counts=counts[counts > 0])


def classification_figures(rounds: Sequence[Answers], tiers: Sequence[str], n_classes: int) -> Figures:
    """top1, top5 (from five classes on) and mean_per_class of predictions, or their mean over seeds."""
    labels = rounds[0].labels
    right = {"top1": np.mean([each.rank < 1 for each in rounds], axis=0)}
    if n_classes >= 5:
        right["top5"] = np.mean([each.rank < 5 for each in rounds], axis=0)
    figures = _of_pictures(right, labels)
    for tier in dict.fromkeys(tiers):
        inside = np.array([named == tier for named in tiers])[labels]
        if inside.any():
            figures.tiers[tier] = _of_pictures({name: hits[inside] for name, hits in right.items()}, labels[inside])
    return figures


def _of_pictures(right: dict[str, npt.NDArray[np.float64]], labels: Labels) -> Figures:
    sums = {name: class_sums(hits, labels) for name, hits in right.items()}
    by_class = sums["top1"]
    sums["mean_per_class"] = Sums(hits=by_class.hits / by_class.counts, counts=np.ones(len(by_class.hits)))
    return figures_of(sums, len(labels))


def figures_of(sums: dict[str, Sums], n: int) -> Figures:
    """Metrics and intervals of quotients over n pictures."""
    return Figures(
        n=n,
        n_classes=len(next(iter(sums.values())).hits),
        metrics={name: each.value for name, each in sums.items()},
        ci95={name: interval(each) if len(each.hits) > 1 else None for name, each in sums.items()},
    )


def multilabel_figures(
    scores: Floats, present: npt.NDArray[np.bool_], tiers: Sequence[str]
) -> tuple[Figures, dict[str, npt.NDArray[np.float64]]]:
    """mAP and 11-point mAP over the classes that occur, and both by class (NaN for a class that does not).

    Args:
        scores: f32[n, c].
        present: bool[n, c] true labels.
        tiers: tier of each class, or none.
    """
    from sklearn.metrics import average_precision_score

    by_class = {name: np.full(present.shape[1], np.nan) for name in ("mAP", "mAP_11point")}
    for label in np.flatnonzero(present.any(axis=0)):
        by_class["mAP"][label] = average_precision_score(present[:, label], scores[:, label])
        by_class["mAP_11point"][label] = eleven_points(present[:, label], scores[:, label])
    figures = _of_classes(by_class, np.ones(present.shape[1], np.bool_), len(present))
    for tier in dict.fromkeys(tiers):
        inside = np.array([named == tier for named in tiers])
        if present[:, inside].any():
            n_shown = int(present[:, inside].any(axis=1).sum())
            figures.tiers[tier] = _of_classes(by_class, inside, n_shown)
    return figures, by_class


def _of_classes(by_class: dict[str, npt.NDArray[np.float64]], inside: npt.NDArray[np.bool_], n: int) -> Figures:
    occurring = {name: values[inside & ~np.isnan(values)] for name, values in by_class.items()}
    sums = {name: Sums(hits=values, counts=np.ones(len(values))) for name, values in occurring.items()}
    return figures_of(sums, n)


def eleven_points(present: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Mean over recall 0, 0.1 … 1 of the best precision at that recall or more: PASCAL VOC's measure up to 2009."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(present, scores)
    precision, recall = precision[:-1], recall[:-1]  # sklearn appends a last point that no threshold gives
    return float(np.mean([precision[recall >= tenth / 10].max() for tenth in range(11)]))
