"""A classification set refined from a memory: pictures, class names, both; and both under exchanged names, as controls.

Names permuted consistently in memory and classes: the model's knowledge of names is worth nothing, what is left was
known to the memory. Names permuted in the memory alone: retrieval must not help.
"""

from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from memory_builder.memory import Memory
from memory_builder.retrieve.templates import fill
from memory_builder.scores import unit_rows
from trainer.evaluate.arrays import Floats, Labels
from trainer.evaluate.evidence import BATCH, derangement
from trainer.evaluate.features import Embedded
from trainer.evaluate.names import Names
from trainer.evaluate.towers import Towers
from trainer.lookup import Found
from trainer.refined import Order, RecoModel, refined_heads

Pair = tuple[Floats, Floats]
"""f32[n, d] pictures, f32[c, d] classes."""


class Refined:
    """What a fusion makes of a set."""

    def __init__(self, model: RecoModel, memory: Memory, towers: Towers, test: Embedded, order: Order) -> None:
        self._model, self._memory, self._towers, self._test, self._order = model, memory, towers, test, order
        dataset = test.dataset
        self.classes: Floats = towers.classifier(dataset.classes, dataset.templates)
        prompts = [[fill(template, name) for template in dataset.templates] for name in dataset.classes]
        self._prompts: Floats = np.stack([towers.encode_texts(some) for some in prompts])  # f32[c, t, d]

    @cached_property
    def by_image(self) -> Found:
        """What the pictures find."""
        return self._model.find(self._test.images, "image", self._memory)

    @cached_property
    def by_class(self) -> Found:
        """What the classes find, each with the mean of its prompts."""
        return self._model.find(unit_rows(self._prompts.mean(axis=1)), "text", self._memory)

    def methods(self) -> dict[str, Pair]:
        """Method → what is compared."""
        return self._pairs(self._fused(self.by_image.vectors), self._heads(self._prompts, self._prompts), self.classes)

    def controls(self) -> dict[str, dict[str, Pair]]:
        """Control → method → what is compared; none where a side searches the other's vectors, as finds would differ.

        Where class c goes by the name of class p(c) in every caption, that name finds what its own found before.
        """
        lookup = self._model.lookup
        if (lookup.image_search, lookup.text_search) != ("image", "text") or not self._model.k:
            return {}
        permutation = derangement(len(self.classes))
        inverse = np.argsort(permutation)
        images = self._fused(self._exchanged(self.by_image, permutation, lookup.image_fuse == "text"))
        everywhere = self._heads(self._prompts[permutation], self._prompts, permutation)
        in_memory = self._heads(self._prompts, self._prompts[inverse], permutation)
        return {
            "names_scrambled": self._pairs(images, everywhere, self.classes[permutation]),
            "memory_scrambled": self._pairs(images, in_memory, self.classes),
        }

    def _pairs(self, images: Floats, heads: Floats, classes: Floats) -> dict[str, Pair]:
        return {
            "reco-image": (images, classes),
            "reco-text": (self._test.images, heads),
            "reco-both": (images, heads),
        }

    def _fused(self, neighbours: npt.NDArray[np.float16]) -> Floats:
        return self._model.fuse(self._test.images, neighbours, "image")

    def _heads(self, prompts: Floats, askers: Floats, permutation: Labels | None = None) -> Floats:
        """f32[c, t, d] prompts, refined with what others find → f32[c, d]."""
        return refined_heads(prompts, askers, self._order, partial(self._refined_texts, permutation=permutation))

    def _refined_texts(self, texts: Floats, askers: Floats, permutation: Labels | None) -> Floats:
        found = self._model.find(askers, "text", self._memory)
        is_text = permutation is not None and self._model.lookup.text_fuse == "text"
        vectors = found.vectors if permutation is None else self._exchanged(found, permutation, is_text)
        return self._model.fuse(texts, vectors, "text")

    def _exchanged(self, found: Found, permutation: Labels, is_text: bool) -> npt.NDArray[np.float16]:
        """f16[n, k, d] what was found, had class c's name been that of ``permutation[c]`` in all captions."""
        if not is_text:
            return found.vectors
        distinct, place = np.unique(found.ids, return_inverse=True)
        names = Names(self._test.dataset.classes)
        captions = self._memory.rows(distinct, ["caption"])["caption"].to_pylist()
        texts = [names.exchange(caption or "", permutation) for caption in captions]
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
