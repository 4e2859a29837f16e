"""What a memory says about a set: gathered once, shared by all baselines.

For every picture its nearest rows by image, with their captions; for every class the rows that its name finds.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memory_builder.base.progress import say
from memory_builder.base.types import NO_ROW, Ids, Modality, unit_rows
from memory_builder.errors import EncoderError, UsageError
from memory_builder.memory import Memory
from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.sets.towers import Towers
from trainer.evaluate.with_memory.names import NO_CLASS, Names
from trainer.reco.lookup import SAME_PICTURE

NEIGHBOURS = 50
"""Rows for each picture; methods use the first few of them."""
PER_CLASS = 32
"""Rows for each class, likewise."""
BATCH = 1_024
"""Queries, and texts, at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Pictures, classes, and rows of a memory for both."""

    images: Floats
    """f32[n, d] the pictures."""
    classifier: Floats
    """f32[c, d] the class names."""
    ids: Ids
    """i64[n, k] nearest rows by image, best first; -1 pads."""
    similarity: Floats
    """f32[n, k] their cosines; -inf pads."""
    place: Labels
    """i64[n, k] of each of them among the distinct rows below; 0 pads."""
    captions: tuple[str, ...]
    """Of the m distinct rows; empty where a row has none."""
    caption_vectors: Floats
    """f32[m, d] unit rows; zero where a row has no caption."""
    caption_class: Labels
    """i64[m] the class whose name stands in the caption, or -1."""
    class_ids: Ids
    """i64[c, j] rows that the class's name finds, best first; -1 pads."""
    class_vectors: Floats
    """f32[c, j, d] their images; zero pads."""

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """bool[n, k] which neighbours are there and have a caption."""
        has_caption = np.abs(self.caption_vectors).max(axis=1) > 0
        known: npt.NDArray[np.bool_] = (self.ids != NO_ROW) & has_caption[self.place]
        return known


def check_memory(memory: Memory, towers: Towers) -> None:
    """Refuse a memory whose vectors are not this model's, or that cannot be searched by image.

    Raises:
        EncoderError, UsageError
    """
    if memory.description.fingerprint != towers.fingerprint:
        raise EncoderError(
            f"{memory.store.root} was built with {memory.description.model or 'no model'} "
            f"({memory.description.fingerprint[:12]}), --model {towers.name} is {towers.fingerprint[:12]}: evaluate "
            "the model that built the memory"
        )
    if "image" not in memory.snapshot.indexes:
        raise UsageError(f"{memory.store.root} has no image index: run memory-builder index on it first")


def count_in_memory(nearest: Floats) -> int:
    """How many of a set's pictures (f32[n] cosine of each to the row nearest to it) the memory holds; tells of them."""
    same = int((nearest >= SAME_PICTURE).sum())
    if same:
        say(f"warning: {same:,} of {len(nearest):,} pictures have a row of cosine {SAME_PICTURE} or more in the memory")
    return same


def gather(memory: Memory, embedded: Embedded, classifier: Floats) -> Evidence:
    """Ask the memory about a set's pictures and classes (f32[c, d])."""
    ids, similarity = _search(memory, embedded.images, NEIGHBOURS, "image")
    distinct, place = np.unique(ids, return_inverse=True)
    captions = tuple(caption or "" for caption in memory.rows(distinct, ["caption"])["caption"].to_pylist())
    names = Names(embedded.dataset.classes)
    keys: Modality = "text" if "text" in memory.snapshot.indexes else "image"
    class_ids, _ = _search(memory, classifier, PER_CLASS, keys)
    vectors = memory.vectors(class_ids.ravel(), "image").reshape(*class_ids.shape, classifier.shape[1])
    has_image = vectors.any(axis=2)
    return Evidence(
        images=embedded.images,
        classifier=classifier,
        ids=ids,
        similarity=similarity,
        place=place.reshape(ids.shape),
        captions=captions,
        caption_vectors=unit_rows(memory.vectors(distinct, "text")),
        caption_class=np.array([names.label(caption) for caption in captions], np.int64),
        class_ids=np.where(has_image, class_ids, NO_ROW),
        class_vectors=unit_rows(vectors),
    )


def scramble(evidence: Evidence, names: Names, towers: Towers, permutation: Labels) -> tuple[Evidence, Evidence]:
    """The same evidence, had class c's name been that of class ``permutation[c]`` in all captions.

    Returns:
        (names permuted everywhere, names permuted in the memory alone). In the first the classes go by their new names
        as well: the memory still knows which pictures go together, but the model's knowledge of names is worth nothing,
        and what a method still gets right it gets from the memory. In the second the memory's names are simply wrong.
    """
    texts = [names.exchange(caption, permutation) for caption in evidence.captions]
    changed = [i for i, (text, caption) in enumerate(zip(texts, evidence.captions, strict=True)) if text != caption]
    vectors = evidence.caption_vectors.copy()
    for start in range(0, len(changed), BATCH):
        some = changed[start : start + BATCH]
        vectors[some] = towers.encode_texts([texts[i] for i in some])
    everywhere = replace(
        evidence, captions=tuple(texts), caption_vectors=vectors, classifier=evidence.classifier[permutation]
    )
    inverse = np.argsort(permutation)
    in_memory = replace(
        everywhere,
        classifier=evidence.classifier,
        caption_class=np.append(permutation, NO_CLASS)[evidence.caption_class],
        class_ids=evidence.class_ids[inverse],
        class_vectors=evidence.class_vectors[inverse],
    )
    return everywhere, in_memory


def derangement(n: int) -> Labels:
    """i64[n] a permutation that moves everything: a random cycle."""
    order = np.random.default_rng(0).permutation(n)
    moved = np.empty(n, np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def _search(memory: Memory, queries: Floats, k: int, keys: Modality) -> tuple[Ids, Floats]:
    found = [memory.search(vectors=queries[i : i + BATCH], k=k, keys=keys) for i in range(0, len(queries), BATCH)]
    return np.concatenate([hits.ids for hits in found]), np.concatenate([hits.scores for hits in found])
