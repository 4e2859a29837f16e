"""Image–text retrieval: recall@k.

With positives ``own`` a picture and its own captions are positives of each other, as in CLIP_benchmark. With
``caption`` so are all pictures with the same caption (up to case and spaces): where captions repeat, as ``cat`` does in
many icon sets, ``own`` counts correct results as wrong.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.evaluate.numbers.arrays import Floats, Labels, ScoredRows
from trainer.evaluate.numbers.intervals import Sums
from trainer.evaluate.numbers.metrics import Figures, class_sums, figures_of
from trainer.evaluate.sets.features import Embedded
from trainer.loop.config import Positives

KS = (1, 5, 10)
CHUNK = 1_024
"""Queries scored at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalResult:
    """Recall in both directions, and the rank of the first positive of each query."""

    figures: Figures
    text_to_image: Labels
    """i64[m] pictures ranked before the first positive, by caption."""
    image_to_text: Labels
    """i64[n] captions ranked before the first positive, by picture."""


def retrieval(embedded: Embedded, positives: Positives = "own") -> RetrievalResult:
    """Measure a retrieval set. Intervals resample pictures together with their captions."""
    captions = embedded.captions
    image_of = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])  # i64[m]
    image_groups, text_groups = _groups(captions, image_of, positives)
    text_to_image = _first_positive(embedded.texts, embedded.images, text_groups, image_groups)
    image_to_text = _first_positive(embedded.images, embedded.texts, image_groups, text_groups)
    sums: dict[str, Sums] = {}
    for k in KS:
        sums[f"text_to_image_recall@{k}"] = class_sums(text_to_image < k, image_of)
        sums[f"image_to_text_recall@{k}"] = class_sums(image_to_text < k, np.arange(len(captions)))
    figures = figures_of(sums, len(captions))
    return RetrievalResult(figures=figures, text_to_image=text_to_image, image_to_text=image_to_text)


def _groups(
    captions: list[list[str]], image_of: Labels, positives: Positives
) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """Group numbers of every picture and of every caption; a shared group makes them positives of each other."""
    if positives == "own":
        return [frozenset((i,)) for i in range(len(captions))], [frozenset((i,)) for i in image_of.tolist()]
    texts = [" ".join(text.casefold().split()) for own in captions for text in own]
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    of_texts = [number[text] for text in texts]
    of_images: list[set[int]] = [set() for _ in captions]
    for image, group in zip(image_of.tolist(), of_texts, strict=True):
        of_images[image].add(group)
    return [frozenset(groups) for groups in of_images], [frozenset((group,)) for group in of_texts]


def _first_positive(
    queries: Floats, keys: Floats, query_groups: list[frozenset[int]], key_groups: list[frozenset[int]]
) -> Labels:
    """i64[q] keys ranked before the first positive of each query."""
    members: dict[int, list[int]] = {}
    for key, groups in enumerate(key_groups):
        for group in groups:
            members.setdefault(group, []).append(key)
    ranks = np.zeros(len(queries), np.int64)
    scored = ScoredRows(keys)
    for start in range(0, len(queries), CHUNK):
        scores = scored.scores(queries[start : start + CHUNK])  # f32[b, m]
        for row, groups in enumerate(query_groups[start : start + CHUNK]):
            ranks[start + row] = _rank_of_first(
                scores[row], sorted({key for group in groups for key in members[group]})
            )
    return ranks


def _rank_of_first(scores: npt.NDArray[np.float32], positives: list[int]) -> int:
    """Number of keys ranked before the best positive; of equal scores the smaller key comes first, NaN last."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    best = positives[int(np.argmax(scores[positives]))]
    if np.isneginf(scores[best]):
        return len(scores) - len(positives)
    return int((scores > scores[best]).sum() + (scores[:best] == scores[best]).sum())
