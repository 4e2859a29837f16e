"""Image–text retrieval: the share of queries with a right answer among the first k.

With positives ``own`` a caption's only right picture is its own, and a picture's right captions are its own, as
CLIP_benchmark counts. With ``caption`` every picture that has the very same caption (but for case and spaces) is right
too: where captions repeat, as ``cat`` does in many icon sets, ``own`` punishes right answers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainer.evaluate.numbers.arrays import Floats, Keys, Labels
from trainer.evaluate.numbers.intervals import Sums
from trainer.evaluate.numbers.metrics import Figures, class_sums, figures_of
from trainer.evaluate.sets.features import Embedded

Positives = Literal["own", "caption"]
KS = (1, 5, 10)
CHUNK = 1_024
"""Queries scored at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Recall both ways, and where the first right answer stood."""

    figures: Figures
    text_to_image: Labels
    """i64[m] answers before the first right one, by caption."""
    image_to_text: Labels
    """i64[n] likewise, by picture."""


def retrieval(embedded: Embedded, positives: Positives = "own") -> Retrieval:
    """Measure a set of captioned pictures. Intervals are over pictures, with their captions drawn together."""
    captions = embedded.captions
    image_of = np.repeat(np.arange(len(captions)), [len(some) for some in captions])  # i64[m]
    image_groups, text_groups = _groups(captions, image_of, positives)
    text_to_image = _first_right(embedded.texts, embedded.images, text_groups, image_groups)
    image_to_text = _first_right(embedded.images, embedded.texts, image_groups, text_groups)
    sums: dict[str, Sums] = {}
    for k in KS:
        sums[f"text_to_image_recall@{k}"] = class_sums(text_to_image < k, image_of)
        sums[f"image_to_text_recall@{k}"] = class_sums(image_to_text < k, np.arange(len(captions)))
    figures = figures_of(sums, len(captions))
    return Retrieval(figures=figures, text_to_image=text_to_image, image_to_text=image_to_text)


def _groups(
    captions: list[list[str]], image_of: Labels, positives: Positives
) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """Group numbers of every picture and of every caption; two belong together if they share one."""
    if positives == "own":
        return [frozenset((i,)) for i in range(len(captions))], [frozenset((i,)) for i in image_of.tolist()]
    texts = [" ".join(text.casefold().split()) for some in captions for text in some]
    number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    of_texts = [number[text] for text in texts]
    of_images: list[set[int]] = [set() for _ in captions]
    for image, group in zip(image_of.tolist(), of_texts, strict=True):
        of_images[image].add(group)
    return [frozenset(groups) for groups in of_images], [frozenset((group,)) for group in of_texts]


def _first_right(
    queries: Floats, keys: Floats, query_groups: list[frozenset[int]], key_groups: list[frozenset[int]]
) -> Labels:
    """i64[q] keys that stand before the first right one."""
    members: dict[int, list[int]] = {}
    for key, groups in enumerate(key_groups):
        for group in groups:
            members.setdefault(group, []).append(key)
    found = np.zeros(len(queries), np.int64)
    scored = Keys(keys)
    for start in range(0, len(queries), CHUNK):
        scores = scored.scores(queries[start : start + CHUNK])  # f32[b, m]
        for row, groups in enumerate(query_groups[start : start + CHUNK]):
            found[start + row] = _before(scores[row], sorted({key for group in groups for key in members[group]}))
    return found


def _before(scores: npt.NDArray[np.float32], right: list[int]) -> int:
    """Keys with a greater score than the best right one, or an equal one and a smaller number; NaN comes last."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    best = right[int(np.argmax(scores[right]))]
    if np.isneginf(scores[best]):
        return len(scores) - len(right)
    return int((scores > scores[best]).sum() + (scores[:best] == scores[best]).sum())
