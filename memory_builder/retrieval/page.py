"""``subset.html``: what a subset holds, class by class, on one page that needs no network."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.catalog.paths import shard_name
from memory_builder.errors import MemoryBuilderError
from memory_builder.model.images import BadImageError, decode_image, thumbnail
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.retrieval.charts import histogram, table
from memory_builder.retrieval.fetch import THUMBNAIL
from memory_builder.retrieval.pieces import LEFT_OUT, STRIPS
from memory_builder.retrieval.summary import Summary
from memory_builder.storage.formats import read_parquet
from memory_builder.storage.store import Store

CLASSES_SHOWN = 200
"""With pictures; of more classes the emptiest and the fullest, and some between."""
LEAKS_SHOWN = 60
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2933; --soft: #56616e; --line: #d5dae0; --bar: #1f5fbf; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e6eaee; --soft: #a4afbb; --line: #39424d;
  --bar: #7aaaf0; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
p { margin: .25rem 0; max-width: 46rem; } .soft, figcaption { color: var(--soft); }
.scroll { overflow-x: auto; margin: .75rem 0; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; } td:nth-child(2) { text-align: right; white-space: nowrap; }
figure { margin: 0; } .plots { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; margin: 1rem 0; }
.plots figure { flex: 1 1 18rem; min-width: 0; max-width: 26rem; } .plots svg { width: 100%; height: auto; }
.plots rect { fill: var(--bar); } .plots text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.class { display: flex; gap: 1rem; padding: .6rem 0; border-top: 1px solid var(--line); }
.class > div:first-child { flex: 0 0 11rem; font-weight: 600; }
.class > div:first-child span { display: block; font-weight: 400; font-size: .85rem; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; min-width: 0; }
img { width: 64px; height: 64px; object-fit: contain; border-radius: 6px; background: #fff; display: block; }
.strip figcaption { font-size: .72rem; line-height: 1.3; width: 64px; }
.leaks { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; margin: 1rem 0; }
.leaks > div { display: flex; gap: .5rem; font-size: .78rem; line-height: 1.35; } .leaks p { min-width: 0; margin: 0; }
@media (max-width: 40rem) { .class { flex-direction: column; gap: .35rem; } .class > div:first-child { flex: none; } }
"""


def write_page(store: Store, summary: Summary, claims: pa.Table) -> None:
    """Write it.

    Args:
        claims: see ``summary.CLAIMS``.
    """
    pieces = range(len(summary.chosen.pieces))
    strips = _read(store, STRIPS, pieces)
    pictures = dict(zip(strips["id"].to_pylist(), strips["thumbnail"].to_pylist(), strict=True))
    leaks = [row for row in _read(store, LEFT_OUT, pieces).to_pylist() if row["evidence"]]
    title = f"{summary.pairs:,} pairs for {summary.classes:,} classes"
    sections = (_facts(summary), _plots(summary, claims), _leaks(leaks, summary), _classes(summary, claims, pictures))
    body = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style></head>
