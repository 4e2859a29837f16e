"""Chosen pairs left out of the tars: their pictures are missing, or near duplicates of evaluation pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from memory_builder.memory import Memory
from memory_builder.readers.fetch import Missing
from memory_builder.retrieval.chosen import Pair
from memory_builder.retrieval.copies.compare import ImageSignatures
from memory_builder.retrieval.copies.exclude import Evaluation
from memory_builder.retrieval.copies.thresholds import Thresholds
from memory_builder.retrieval.pieces import OUT

BYTES = "bytes"
"""Kind of evidence besides ``compare.KINDS``: identical files."""
LEAKS_SHOWN = 24
"""Number of leaks of each tar whose pictures are stored for the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A chosen pair that is left out; see OUT."""

    id: int
    key: str
    missing: str | None = None
    evidence: tuple[str, ...] = ()
    set: str | None = None
    set_key: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    thumbnail: bytes | None = None


def left_out(
    pairs: Sequence[Pair], memory: Memory, evaluation: Evaluation | None, limits: Thresholds
) -> dict[int, LeftOut]:
    """Row id → record of each pair that is left out."""
    missing = {
        pair.id: LeftOut(id=pair.id, key=pair.metadata["key"], missing=pair.picture.reason)
        for pair in pairs
        if isinstance(pair.picture, Missing)
    }
    present = [pair for pair in pairs if pair.id not in missing]
    return missing | (_leaks(present, memory, evaluation, limits) if evaluation and present else {})


def _leaks(pairs: Sequence[Pair], memory: Memory, evaluation: Evaluation, limits: Thresholds) -> dict[int, LeftOut]:
    ids = np.array([pair.id for pair in pairs])
    vectors = memory.vectors(ids, "image").astype(np.float16)
    glyphs = np.stack([pair.glyph for pair in pairs if pair.glyph is not None])
    miniatures = np.stack([pair.miniature for pair in pairs if pair.miniature is not None])
    evidence = evaluation.compared.evidence(ImageSignatures(vectors, glyphs, miniatures), least=limits.leak_pixels)
    passed = evidence.passes(limits)
    leaks: dict[int, LeftOut] = {}
    for i, pair in enumerate(pairs):
        same = evaluation.by_bytes.get(pair.sha256)
        others = {kind: int(evidence.others[kind][i]) for kind in passed if passed[kind][i]}
        others = others if same is None else {BYTES: same} | others
        if others:
            which = next(iter(others.values()))
            leaks[pair.id] = LeftOut(
                id=pair.id,
                key=pair.metadata["key"],
                evidence=tuple(others),
                set=evaluation.uris[which],
                set_key=evaluation.keys[which],
                values={kind: float(values[i]) for kind, values in evidence.values.items()},
                thumbnail=pair.thumbnail,
            )
    return leaks


def out_table(left: Sequence[LeftOut]) -> pa.Table:
    """Table of the pairs left out; only the first leaks keep their pictures."""
    shown = [pair.id for pair in left if pair.evidence][:LEAKS_SHOWN]
    rows = [
        {
            "id": pair.id,
            "key": pair.key,
            "missing": pair.missing,
            "evidence": list(pair.evidence),
            "set": pair.set,
            "set_key": pair.set_key,
            **pair.values,
            "thumbnail": pair.thumbnail if pair.id in shown else None,
        }
        for pair in left
    ]
    return pa.Table.from_pylist(rows, schema=OUT)
