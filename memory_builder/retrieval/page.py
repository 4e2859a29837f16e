"""``subset.html``: the subset class by class, on one page that needs no network."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.base.charts import histogram
from memory_builder.base.drawing import Chart
from memory_builder.base.pages import data_uri, render
from memory_builder.catalog.paths import shard_name
from memory_builder.errors import MemoryBuilderError
from memory_builder.model.images import BadImageError, decode_image, thumbnail
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.retrieval.fetch import THUMBNAIL
from memory_builder.retrieval.pieces import LEFT_OUT, STRIPS
from memory_builder.retrieval.summary import Summary
from memory_builder.storage.formats import read_parquet
from memory_builder.storage.store import Store

CLASSES_SHOWN = 200
"""Number of classes with pictures; of more classes, those at even steps from the emptiest to the fullest."""
LEAKS_SHOWN = 60


def write_page(store: Store, summary: Summary, claims: pa.Table) -> None:
    """Write the page.

    Args:
        claims: table of schema ``summary.CLAIMS``.
    """
    pieces = range(len(summary.chosen.pieces))
    leaks = [row for row in _read(store, LEFT_OUT, pieces).to_pylist() if row["evidence"]]
    strips = _read(store, STRIPS, pieces)
    pictures = dict(zip(strips["id"].to_pylist(), map(_webp, strips["thumbnail"].to_pylist()), strict=True))
    page = render(
        "memory_builder.retrieval/subset.html",
        title=f"{summary.pairs:,} pairs for {summary.classes:,} classes",
        summary=summary,
        charts=_charts(summary, claims),
        leaks=_leaks(leaks),
        classes=_classes(summary, claims, pictures),
    )
    store.put("subset.html", page.encode())


def _read(store: Store, folder: str, pieces: Iterable[int]) -> pa.Table:
    tables = [read_parquet(store.read(f"{folder}/{shard_name(number)}.parquet")) for number in pieces]
    return pa.concat_tables(tables) if tables else pa.table({name: [] for name in ("id", "thumbnail", "evidence")})


def _charts(summary: Summary, claims: pa.Table) -> list[Chart]:
    labels, scores = claims["label"].to_numpy(), claims["score"].to_numpy()
    best = scores[np.flatnonzero(np.diff(labels, prepend=-1))]
    charts = (
        histogram(np.array(summary.counts), "Pairs of each class", "pairs", "classes"),
        histogram(scores, "Scores of all matches", "cosine", "matches"),
        histogram(best, "Best score of each class", "cosine", "classes"),
    )
    return [chart for chart in charts if chart is not None]


def _classes(summary: Summary, claims: pa.Table, pictures: dict[int, str]) -> list[dict[str, Any]]:
    """Name, label, number of pairs, and (picture, score) of the best pairs of each shown class."""
    starts = np.searchsorted(claims["label"].to_numpy(), np.arange(summary.classes + 1))
    classes = []
    for label in _shown(np.array(summary.counts)):
        first, end = int(starts[label]), int(starts[label + 1])
        best = claims.slice(first, min(end - first, summary.config.strip))
        pairs = zip(best["id"].to_pylist(), best["score"].to_pylist(), strict=True)
        classes.append(
            {
                "name": summary.class_names[label],
                "label": label,
                "count": summary.counts[label],
                "strip": [(pictures[row_id], score) for row_id, score in pairs if row_id in pictures],
            }
        )
    return classes


def _shown(counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[int]:
    if len(counts) <= CLASSES_SHOWN:
        return list(range(len(counts)))
    by_count = np.argsort(counts, kind="stable")
    return [int(i) for i in by_count[np.linspace(0, len(counts) - 1, CLASSES_SHOWN).round().astype(int)]]


def _leaks(leaks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shown leaks, each with the memory's picture and, if it still exists, the evaluation picture."""
    shown = [leak for leak in leaks if leak["thumbnail"]][:LEAKS_SHOWN]
    evaluation = _evaluation_pictures(shown)
    return [
        {
            **leak,
            "picture": _webp(leak["thumbnail"]),
            "evaluation_picture": evaluation.get((leak["set"], leak["set_key"])),
        }
        for leak in shown
    ]


def _evaluation_pictures(leaks: Sequence[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Read the evaluation pictures that still exist as thumbnails."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for leak in leaks:
        wanted[leak["set"]].add(leak["set_key"])
    pictures = {}
    for uri, keys in wanted.items():
        try:
            for pair in read_pairs(uri, require="image", only=frozenset(keys)):
                if isinstance(pair, Pair) and pair.image:
                    pictures[uri, pair.key] = _webp(thumbnail(decode_image(pair.image), THUMBNAIL))
        except (MemoryBuilderError, BadImageError):  # a page without a picture is better than none
            continue
    return pictures


def _webp(data: bytes) -> str:
    return data_uri(data, "image/webp")
