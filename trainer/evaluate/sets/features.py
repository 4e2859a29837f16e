"""Embedded evaluation sets: computed once for a model and a set, stored in the run's folder, shared by all tasks.

A folder ``eval/features/HASH`` holds ``images.npy``, ``texts.npy``, ``examples.parquet`` and, written last,
``record.json``; the hash covers the model's fingerprint, the set's digest, and the batch size (for the last bits).
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from memory_builder.base.log import logger
from memory_builder.base.prefetch import map_ahead
from memory_builder.base.runner import available_threads
from memory_builder.base.types import Pixels
from memory_builder.errors import SourceError
from memory_builder.model.images import BadImageError
from memory_builder.storage.formats import npy_bytes, parquet_bytes, read_npy, read_parquet
from memory_builder.storage.store import Store, sha256
from trainer.evaluate.numbers.arrays import Floats, Labels
from trainer.evaluate.sets.datasets import Dataset
from trainer.evaluate.sets.examples import Example

if TYPE_CHECKING:
    from trainer.evaluate.sets.towers import Towers  # open_clip takes seconds to import

FOLDER = "eval/features"
SHOWN_EVERY = 5_000
"""Pictures between progress lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """An embedded evaluation set."""

    dataset: Dataset
    images: Floats
    """f32[n, d] unit rows."""
    texts: Floats
    """f32[m, d] unit rows: the captions of all pictures in order; m = 0 except for retrieval."""
    examples: pa.Table
    """n rows: key, sha256 of the picture, labels, captions."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def keys(self) -> list[str]:
        keys: list[str] = self.examples["key"].to_pylist()
        return keys

    @property
    def labels(self) -> Labels:
        """i64[n] labels of a classification set."""
        return np.array([labels[0] for labels in self.examples["labels"].to_pylist()], np.int64)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """bool[n, c] labels of a multilabel set."""
        present = np.zeros((len(self), len(self.dataset.classes)), np.bool_)
        for i, labels in enumerate(self.examples["labels"].to_pylist()):
            present[i, labels] = True
        return present

    @property
    def captions(self) -> list[list[str]]:
        """Captions of each picture of a retrieval set."""
        captions: list[list[str]] = self.examples["captions"].to_pylist()
        return captions


def embed_dataset(dataset: Dataset, towers: "Towers", run: Store, batch_size: int = 64) -> Embedded:
    """Embed a set, or read its embeddings from the run's folder.

    Raises:
        SourceError: a sample is invalid, or its picture cannot be decoded.
        EncoderError: an embedding is not finite.
    """
    settings = {"fingerprint": towers.fingerprint, "dataset": dataset.digest(), "batch_size": batch_size}
    folder = f"{FOLDER}/{sha256(json.dumps(settings).encode())[:16]}"
    if run.exists(f"{folder}/record.json"):
        embedded = _read(dataset, run, folder)
        if np.isfinite(embedded.images).all() and np.isfinite(embedded.texts).all():  # older versions did not check
            return embedded
    _embed(dataset, towers, run, folder, batch_size)
    run.put(f"{folder}/record.json", json.dumps(settings).encode())
    return _read(dataset, run, folder)


def _read(dataset: Dataset, run: Store, folder: str) -> Embedded:
    return Embedded(
        dataset=dataset,
        images=read_npy(run.fetch(f"{folder}/images.npy")),
        texts=read_npy(run.fetch(f"{folder}/texts.npy")),
        examples=read_parquet(run.read(f"{folder}/examples.parquet")),
    )


def _embed(dataset: Dataset, towers: "Towers", run: Store, folder: str, batch_size: int) -> None:
    images, texts = [np.zeros((0, towers.d), np.float32)], [np.zeros((0, towers.d), np.float32)]
    rows = []
    for examples, pixels in picture_batches(dataset, towers, batch_size):
        images.append(towers.encode_images(pixels))
        captions = [caption for example in examples for caption in example.captions]
        if captions:
            texts.append(towers.encode_texts(captions))
        rows += [_row(example) for example in examples]
        if len(rows) // SHOWN_EVERY > (len(rows) - len(examples)) // SHOWN_EVERY:
            logger.info(f"{dataset.root} {dataset.split}: {len(rows):,} pictures embedded")
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("sha256", pa.string()),
            ("labels", pa.list_(pa.int64())),
            ("captions", pa.list_(pa.string())),
        ]
    )
    run.put(f"{folder}/images.npy", npy_bytes(np.concatenate(images)))
    run.put(f"{folder}/texts.npy", npy_bytes(np.concatenate(texts)))
    run.put(f"{folder}/examples.parquet", parquet_bytes(pa.Table.from_pylist(rows, schema)))


def picture_batches(
    dataset: Dataset, towers: "Towers", batch_size: int, only: frozenset[str] | None = None
) -> Iterator[tuple[list[Example], Pixels]]:
    """Batches of (examples, u8[b, h, w, 3]), decoded in threads two batches ahead."""
    with ThreadPoolExecutor(available_threads()) as threads:
        decoded = map_ahead(
            partial(_decoded, dataset=dataset, towers=towers), dataset.examples(only), threads, 2 * batch_size
        )
        while batch := list(islice(decoded, batch_size)):
            yield [example for example, _ in batch], np.stack([pixels for _, pixels in batch])


def _decoded(example: Example, *, dataset: Dataset, towers: "Towers") -> tuple[Example, Pixels]:
    try:
        return example, towers.pixels(example.image)
    except BadImageError as error:
        raise SourceError(
            f"{dataset.root} {dataset.split}: picture {example.key} cannot be decoded ({error}): repair it, or remove "
            "it with its label"
        ) from None


def _row(example: Example) -> dict[str, object]:
    return {
        "key": example.key,
        "sha256": sha256(example.image),
        "labels": list(example.labels),
        "captions": list(example.captions),
    }
