"""A classification set refined from a memory: pictures, class names or both; and with permuted names, as controls.

Names permuted in memory and classes alike: the model's knowledge of names does not help, and accuracy comes from the
memory. Names permuted in the memory alone: retrieval must not help.
"""

from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids
from memory_builder.memory import Memory
from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.numbers.metrics import Answers, answers, linear
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.sets.towers import Towers, mean_prompts
from trainer.evaluate.with_memory.names import ClassNames
from trainer.evaluate.with_memory.retrieved_context import BATCH, derangement
from trainer.reco.lookup import Neighbours
from trainer.reco.model import PromptOrder, RecoModel, refined_heads

UNCHANGED = ""
"""The condition without a control."""
COLUMNS = 32
"""Columns copied at a time, as a second f32[c, d] may not fit into memory."""


class RefinedSet:
    """Predictions of a RECO model on a classification set.

    With millions of classes an f32[c, d] takes gigabytes: beside the class embeddings, and their prompts if each of
    these is refined, only one is in memory at a time.
    """

    def __init__(self, model: RecoModel, memory: Memory, towers: Towers, test: Embedded, order: PromptOrder) -> None:
        self._model, self._memory, self._towers, self._test, self._order = model, memory, towers, test, order
        classes, templates = test.dataset.classes, test.dataset.templates
        self._classes: Floats = np.empty((len(classes), towers.d), np.float32)
        self._prompts: Floats = self._classes[:, None]  # f32[c, t, d]; only the means, if these are refined
        if order == "refine-then-average":
            self._prompts = np.empty((len(classes), len(templates), towers.d), np.float32)
        for block, prompts in towers.prompts(classes, templates):
            if order == "refine-then-average":
                self._prompts[block] = prompts
            self._classes[block] = mean_prompts(prompts)

    @cached_property
    def by_image(self) -> Neighbours:
        """Neighbours of the pictures."""
        return self._model.find(self._test.images, "image", self._memory)

    def by_class(self, labels: Labels) -> Ids:
        """i64[n] classes → i64[n, k] neighbours of the mean of each class's prompts."""
        distinct, index = np.unique(labels, return_inverse=True)
        return self._model.find(self._classes[distinct], "text", self._memory).ids[index]

    def answers(self) -> dict[str, dict[str, Answers]]:
        """Condition → method → predictions: unchanged, and under both controls.

        No controls if a query searches the other modality, as its neighbours would change with the names. Else they
        stay: if every caption names class p(c) in place of class c, the new name retrieves what the old one did.
        """
        images = self._fuse(self.by_image.vectors)
        predictions = {UNCHANGED: {"zero-shot": self._predict(self._test.images, self._classes)}}
        predictions[UNCHANGED] |= {"reco-image": self._predict(images, self._classes)}
        predictions[UNCHANGED] |= self._predict_with_heads(images, self._heads())
        lookup = self._model.lookup
        if (lookup.image_search, lookup.text_search) != ("image", "text") or not self._model.k:
            return predictions
        permutation = derangement(len(self._classes))
        images = self._fuse(self._exchanged(self.by_image, permutation, lookup.image_fuse == "text"))
        heads = self._heads(permutation)
        predictions["names_scrambled"] = self._predict_with_heads(images, heads)
        # Both controls refine a name with the same rows; they differ in the class that it stands for.
        _reorder_in_place(heads, np.argsort(permutation))
        predictions["memory_scrambled"] = self._predict_with_heads(images, heads)
        del heads
        predictions["names_scrambled"]["reco-image"] = self._predict(images, self._classes[permutation])
        predictions["memory_scrambled"]["reco-image"] = self._predict(images, self._classes)
        return predictions

    def _predict(self, images: Floats, classes: Floats) -> Answers:
        return answers(linear(images, classes), self._test.labels, len(classes))

    def _predict_with_heads(self, images: Floats, heads: Floats) -> dict[str, Answers]:
        return {"reco-text": self._predict(self._test.images, heads), "reco-both": self._predict(images, heads)}

    def _fuse(self, neighbours: npt.NDArray[np.float16]) -> Floats:
        return self._model.fuse(self._test.images, neighbours, "image")

    def _heads(self, permutation: Labels | None = None) -> Floats:
        """f32[c, d]: the name of each class, or of its permuted class, fused with the neighbours of its own name."""
        refine = partial(self._refine_texts, permutation=permutation)
        return refined_heads(self._prompts, self._order, refine, permutation)

    def _refine_texts(self, texts: Floats, queries: Floats, permutation: Labels | None) -> Floats:
        neighbours = self._model.find(queries, "text", self._memory)
        is_text = permutation is not None and self._model.lookup.text_fuse == "text"
        vectors = neighbours.vectors if permutation is None else self._exchanged(neighbours, permutation, is_text)
        return self._model.fuse(texts, vectors, "text")

    @cached_property
    def _names(self) -> ClassNames:
        return ClassNames(self._test.dataset.classes)

    def _exchanged(self, neighbours: Neighbours, permutation: Labels, is_text: bool) -> npt.NDArray[np.float16]:
        """f16[n, k, d] vectors of the neighbours, with class ``permutation[c]`` in place of class c in all captions."""
        if not is_text:
            return neighbours.vectors
        distinct, index = np.unique(neighbours.ids, return_inverse=True)
        captions = self._memory.rows(distinct, ["caption"])["caption"].to_pylist()
        texts = [self._names.exchange(caption or "", permutation) for caption in captions]
        changed = [i for i, (text, caption) in enumerate(zip(texts, captions, strict=True)) if text != (caption or "")]
        vectors, index = neighbours.vectors.copy(), index.reshape(neighbours.ids.shape)
        if changed:
            encoded = [
                self._towers.encode_texts([texts[i] for i in changed[at : at + BATCH]])
                for at in range(0, len(changed), BATCH)
            ]
            row_of = np.full(len(distinct), -1)
            row_of[changed] = np.arange(len(changed))
            moved = row_of[index] >= 0
            vectors[moved] = np.concatenate(encoded)[row_of[index][moved]].astype(np.float16)
        return vectors


def _reorder_in_place(rows: Floats, order: Labels) -> None:
    """Set f32[c, d] rows to ``rows[order]``."""
    for at in range(0, rows.shape[1], COLUMNS):
        columns = slice(at, at + COLUMNS)
        rows[:, columns] = rows[order, columns]
