"""Batches of a subset's pairs: pictures, or outputs of frozen layers, with their captions."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from memory_builder.base.runner import available_threads
from memory_builder.base.types import Ids
from memory_builder.model.images import decode_image
from trainer.loop.gradient_cache import Batch
from trainer.loop.sampler import BatchIndices
from trainer.react.array_cache import Array
from trainer.react.augment import AugmentConfig, augmented, readers
from trainer.react.config import Augmentation
from trainer.react.subset import ImageLocation, read_picture

CHUNK = 16
"""Pictures of one task of a reader."""
AHEAD = 2
"""Batches read ahead."""
ImageInput = Literal["pixels", "normalised_pixels", "image_tokens", "image_embeddings"]
"""Key and content of a batch's images: u8[b, h, w, 3]; f32[b, 3, h, w]; [b, tokens, width], the outputs of the frozen
blocks; [b, d], the outputs of a frozen tower."""
TextInput = Literal["text_tokens", "text_embeddings"]
"""Key and content of a batch's captions: i64[b, n], or [b, d], the outputs of a frozen tower."""
Read = Callable[[], Array]
"""Task of a reader; picklable where readers are processes."""


def plain_images(locations: Sequence[ImageLocation], resize: Any) -> Array:
    """u8[m, h, w, 3]: pictures with the model's own preprocessing."""
    return np.stack([resize(decode_image(read_picture(location))) for location in locations])


def augmented_images(locations: Sequence[ImageLocation], config: AugmentConfig, epoch: int) -> Array:
    """f32[m, 3, h, w]; see ``augmented``."""
    return np.stack([augmented(read_picture(location), config, epoch, location.pair) for location in locations])


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSource:
    """A ``trainer.loop.loop.BatchSource`` of a subset's pairs."""

    n_pairs: int
    image_input: ImageInput
    read_images: Callable[[int, Ids], Read]
    """(epoch, i64[m] pairs) → a task that returns their images, [m, …]."""
    text_input: TextInput
    texts: Callable[[Ids], Tensor]
    """i64[m] pairs → their captions, [m, …]."""
    groups: Ids | None
    """i64[n] group of each pair: pairs of one group are positives of each other."""
    augmentation: Augmentation
    n_readers: int | None = None

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """Yield batches with images, captions and, if there are groups, ``group``; readers work ahead."""
        with readers(self.augmentation, self.n_readers or available_threads()) as pool:
            queue: deque[tuple[BatchIndices, list[Future[Array]]]] = deque()
            for current in indices:
                chunks = [current.pairs[at : at + CHUNK] for at in range(0, len(current.pairs), CHUNK)]
                queue.append((current, [pool.submit(self.read_images(current.epoch, chunk)) for chunk in chunks]))
                if len(queue) > AHEAD:
                    yield self._batch(*queue.popleft())
            while queue:
                yield self._batch(*queue.popleft())

    def _batch(self, current: BatchIndices, chunks: list[Future[Array]]) -> Batch:
        images = torch.from_numpy(np.concatenate([chunk.result() for chunk in chunks]))
        batch: dict[str, Tensor] = {self.image_input: images, self.text_input: self.texts(current.pairs)}
        if self.groups is not None:
            batch["group"] = torch.from_numpy(self.groups[current.pairs])
        return batch
