"""``Summary``: ``subset.json``, the counts of a subset, and its final claims."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from memory_builder.catalog.paths import shard_name
from memory_builder.memory import Memory
from memory_builder.retrieval.chosen import Chosen, read_piece
from memory_builder.retrieval.classes import Class
from memory_builder.retrieval.config import RetrieveConfig
from memory_builder.retrieval.copies.exclude import done_excluded
from memory_builder.retrieval.pieces import LEFT_OUT, done_pieces
from memory_builder.retrieval.search import done_blocks
from memory_builder.storage.formats import read_parquet
from memory_builder.storage.store import Store

CLAIMS = pa.schema([("label", pa.int32()), ("id", pa.int64()), ("score", pa.float32()), ("value", pa.float32())])
"""Claims on pairs of the subset, by label, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Counts of a subset, and of pairs left out by reason."""

    pairs: int
    classes: int
    empty_classes: list[dict[str, Any]]
    """label and class of classes without a pair."""
    decontaminated: int
    """Number of pairs left out as near duplicates of evaluation pictures."""
    evidence: dict[str, int]
    """Kind of evidence → number of these pairs with it."""
    missing: int
    """Number of pairs with missing pictures."""
    missing_by_reason: dict[str, int]
    tars: int
    bytes: int
    queries: int
    short_queries: int
    """Number of queries with fewer hits than --per-query."""
    chosen: Chosen
    counts: list[int]
    """Number of pairs of each class."""
    excluded_pictures: int
    excluded_unreadable: int
    """Number of evaluation pictures that cannot be decoded, and so were not compared."""
    memory: str
    model: str
    fingerprint: str
    snapshot: int
    class_names: list[str]
    config: RetrieveConfig

    def line(self) -> dict[str, Any]:
        """The fields that ``--json`` prints."""
        names = ("pairs", "classes", "empty_classes", "decontaminated", "missing")
        return {name: asdict(self)[name] for name in names}

    def facts(self) -> list[tuple[str, str, str]]:
        """Rows of (name, number, remark), from queries to written pairs."""
        chosen, ask, dedup = self.chosen, self.config.ask, self.config.dedup
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.missing_by_reason.items())
        evidence = ", ".join(f"{n:,} by {kind}" for kind, n in self.evidence.items())
        against = f"compared with {self.excluded_pictures:,} evaluation pictures"
        return [
            ("modes", ", ".join(ask.modes), f"{ask.per_query:,} rows a query"),
            ("queries", f"{self.queries:,}", f"{self.short_queries:,} with fewer hits"),
            ("hits", f"{chosen.n_hits:,}", f"{chosen.n_below:,} below the least score"),
            ("rows claimed", f"{chosen.n_rows:,}", ""),
            ("identical files", f"−{chosen.n_same_bytes:,}", "of an earlier pair"),
            ("near duplicates", f"−{chosen.n_near_duplicates:,}", f"cosine {dedup}" if dedup else "off (--dedup)"),
            ("incomplete", f"−{chosen.n_incomplete:,}", "without a picture or a caption"),
            ("chosen", f"{sum(chosen.pieces):,}", "within the caps"),
            ("leaks", f"−{self.decontaminated:,}", f"{against}{': ' if evidence else ''}{evidence}"),
            ("missing", f"−{self.missing:,}", reasons),
            ("written", f"{self.pairs:,}", f"{self.tars} tars, {self.bytes / 1e6:,.1f} MB"),
        ]


def summarise(
    classes: Sequence[Class], config: RetrieveConfig, store: Store, memory: Memory, chosen: Chosen
) -> tuple[Summary, pa.Table]:
    """Return the summary, and the claims (CLAIMS) on written pairs."""
    claims = final_claims(store, len(chosen.pieces))
    counts = np.bincount(claims["label"].to_numpy(), minlength=len(classes))
    pieces, blocks = list(done_pieces(store).values()), list(done_blocks(store).values())
    excluded = list(done_excluded(store).values())
    missing = _added(piece.missing for piece in pieces)
    summary = Summary(
        pairs=sum(piece.n_pairs for piece in pieces),
        classes=len(classes),
        empty_classes=[{"label": c.label, "class": c.name} for c in classes if not counts[c.label]],
        decontaminated=sum(piece.n_leaks for piece in pieces),
        evidence=_added(piece.evidence for piece in pieces),
        missing=sum(missing.values()),
        missing_by_reason=missing,
        tars=len(pieces),
        bytes=sum(piece.n_bytes for piece in pieces),
        queries=sum(block.n_queries for block in blocks),
        short_queries=sum(block.n_short for block in blocks),
        chosen=chosen,
        counts=counts.tolist(),
        excluded_pictures=sum(item.n_pictures for item in excluded),
        excluded_unreadable=sum(item.n_unreadable for item in excluded),
        memory=memory.store.root,
        model=memory.description.model,
        fingerprint=memory.description.fingerprint,
        snapshot=memory.snapshot.number,
        class_names=[c.name for c in classes],
        config=config,
    )
    return summary, claims


def final_claims(store: Store, n_pieces: int) -> pa.Table:
    """Read the claims on written pairs."""
    columns: list[list[Any]] = [[np.zeros(0, dtype)] for dtype in (np.int32, np.int64, np.float32, np.float32)]
    for number in range(n_pieces):
        piece = read_piece(store, number)
        left = read_parquet(store.read(f"{LEFT_OUT}/{shard_name(number)}.parquet"))["id"].to_numpy()
        piece = piece.filter(pa.array(~np.isin(piece["id"].to_numpy(), left)))
        lists = [piece[name].combine_chunks() for name in ("labels", "scores", "values")]
        labels, scores, values = (np.asarray(column.flatten()) for column in lists)
        sizes = np.asarray(lists[0].value_lengths()) if len(piece) else np.zeros(0, np.int64)
        for column, array in zip(
            columns, (labels, np.repeat(piece["id"].to_numpy(), sizes), scores, values), strict=True
        ):
            column.append(array)
    labels, ids, scores, values = (np.concatenate(column) for column in columns)
    order = np.lexsort((ids, -values, labels))
    table = {"label": labels[order], "id": ids[order], "score": scores[order], "value": values[order]}
    return pa.table(table, schema=CLAIMS)


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counter in counts:
        total.update(counter)
    return dict(sorted(total.items()))
