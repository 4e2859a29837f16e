"""A classification set refined from a memory: pictures, class names, both; and both under exchanged names, as controls.

Names permuted consistently in memory and classes: the model's knowledge of names is worth nothing, what is left was
known to the memory. Names permuted in the memory alone: retrieval must not help.
"""

from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from memory_builder.base.types import Ids
from memory_builder.memory import Memory
from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.numbers.metrics import Answers, answers, linear
from trainer.evaluate.sets.features import Embedded
from trainer.evaluate.sets.towers import Towers, centres
from trainer.evaluate.with_memory.names import Names
from trainer.evaluate.with_memory.retrieved_context import BATCH, derangement
from trainer.reco.lookup import Found
from trainer.reco.model import Order, RecoModel, refined_heads

AS_IT_IS = ""
"""The condition that is no control."""
COLUMNS = 32
"""Copied at a time where there may be no room for another f32[c, d]."""


class Refined:
    """What a fusion makes of a set.

    With millions of classes an f32[c, d] takes gigabytes: beside the classes' own, and their prompts where each of them
    is refined, no more than one is held at a time.
    """

    def __init__(self, model: RecoModel, memory: Memory, towers: Towers, test: Embedded, order: Order) -> None:
        self._model, self._memory, self._towers, self._test, self._order = model, memory, towers, test, order
        classes, templates = test.dataset.classes, test.dataset.templates
        self._classes: Floats = np.empty((len(classes), towers.d), np.float32)
        self._prompts: Floats = self._classes[:, None]  # f32[c, t, d]; the means alone, if those are refined
        if order == "refine-then-average":
            self._prompts = np.empty((len(classes), len(templates), towers.d), np.float32)
        for some, prompts in towers.prompts(classes, templates):
            if order == "refine-then-average":
                self._prompts[some] = prompts
            self._classes[some] = centres(prompts)

    @cached_property
    def by_image(self) -> Found:
        """What the pictures find."""
        return self._model.find(self._test.images, "image", self._memory)

    def by_class(self, labels: Labels) -> Ids:
        """i64[n] classes → i64[n, k] rows that each finds, with the mean of its prompts."""
        distinct, place = np.unique(labels, return_inverse=True)
        return self._model.find(self._classes[distinct], "text", self._memory).ids[place]

    def answers(self) -> dict[str, dict[str, Answers]]:
        """Condition → method → answers: as it is, and under both controls.

        None where a side searches the other's vectors, as finds would differ: where class c goes by the name of class
        p(c) in every caption, that name finds what its own found before.
        """
        images = self._fused(self.by_image.vectors)
        told = {AS_IT_IS: {"zero-shot": self._ask(self._test.images, self._classes)}}
        told[AS_IT_IS] |= {"reco-image": self._ask(images, self._classes)} | self._ask_heads(images, self._heads())
        lookup = self._model.lookup
        if (lookup.image_search, lookup.text_search) != ("image", "text") or not self._model.k:
            return told
        permutation = derangement(len(self._classes))
        images = self._fused(self._exchanged(self.by_image, permutation, lookup.image_fuse == "text"))
        heads = self._heads(permutation)
        told["names_scrambled"] = self._ask_heads(images, heads)
        # In both controls a name is refined with the same rows: only which class it stands for is not the same.
        _reorder(heads, np.argsort(permutation))
        told["memory_scrambled"] = self._ask_heads(images, heads)
        del heads
        told["names_scrambled"]["reco-image"] = self._ask(images, self._classes[permutation])
        told["memory_scrambled"]["reco-image"] = self._ask(images, self._classes)
        return told

    def _ask(self, images: Floats, classes: Floats) -> Answers:
        return answers(linear(images, classes), self._test.labels, len(classes))

    def _ask_heads(self, images: Floats, heads: Floats) -> dict[str, Answers]:
        return {"reco-text": self._ask(self._test.images, heads), "reco-both": self._ask(images, heads)}

    def _fused(self, neighbours: npt.NDArray[np.float16]) -> Floats:
        return self._model.fuse(self._test.images, neighbours, "image")

    def _heads(self, permutation: Labels | None = None) -> Floats:
        """f32[c, d]: what each class is called, by its own name or another's, refined with what its own finds."""
        refine = partial(self._refined_texts, permutation=permutation)
        return refined_heads(self._prompts, self._prompts, self._order, refine, permutation)

    def _refined_texts(self, texts: Floats, askers: Floats, permutation: Labels | None) -> Floats:
        found = self._model.find(askers, "text", self._memory)
        is_text = permutation is not None and self._model.lookup.text_fuse == "text"
        vectors = found.vectors if permutation is None else self._exchanged(found, permutation, is_text)
        return self._model.fuse(texts, vectors, "text")

    @cached_property
    def _names(self) -> Names:
        return Names(self._test.dataset.classes)

    def _exchanged(self, found: Found, permutation: Labels, is_text: bool) -> npt.NDArray[np.float16]:
        """f16[n, k, d] what was found, had class c's name been that of ``permutation[c]`` in all captions."""
        if not is_text:
            return found.vectors
        distinct, place = np.unique(found.ids, return_inverse=True)
        captions = self._memory.rows(distinct, ["caption"])["caption"].to_pylist()
        texts = [self._names.exchange(caption or "", permutation) for caption in captions]
        changed = [i for i, (text, caption) in enumerate(zip(texts, captions, strict=True)) if text != (caption or "")]
        vectors, place = found.vectors.copy(), place.reshape(found.ids.shape)
        if changed:
            encoded = [
                self._towers.encode_texts([texts[i] for i in changed[at : at + BATCH]])
                for at in range(0, len(changed), BATCH)
            ]
            where = np.full(len(distinct), -1)
            where[changed] = np.arange(len(changed))
            moved = where[place] >= 0
            vectors[moved] = np.concatenate(encoded)[where[place][moved]].astype(np.float16)
        return vectors


def _reorder(rows: Floats, order: Labels) -> None:
    """``rows[order]`` in place of f32[c, d] rows."""
    for at in range(0, rows.shape[1], COLUMNS):
        some = slice(at, at + COLUMNS)
        rows[:, some] = rows[order, some]
