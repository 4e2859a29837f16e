"""Hits as people and programs read them: a list of rows for each query."""

from collections.abc import Sequence
from typing import Any

from memory_builder.base.progress import warn
from memory_builder.base.types import NO_ROW, Modality
from memory_builder.catalog.metadata import LOOKUP_FIELDS
from memory_builder.catalog.rows import PATH
from memory_builder.errors import CorruptMemoryError
from memory_builder.memory import Memory
from memory_builder.search.open_index import sides_of
from memory_builder.search.scores import Hits

Answer = list[dict[str, Any]]
"""The rows found for one query, best first: ``score``, and the fields of ``Memory.rows``, ``path`` among them."""


def answers(memory: Memory, hits: Hits, columns: Sequence[str] = ()) -> list[Answer]:
    """One answer for each of the queries of f32[q, k] hits; padding is left out.

    Args:
        memory: that was searched.
        hits: what it found.
        columns: of its metadata, beside the usual ones.
    """
    columns = [name for name in dict.fromkeys(columns) if name not in (*LOOKUP_FIELDS, PATH, "id")]
    n_queries, k = hits.ids.shape
    rows = _rows(memory, hits, columns)
    return [
        [
            {"score": float(score)} | row
            for row, score in zip(rows[i * k : (i + 1) * k], hits.scores[i], strict=True)
            if row["id"] != NO_ROW
        ]
        for i in range(n_queries)
    ]


def _rows(memory: Memory, hits: Hits, columns: Sequence[str]) -> list[dict[str, Any]]:
    """What is shown of each hit; where the metadata is damaged that a path is read from, without paths."""
    try:
        rows: list[dict[str, Any]] = memory.rows(hits.ids, (*LOOKUP_FIELDS, PATH, *columns)).to_pylist()
    except CorruptMemoryError as error:
        if columns:
            raise
        warn(f"{error.problem}; hits are shown without the paths they came from")
        return [row | {PATH: None} for row in memory.rows(hits.ids, LOOKUP_FIELDS).to_pylist()]
    return rows


def stated_recall(memory: Memory, keys: Modality, side: str | None) -> dict[str, float] | None:
    """``recall@10``, tie-aware, and ``strict_recall@10`` that were measured for such queries at the tuned settings.

    Args:
        memory: that is asked.
        keys: what is searched.
        side: what the queries are; for bare vectors (None), the lesser of both.

    Returns:
        None: too few rows to measure with.
    """
    chosen = sides_of(memory.tuning(keys)["sides"], side)
    names = ("recall@10", "strict_recall@10")
    return {name: round(min(one[name] for one in chosen), 4) for name in names} if chosen else None
