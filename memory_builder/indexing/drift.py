"""Drift of appended rows: whether they still fit the quantizer, compared with the held-out rows of its training.

Two measures: the distance of rows to their list's centroid, which drives the loss of codes, and how unevenly they fill
    the lists, which drives latency. Rows of the same distribution have equal values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memory_builder.ann.quantizer import MAX_HELD_OUT
from memory_builder.base.log import logger
from memory_builder.base.types import Ids, Modality, Scores
from memory_builder.catalog.commits import Commit
from memory_builder.catalog.description import read_description
from memory_builder.catalog.manifest import Manifest
from memory_builder.catalog.rows import Rows
from memory_builder.errors import CorruptMemoryError
from memory_builder.indexing.train import read_held_out
from memory_builder.search.open_index import OpenIndex
from memory_builder.storage.store import Store

LEAST_SAMPLE = 50
"""Smallest sample to compare."""
MORE_ERROR = 1.25
MORE_IMBALANCE = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Fit of a sample of rows to a quantizer."""

    error: float
    """Mean squared distance to the nearest centroid, divided by the rows' mean squared length."""
    imbalance: float
    """Expected rows in the list of a random row, as a multiple of an even spread; 1: even."""


def warn_of_drift(store: Store, folder: str, modality: Modality, commits: Sequence[Commit], deleted: Ids) -> None:
    """Warn if the rows of these shards no longer fit the quantizer of the index in ``folder``."""
    try:
        fits = measure_drift(store, folder, modality, commits, deleted)
    except CorruptMemoryError as error:  # the append itself succeeded
        logger.warning(f"whether the appended rows fit the {modality} index was not measured: {error}")
        return
    if fits is None:
        return
    trained, appended = fits
    if appended.error > MORE_ERROR * trained.error or appended.imbalance > MORE_IMBALANCE * trained.imbalance:
        logger.warning(
            f"the appended rows do not fit the {modality} index: distance to their lists {appended.error:.3f} "
            f"(trained for {trained.error:.3f}), imbalance of lists {appended.imbalance:.1f} (trained for "
            f"{trained.imbalance:.1f}); recall may fall below the target: retrain with memory-builder index"
        )


def measure_drift(
    store: Store, folder: str, modality: Modality, commits: Sequence[Commit], deleted: Ids | None = None
) -> tuple[Fit, Fit] | None:
    """(fit of held-out rows, fit of these shards' rows); None for an exact index or too small samples.

    Deleted rows (i64[n], ascending) of these shards are left out.
    """
    index = OpenIndex(store, folder, [])
    if index.is_exact:
        return None
    d = read_description(store).d
    known = Manifest.read(store).commits
    rows, held_out = Rows(store, known, d), read_held_out(store, folder, known)
    new = Rows(store, {commit.ordinal: commit for commit in commits}, d, deleted)
    n_rows = new.n_present(modality)
    drawn = np.random.default_rng(0).choice(n_rows, min(n_rows, MAX_HELD_OUT), replace=False)
    samples = [rows.vectors(held_out, modality), new.vectors(new.ids_at(np.sort(drawn), modality), modality)]
    samples = [sample[sample.any(axis=1)] for sample in samples]
    if min(map(len, samples)) < LEAST_SAMPLE:
        return None
    trained, appended = (_fit(index, sample) for sample in samples)
    return trained, appended


def _fit(index: OpenIndex, sample: Scores) -> Fit:
    """f32[n, d] → the fit of these rows."""
    queries, _, lists = index.probe(sample, 1)
    error = np.square(queries - index.centroids(lists[:, 0])).sum(axis=1).mean() / np.square(queries).sum(axis=1).mean()
    return Fit(error=float(error), imbalance=_imbalance(lists[:, 0], index.n_lists))


def _imbalance(lists: npt.NDArray[np.int64], n_lists: int) -> float:
    """Estimate faiss's imbalance factor without the bias of a sample smaller than the number of lists."""
    counts = np.bincount(lists, minlength=n_lists).astype(np.float64)
    return float(n_lists * (counts * (counts - 1)).sum() / (len(lists) * (len(lists) - 1)))
