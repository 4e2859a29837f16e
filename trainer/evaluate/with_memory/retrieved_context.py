"""Rows of a memory retrieved for a set, once for all baselines.

For every picture its nearest rows by image, with their captions; for every class the nearest rows to its name.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memory_builder.base.log import logger
from memory_builder.base.types import NO_ROW, Ids, Modality, unit_rows
from memory_builder.errors import EncoderError, UsageError
from memory_builder.memory import Memory
from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.sets.towers import Towers
from trainer.evaluate.with_memory.names import NO_CLASS, ClassNames
from trainer.reco.lookup import SAME_PICTURE

NEIGHBOURS = 50
"""Rows retrieved for each picture, of which methods use the first few."""
PER_CLASS = 32
"""Rows retrieved for each class, of which methods use the first few."""
BATCH = 1_024
"""Queries searched, and texts encoded, at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievedContext:
    """Pictures and classes of a set, with the rows retrieved for both."""

    images: Floats
    """f32[n, d] unit rows of the pictures."""
    classifier: Floats
    """f32[c, d] unit rows of the class names."""
    ids: Ids
    """i64[n, k] row ids of the nearest images, best first; -1 pads."""
    similarity: Floats
    """f32[n, k] their cosines; -inf pads."""
    index: Labels
    """i64[n, k] their indices among the m distinct rows below; 0 pads."""
    captions: tuple[str, ...]
    """Captions of the m distinct rows; empty for a row without."""
    caption_vectors: Floats
    """f32[m, d] unit rows of the captions; zero for a row without."""
    caption_class: Labels
    """i64[m] the class named by each caption, or -1."""
    class_ids: Ids
    """i64[c, j] row ids retrieved for each class name, best first; -1 pads."""
    class_vectors: Floats
    """f32[c, j, d] unit rows of their images; zeros pad."""

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """bool[n, k] which neighbours exist and have a caption."""
        has_caption = np.abs(self.caption_vectors).max(axis=1) > 0
        known: npt.NDArray[np.bool_] = (self.ids != NO_ROW) & has_caption[self.index]
        return known


def check_memory(memory: Memory, towers: Towers) -> None:
    """Refuse a memory that was built with another model, or has no image index.

    Raises:
        EncoderError, UsageError: see above.
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
    """Count the pictures that the memory holds, by f32[n] cosines to the nearest rows; prints a warning if any."""
    same = int((nearest >= SAME_PICTURE).sum())
    if same:
        logger.warning(f"the memory holds {same:,} of the {len(nearest):,} pictures (cosine {SAME_PICTURE} or more)")
    return same


def retrieve_context(memory: Memory, embedded: Embedded, classifier: Floats) -> RetrievedContext:
    """Search the memory with the pictures and the class names (f32[c, d]) of a set."""
    ids, similarity = _search(memory, embedded.images, NEIGHBOURS, "image")
    distinct, index = np.unique(ids, return_inverse=True)
    captions = tuple(caption or "" for caption in memory.rows(distinct, ["caption"])["caption"].to_pylist())
    names = ClassNames(embedded.dataset.classes)
    modality: Modality = "text" if "text" in memory.snapshot.indexes else "image"
    class_ids, _ = _search(memory, classifier, PER_CLASS, modality)
    vectors = memory.vectors(class_ids.ravel(), "image").reshape(*class_ids.shape, classifier.shape[1])
    has_image = vectors.any(axis=2)
    return RetrievedContext(
        images=embedded.images,
        classifier=classifier,
        ids=ids,
        similarity=similarity,
        index=index.reshape(ids.shape),
        captions=captions,
        caption_vectors=unit_rows(memory.vectors(distinct, "text")),
        caption_class=np.array([names.label(caption) for caption in captions], np.int64),
        class_ids=np.where(has_image, class_ids, NO_ROW),
        class_vectors=unit_rows(vectors),
    )


def scramble(
    retrieved: RetrievedContext, names: ClassNames, towers: Towers, permutation: Labels
) -> tuple[RetrievedContext, RetrievedContext]:
    """Two controls, in which all captions name class ``permutation[c]`` in place of class c.

    Returns:
        (names permuted everywhere, names permuted in the memory alone). In the first the classes take their new names
        as well: the memory still groups pictures correctly, but the model's knowledge of names does not help, and a
        method's accuracy comes from the memory. In the second the memory's names are wrong.
    """
    texts = [names.exchange(caption, permutation) for caption in retrieved.captions]
    changed = [i for i, (text, caption) in enumerate(zip(texts, retrieved.captions, strict=True)) if text != caption]
    vectors = retrieved.caption_vectors.copy()
    for start in range(0, len(changed), BATCH):
        block = changed[start : start + BATCH]
        vectors[block] = towers.encode_texts([texts[i] for i in block])
    everywhere = replace(
        retrieved, captions=tuple(texts), caption_vectors=vectors, classifier=retrieved.classifier[permutation]
    )
    inverse = np.argsort(permutation)
    in_memory = replace(
        everywhere,
        classifier=retrieved.classifier,
        caption_class=np.append(permutation, NO_CLASS)[retrieved.caption_class],
        class_ids=retrieved.class_ids[inverse],
        class_vectors=retrieved.class_vectors[inverse],
    )
    return everywhere, in_memory


def derangement(n: int) -> Labels:
    """i64[n] a permutation without fixed points: a random cycle."""
    order = np.random.default_rng(0).permutation(n)
    moved = np.empty(n, np.int64)
    moved[order] = np.roll(order, 1)
    return moved


def _search(memory: Memory, queries: Floats, k: int, modality: Modality) -> tuple[Ids, Floats]:
    blocks = [memory.search(vectors=queries[i : i + BATCH], k=k, keys=modality) for i in range(0, len(queries), BATCH)]
    return np.concatenate([hits.ids for hits in blocks]), np.concatenate([hits.scores for hits in blocks])
