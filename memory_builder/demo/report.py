"""The demo's report: one HTML page that needs no network."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from memory_builder.base.pages import data_uri, render
from memory_builder.base.types import MODALITIES, NO_ROW, Ids, Modality, Scores
from memory_builder.embedding.driver import EmbedReport
from memory_builder.memory import Memory
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query and its hits."""

    text: str | None = None
    image: int | None = None
    """Row id of the picture that is the query."""
    scores: Scores
    ids: Ids


def write_report(
    path: Path, memory: Memory, embedded: EmbedReport, queries: list[Query], timings: dict[str, float]
) -> Path:
    """Write the page; return its path."""
    pictures = _Pictures(memory)
    shown = [_shown(memory, pictures, query) for query in queries]
    page = render(
        "memory_builder.demo/report.html",
        title="memory-builder demo",
        n_rows=embedded.n_rows,
        d=memory.description.d,
        facts=_facts(memory, embedded, timings),
        text_queries=[query for query in shown if query["text"] is not None],
        image_queries=[query for query in shown if query["text"] is None],
    )
    Store(path.parent).put(path.name, page.encode())
    return path


def _facts(memory: Memory, embedded: EmbedReport, timings: dict[str, float]) -> list[tuple[str, str]]:
    return [
        ("shards", f"{embedded.n_shards}, {embedded.n_embedded} embedded by this run"),
        ("rows", f"{embedded.n_rows:,}; {embedded.n_rejects:,} rejects"),
        *((name, f"{memory.snapshot.indexes[name].n_rows:,} vectors, {_recall(memory, name)}") for name in MODALITIES),
        *((stage, f"{seconds:.2f} s") for stage, seconds in timings.items()),
    ]


def _recall(memory: Memory, modality: Modality) -> str:
    sides = memory.tuning(modality)["sides"]
    return ", ".join(f"recall@10 of {side} queries {setting['recall@10']:.3f}" for side, setting in sides.items())


def _shown(memory: Memory, pictures: "_Pictures", query: Query) -> dict[str, Any]:
    """Return the template values of a query and its hits."""
    hits = zip(query.ids.tolist(), query.scores.tolist(), strict=True)
    return {
        "text": query.text,
        "picture": None if query.image is None else _picture(memory, pictures, query.image),
        "hits": [_picture(memory, pictures, row_id) | {"score": score} for row_id, score in hits if row_id != NO_ROW],
    }


def _picture(memory: Memory, pictures: "_Pictures", row_id: int) -> dict[str, Any]:
    row = memory.rows([row_id]).to_pylist()[0]
    return {"name": row["caption"] or "", "source": data_uri(pictures.of(row["id"], row["key"]), "image/png")}


class _Pictures:
    """Reads the encoded pictures of rows, shard by shard."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._by_key = lru_cache(maxsize=None)(self._read)

    def of(self, row_id: int, key: str) -> bytes:
        return self._by_key(self._memory.source(row_id))[key]

    def _read(self, uri: str) -> dict[str, bytes]:
        return {pair.key: pair.image or b"" for pair in read_pairs(uri) if isinstance(pair, Pair)}