<body><main><h1>{title}</h1><p class=soft>Retrieved from {escape(summary.memory)} with {escape(summary.model)}.</p>
{"".join(sections)}</main></body></html>
"""
    store.put("subset.html", body.encode())


def _read(store: Store, folder: str, pieces: Iterable[int]) -> pa.Table:
    tables = [read_parquet(store.read(f"{folder}/{shard_name(number)}.parquet")) for number in pieces]
    return pa.concat_tables(tables) if tables else pa.table({name: [] for name in ("id", "thumbnail", "evidence")})


def _facts(summary: Summary) -> str:
    names = ", ".join(str(c["class"]) for c in summary.empty_classes)
    return table([*summary.facts(), ("empty classes", f"{len(summary.empty_classes):,}", names)])


def _plots(summary: Summary, claims: pa.Table) -> str:
    counts = histogram(np.array(summary.counts), title="Pairs a class", across="pairs", up="number of classes")
    labels, scores = claims["label"].to_numpy(), claims["score"].to_numpy()
    all_scores = histogram(scores, title="Scores of all claims", across="cosine", up="number of claims")
    best = scores[np.flatnonzero(np.diff(labels, prepend=-1))]
    bests = histogram(best, title="Best score of each class", across="cosine", up="number of classes")
    return f'<div class="plots">{counts}{all_scores}{bests}</div>'


def _classes(summary: Summary, claims: pa.Table, pictures: dict[int, bytes]) -> str:
    labels = claims["label"].to_numpy()
    strips: dict[int, list[tuple[int, float]]] = defaultdict(list)
    starts = np.searchsorted(labels, np.arange(summary.classes + 1))
    shown = _shown(np.array(summary.counts))
    for label in shown:
        some = claims.slice(int(starts[label]), int(min(starts[label + 1] - starts[label], summary.config.strip)))
        strips[label] = list(zip(some["id"].to_pylist(), some["score"].to_pylist(), strict=True))
    more = (
        f"{len(shown)} of {summary.classes:,}, from the emptiest to the fullest. "
        if len(shown) < summary.classes
        else ""
    )
    sections = "".join(_class(label, summary, strips[label], pictures) for label in shown)
    return f"<h2>Classes</h2><p class=soft>{more}The best pairs of each, with their cosine.</p>{sections}"


def _shown(counts: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[int]:
    if len(counts) <= CLASSES_SHOWN:
        return list(range(len(counts)))
    by_count = np.argsort(counts, kind="stable")
    return [int(i) for i in by_count[np.linspace(0, len(counts) - 1, CLASSES_SHOWN).round().astype(int)]]


def _class(label: int, summary: Summary, strip: Sequence[tuple[int, float]], pictures: dict[int, bytes]) -> str:
    figures = "".join(
        f"<figure>{_image(pictures[row_id], '')}<figcaption>{score:.3f}</figcaption></figure>"
        for row_id, score in strip
        if row_id in pictures
    )
    name, count = escape(summary.class_names[label]), summary.counts[label]
    return (
        f'<section class="class"><div>{name}<span class=soft>{count:,} pairs, label {label}</span></div>'
        f'<div class="strip">{figures}</div></section>'
    )


def _leaks(leaks: Sequence[dict[str, Any]], summary: Summary) -> str:
    if not leaks:
        return ""
    shown = [leak for leak in leaks if leak["thumbnail"]][:LEAKS_SHOWN]
    asked = _evaluation_pictures(shown)
    pairs = "".join(_leak(leak, asked.get((leak["set"], leak["set_key"]))) for leak in shown)
    return (
        f"<h2>Left out as copies of evaluation pictures</h2><p class=soft>{len(shown)} of {summary.decontaminated:,}: "
        f'the memory\'s picture, then the evaluation picture.</p><div class="leaks">{pairs}</div>'
    )


def _leak(leak: dict[str, Any], other: bytes | None) -> str:
    told = (
        f"by {', '.join(leak['evidence'])}: cosine {leak['embedding']:.3f}, {leak['hash']:.0f} bits, "
        f"{leak['miniature']:.1f} levels, "
        f"correlation {leak['pixels']:.3f}"
    )
    shown = _image(leak["thumbnail"], leak["key"]) + (_image(other, leak["set_key"]) if other else "")
    return f"<div>{shown}<p>{escape(leak['key'])} <span class=soft>{told}</span></p></div>"


def _evaluation_pictures(leaks: Sequence[dict[str, Any]]) -> dict[tuple[str, str], bytes]:
    """Thumbnails of what was copied, as far as it is still there."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for leak in leaks:
        wanted[leak["set"]].add(leak["set_key"])
    found = {}
    for uri, keys in wanted.items():
        try:
            for pair in read_pairs(uri, require="image", only=frozenset(keys)):
                if isinstance(pair, Pair) and pair.image:
                    found[uri, pair.key] = thumbnail(decode_image(pair.image), THUMBNAIL)
        except (MemoryBuilderError, BadImageError):  # the page is no reason to fail: the counts stand
            continue
    return found


def _image(data: bytes, text: str) -> str:
    return f'<img alt="{escape(text)}" src="data:image/webp;base64,{base64.b64encode(data).decode()}">'
