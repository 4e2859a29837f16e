"""Batches of a subset's pairs: pictures, or what the frozen layers make of them, beside captions."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memory_builder.base.runner import available_threads
from memory_builder.base.types import Ids
from memory_builder.model.images import decode_image
from trainer.loop.gradient_cache import Batch
from trainer.loop.sampler import Slice
from trainer.react.array_cache import Array
from trainer.react.augment import Look, augmented, readers
from trainer.react.config import Augmentation
from trainer.react.subset import Place, read_picture

CHUNK = 16
"""Pictures handed to a reader at a time."""
AHEAD = 2
"""Batches that are read ahead."""


Read = Callable[[], Array]
"""Work for a reader, to be sent to a process where readers are processes."""


def plain_images(places: Sequence[Place], resize: Any) -> Array:
    """u8[m, h, w, 3] as the model's own preprocessing leaves them."""
    return np.stack([resize(decode_image(read_picture(place))) for place in places])


def random_images(places: Sequence[Place], look: Look, epoch: int) -> Array:
    """f32[m, 3, h, w]; see ``augmented``."""
    return np.stack([augmented(read_picture(place), look, epoch, place.pair) for place in places])


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSource:
    """A ``trainer.loop.loop.Source``."""

    n_pairs: int
    images: Callable[[int, Ids], Read]
    """(epoch, i64[m] pairs) → what reads their pictures, [m, …]."""
    texts: Callable[[Ids], Tensor]
    """i64[m] pairs → their captions' embeddings or tokens."""
    groups: Ids | None
    """i64[n] which pairs are right answers to each other."""
    augmentation: Augmentation
    n_readers: int | None = None

    def batches(self, slices: Iterable[Slice]) -> Iterator[Batch]:
        """Yield batches with ``image``, ``text`` and, with groups, ``group``; a few are read ahead by all readers."""
        with readers(self.augmentation, self.n_readers or available_threads()) as pool:
            queue: deque[tuple[Slice, list[Future[Array]]]] = deque()
            for current in slices:
                chunks = [current.pairs[at : at + CHUNK] for at in range(0, len(current.pairs), CHUNK)]
                queue.append((current, [pool.submit(self.images(current.epoch, chunk)) for chunk in chunks]))
                if len(queue) > AHEAD:
                    yield self._batch(*queue.popleft())
            while queue:
                yield self._batch(*queue.popleft())

    def _batch(self, current: Slice, images: list[Future[Array]]) -> Batch:
        image = np.concatenate([future.result() for future in images])
        batch = {"image": torch.from_numpy(image), "text": self.texts(current.pairs)}
        if self.groups is not None:
            batch["group"] = torch.from_numpy(self.groups[current.pairs])
        return batch
