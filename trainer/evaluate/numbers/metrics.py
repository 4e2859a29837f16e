"""Metrics of a classification, each with its interval over classes, for all classes and for each tier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.evaluate.numbers.arrays import Floats, Keys, Labels
from trainer.evaluate.numbers.intervals import FEW, TOO_FEW, Sums, interval

SCALE = 100
"""Logits a cosine of 1 gives: CLIP's own, at which its temperature is clamped."""
CHUNK = 1_024
"""Pictures scored at a time, at most."""
SCORES = 1 << 26
"""Scores held at a time: fewer pictures where there are many classes. At the peak eight bytes each, 0.5 GB."""
KEPT = 5
"""Answers kept for each picture."""
NO_ANSWER = -1
"""Stands among them for what a method does not say."""
Score = Callable[[slice], Floats]
"""Some of the pictures → f32[b, c] the greater the likelier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a method says of every picture of a classification set."""

    labels: Labels
    """i64[n] the truth."""
    rank: Labels
    """i64[n] how many classes it puts before the right one; 0 is right."""
    top: Labels
    """i64[n, ≤ 5] its first answers, best first; -1 where it says nothing more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Numbers with their 95 % intervals."""

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
        """What a reader of the intervals must know."""
        return TOO_FEW if min(some.n_classes for some in (self, *self.tiers.values())) < FEW else ""


def answers(score: Score, labels: Labels, n_classes: int, *, may_abstain: bool = False) -> Answers:
    """Ask a method about all pictures; of classes with one score, that with the smaller label comes first.

    Args:
        score: the method; of a class that scores -inf or NaN it says nothing, and a right one comes last.
        labels: i64[n] the truth.
        n_classes: c.
        may_abstain: the method says nothing of some classes, by one score for them all. Then every class with the right
            one's score comes before it: what is not said is not right by luck.
    """
    rank, top = np.zeros(len(labels), np.int64), np.zeros((len(labels), min(KEPT, n_classes)), np.int64)
    step = min(CHUNK, max(1, SCORES // n_classes))
    for start in range(0, len(labels), step):
        part = slice(start, min(start + step, len(labels)))
        scores = np.array(score(part))  # a copy, to be changed
        scores[np.isnan(scores)] = -np.inf  # else nothing would come before a right class of NaN
        rank[part] = _ranks(scores, labels[part][:, None], may_abstain)
        top[part] = _first_answers(scores)
    return Answers(labels=labels, rank=rank, top=top)


def _ranks(scores: Floats, truth: Labels, may_abstain: bool) -> Labels:
    """f32[b, c], i64[b, 1] → i64[b] how many classes come before the right one."""
    own, classes = np.take_along_axis(scores, truth, 1), np.arange(scores.shape[1])
    before = scores == own
    before &= np.where(may_abstain | np.isneginf(own), classes != truth, classes < truth)
    before |= scores > own
    ranks: Labels = before.sum(axis=1)
    return ranks


def _first_answers(left: Floats) -> Labels:
    """f32[b, c] → i64[b, ≤ 5] the best classes, best first; of equal ones the smaller label. -1 for scores of -inf.

    What is found becomes -inf.
    """
    rows, found = np.arange(len(left)), []
    for _ in range(min(KEPT, left.shape[1])):
        best = left.argmax(axis=1)
        found.append(np.where(np.isneginf(left[rows, best]), NO_ANSWER, best))
        left[rows, best] = -np.inf
    return np.stack(found, axis=1)


def linear(images: Floats, classifier: Floats) -> Score:
    """Logits of unit rows: SCALE × cosine; classes of one vector, as those of one name, have equal ones."""
    classes = Keys(classifier)
    return lambda part: classes.scores(SCALE * images[part])


def class_sums(hits: npt.NDArray[np.floating | np.bool_], labels: Labels, classes: Labels | None = None) -> Sums:
    """n pictures' hits → sums for each class that has pictures, or each of these."""
    classes = np.unique(labels) if classes is None else classes
    place = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    kept = classes[place] == labels
    counts = np.bincount(place[kept], minlength=len(classes)).astype(np.float64)
    sums = np.bincount(place[kept], weights=hits[kept], minlength=len(classes)).astype(np.float64)
    return Sums(hits=sums[counts > 0], counts=counts[counts > 0])


def classification_figures(rounds: Sequence[Answers], tiers: Sequence[str], n_classes: int) -> Figures:
    """top1, top5 (from five classes on) and mean_per_class of one set of answers, or the mean of several seeds'."""
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
    """Every quotient with its interval; n pictures."""
    return Figures(
        n=n,
        n_classes=len(next(iter(sums.values())).hits),
        metrics={name: each.value for name, each in sums.items()},
        ci95={name: interval(each) if len(each.hits) > 1 else None for name, each in sums.items()},
    )


def multilabel_figures(
    scores: Floats, present: npt.NDArray[np.bool_], tiers: Sequence[str]
) -> tuple[Figures, dict[str, npt.NDArray[np.float64]]]:
    """mAP and 11-point mAP over the classes that some picture shows, and both by class (NaN where none does).

    Args:
        scores: f32[n, c].
        present: bool[n, c] the truth.
        tiers: of each class, or none.
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
    kept = {name: values[inside & ~np.isnan(values)] for name, values in by_class.items()}
    sums = {name: Sums(hits=values, counts=np.ones(len(values))) for name, values in kept.items()}
    return figures_of(sums, n)


def eleven_points(present: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Mean over recall 0, 0.1 … 1 of the best precision at that recall or more: PASCAL VOC's measure up to 2009."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(present, scores)
    precision, recall = precision[:-1], recall[:-1]  # its last point is no answer but where the curve is drawn to
    return float(np.mean([precision[recall >= tenth / 10].max() for tenth in range(11)]))
