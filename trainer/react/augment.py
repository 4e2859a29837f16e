"""REACT's image augmentation (timm), reproducible for each picture and epoch.

The transform draws from the global generators of Python, numpy and torch. They are seeded with (seed, epoch, pair)
before each picture, so the result does not depend on the process or the order.
"""

import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memory_builder.model.images import decode_image
from trainer.react.config import Augmentation


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Input size and normalisation of a model, and the seed of its augmentation."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int


def augmented(picture: bytes, config: AugmentConfig, epoch: int, pair: int) -> npt.NDArray[np.float32]:
    """An encoded picture → f32[3, size, size], augmented and normalised. Not thread-safe.

    The settings are those of the official repository: crop 8 to 100 %, flip, RandAugment rand-m9-mstd0.5-inc1, random
    erasing 0.25. They name a colour jitter of 0.4 too, which timm leaves out beside RandAugment.
    """
    transform = _transform(config)
    entropy = np.random.SeedSequence((config.seed, epoch, pair)).generate_state(3)
    random.seed(int(entropy[0]))
    np.random.seed(entropy[1])
    torch.manual_seed(int(entropy[2]))
    pixels: npt.NDArray[np.float32] = transform(decode_image(picture)).numpy()
    return pixels


@lru_cache(maxsize=1)
def _transform(config: AugmentConfig) -> Any:
    from timm.data.transforms_factory import create_transform

    return create_transform(
        input_size=config.size,
        is_training=True,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        hflip=0.5,
        interpolation="bicubic",
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=config.mean,
        std=config.std,
    )


@contextmanager
def readers(augmentation: Augmentation, n: int) -> Iterator[Executor]:
    """A pool of threads, or of processes where augmentation uses global generators; closed with the block."""
    if augmentation == "none":
        with ThreadPoolExecutor(n) as threads:
            yield threads
        return
    context = multiprocessing.get_context("forkserver")  # a fork of a process with threads may hang
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(n, mp_context=context, initializer=_start_reader) as processes:
        try:
            yield processes
        finally:
            processes.shutdown(wait=True, cancel_futures=True)


def _start_reader() -> None:
    """Set up a reader process: one thread of torch, and an exit as soon as its parent is gone, killed or not."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
