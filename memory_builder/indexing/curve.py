"""Curves of recall against work, for each query modality and modality of an index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory_builder.base.types import Modality
from memory_builder.catalog.snapshots import read_snapshot, read_tuning
from memory_builder.errors import BUILD_AGAIN
from memory_builder.storage.records import decode_value, reading, strict_record
from memory_builder.storage.store import Store

BAR_WIDTH = 24
EIGHTHS = " ▏▎▍▌▋▊▉"
RECALL_AT = (1, 10, 100)


@strict_record
@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """Search parameters with their recall and work."""

    nprobe: int
    refine: int
    recall: dict[str, float]
    """Tie-aware recall@k by k; 100 only for points with measured latency."""
    strict_recall: dict[str, float]
    recall10_error: float
    """Standard error of recall@10 over the queries."""
    codes: float
    """Codes scanned for each query."""
    rows_read: float
    """Rows read for re-ranking each query."""
    work_bytes: float
    """Bytes touched for each query; tuning minimises them."""
    seconds: float
    """Seconds for each query, in a batch of all; not used in tuning."""
    p50_s: float | None = None
    """Latency of single queries for ten rows; measured for the points of the frontier."""
    p99_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Recall of queries of one modality among vectors of one modality."""

    query_modality: Modality
    modality: Modality
    points: tuple[Point, ...]
    """Points of the frontier: recall@10 rises with the work."""
    chosen: Point | None
    """Point in use for searches; None if it is not on the curve."""

    @property
    def name(self) -> str:
        """Name of the direction: T2I, I2I, T2T or I2T."""
        return f"{self.query_modality[0]}2{self.modality[0]}".upper()


def frontier(points: Sequence[Point]) -> list[Point]:
    """Pareto frontier in order of work: each point has a higher recall@10 than all with less work."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.work_bytes, -point.recall["10"])):
        if not best or point.recall["10"] > best[-1].recall["10"]:
            best.append(point)
    return best


def read_curves(store: Store) -> list[Curve]:
    """Read the curves of a memory's current indexes; empty without an index.

    Raises:
        CorruptMemoryError: a tuning file is missing or damaged.
    """
    curves = []
    for modality, view in read_snapshot(store).indexes.items():
        tuning, where = read_tuning(store, view), f"{store.root}/{view.index}/{view.tuning}"
        with reading(where, BUILD_AGAIN):
            for query_modality, points in tuning["curves"].items():
                measured = [decode_value(Point, point, where=where, fix=BUILD_AGAIN) for point in points]
                curves.append(_curve(query_modality, modality, measured, tuning["sides"][query_modality]))
    return curves


def _curve(query_modality: Any, modality: Any, measured: list[Point], setting: dict[str, Any]) -> Curve:
    in_use = (setting["nprobe"], setting["refine"])
    chosen = next((point for point in measured if (point.nprobe, point.refine) == in_use), None)
    return Curve(query_modality=query_modality, modality=modality, points=tuple(frontier(measured)), chosen=chosen)


def curve_rows(curve: Curve) -> list[dict[str, str]]:
    """Format each point as a line of work, recall and a bar for the terminal; unmeasured values are blank."""
    shown = [*curve.points, *([curve.chosen] if curve.chosen and curve.chosen not in curve.points else [])]
    ordered = sorted(shown, key=lambda point: (point.work_bytes, point.recall["10"]))
    return [
        {
            "work": bytes_text(point.work_bytes),
            "recall@10": f"{point.recall['10']:.3f}",
            " ": _bar(point.recall["10"]),
            **{f"@{k}": _number(point.recall.get(str(k)), 3) for k in RECALL_AT if k != 10},
            "p50 ms": _number(point.p50_s, 2, 1e3),
            "p99 ms": _number(point.p99_s, 2, 1e3),
            "nprobe": str(point.nprobe),
            "refine": str(point.refine),
            "": "◀ in use" if point == curve.chosen else "",
        }
        for point in ordered
    ]


def bytes_text(n: float) -> str:
    """Format bytes: 12345 → ``12.3 kB``."""
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "" if value is None else f"{scale * value:.{digits}f}"


def _bar(share: float) -> str:
    whole, rest = divmod(round(8 * BAR_WIDTH * share), 8)
    return ("█" * whole + EIGHTHS[rest].strip()).ljust(BAR_WIDTH)
