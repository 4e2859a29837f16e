"""The demo's report: one HTML page that needs no network."""

import base64
import html
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from memory_builder.base.types import NO_ROW, Ids, Modality, Scores
from memory_builder.embedding.driver import EmbedReport
from memory_builder.memory import Memory
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.storage.store import Store

KEYS: tuple[Modality, ...] = ("image", "text")
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; }
section { border-top: 1px solid var(--line); padding: .8rem 0; display: flex; gap: 1rem; align-items: flex-start; }
.query { flex: 0 0 7rem; font-weight: 600; } .hits { display: flex; flex-wrap: wrap; gap: .6rem; }
figure { margin: 0; width: 68px; } img { width: 64px; height: 64px; border-radius: 6px; background: #fff; }
figcaption { font-size: 11px; line-height: 1.25; color: var(--soft); overflow-wrap: anywhere; }
@media (max-width: 40rem) { section { flex-direction: column; gap: .4rem; } .query { flex: none; } }
"""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One question and its answer."""

    text: str | None = None
    image: int | None = None
    """Row id of the picture asked with."""
    scores: Scores
    ids: Ids


def write_report(
    path: Path, memory: Memory, embedded: EmbedReport, queries: list[Query], timings: dict[str, float]
) -> Path:
    """Write the page; return its path."""
    pictures = _Pictures(memory)
    texts = "".join(_section(memory, pictures, query) for query in queries if query.text is not None)
    images = "".join(_section(memory, pictures, query) for query in queries if query.image is not None)
    body = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>memory-builder demo</title>
<style>{STYLE}</style><h1>memory-builder demo</h1>
<p>{embedded.n_rows:,} icons with their names, embedded by a small CLIP ({memory.description.d} dimensions), indexed by
picture and by name, and asked. Below each picture: its name and its score, the cosine of query and picture.</p>
{_facts(memory, embedded, timings)}
<h2>Asked with words</h2>{texts}<h2>Asked with pictures</h2>{images}</html>"""
    Store(path.parent).put(path.name, body.encode())
    return path


def _facts(memory: Memory, embedded: EmbedReport, timings: dict[str, float]) -> str:
    rows = [
        ("shards", f"{embedded.n_shards}, {embedded.n_embedded} embedded by this run"),
        ("rows", f"{embedded.n_rows:,}; {embedded.n_rejects:,} rejects"),
        *((keys, f"{memory.snapshot.indexes[keys].n_rows:,} vectors, {_recall(memory, keys)}") for keys in KEYS),
        *((stage, f"{seconds:.2f} s") for stage, seconds in timings.items()),
    ]
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def _recall(memory: Memory, keys: Modality) -> str:
    sides = memory.tuning(keys)["sides"]
    return ", ".join(f"recall@10 of {side} queries {found['recall@10']:.3f}" for side, found in sides.items())


def _section(memory: Memory, pictures: "_Pictures", query: Query) -> str:
    asked = html.escape(query.text or "") if query.image is None else _figure(memory, pictures, query.image, None)
    hits = zip(query.ids.tolist(), query.scores.tolist(), strict=True)
    figures = "".join(_figure(memory, pictures, row_id, score) for row_id, score in hits if row_id != NO_ROW)
    return f'<section><div class="query">{asked}</div><div class="hits">{figures}</div></section>'


def _figure(memory: Memory, pictures: "_Pictures", row_id: int, score: float | None) -> str:
    row = memory.rows([row_id]).to_pylist()[0]
    name = html.escape(row["caption"] or "")
    source = base64.b64encode(pictures.of(row["id"], row["key"])).decode()
    below = name if score is None else f"{name} {score:.2f}"
    return f'<figure><img alt="{name}" src="data:image/png;base64,{source}"><figcaption>{below}</figcaption></figure>'


class _Pictures:
    """The encoded pictures of rows, shard by shard."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._by_key = lru_cache(maxsize=None)(self._read)

    def of(self, row_id: int, key: str) -> bytes:
        return self._by_key(self._memory.source(row_id))[key]

    def _read(self, uri: str) -> dict[str, bytes]:
        return {pair.key: pair.image or b"" for pair in read_pairs(uri) if isinstance(pair, Pair)}
