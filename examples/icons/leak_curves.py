"""From the evidence for planted and for clean pairs: thresholds, what they find and lose, and whole curves."""

import math
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from memory_builder.retrieval.copies.compare import KINDS
from memory_builder.retrieval.copies.thresholds import Thresholds

BARS = {"JPEG 60": 0.99, "resize ±30 %": 0.99, "grey": 0.99, "white pad": 0.99, "flip": 0.95, "crop 5 %": 0.9}
GRID = {
    "embedding": np.arange(0.985, 1.0001, 0.0025),
    "hash": np.array([0, 2, 4]),
    "miniature": np.array([-1, 4, 6, 8]),
    "pixels": np.append(np.arange(0.97, 0.9999, 0.0025), 1.1),
}
LOSSES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)

Values = dict[str, dict[str, np.ndarray]]
"""What was compared (``clean`` or a transform) → kind of evidence → f32[n], the higher the stronger."""


def read_values(path: Path) -> Values:
    table = pq.read_table(path)
    what = np.array(table["what"].to_pylist())
    kinds = {kind: table[kind].to_numpy() * (-1 if kind in ("hash", "miniature") else 1) for kind in KINDS}
    return {str(name): {kind: values[what == name] for kind, values in kinds.items()} for name in np.unique(what)}


def judge(folder: Path, lost: float) -> dict[str, Any]:
    """Set thresholds by dev's planted pictures and half of the clean pairs; count test's and the other half.

    Args:
        folder: of dev.parquet and test.parquet.
        lost: share of clean pairs that each kind of evidence alone may lose.
    """
    dev, test = (read_values(folder / f"{side}.parquet") for side in ("dev", "test"))
    known, test["clean"] = ({kind: of[start::2] for kind, of in test["clean"].items()} for start in (0, 1))
    chosen = choose_union(dev, known)
    single = {kind: limit_at(known[kind], lost) for kind in KINDS}
    limits = Thresholds(
        leak_embedding=round(chosen["embedding"], 4),
        leak_hash=round(-chosen["hash"]),
        leak_miniature=round(-chosen["miniature"], 2),
        leak_pixels=round(chosen["pixels"], 4),
        leak_both=round(chosen["both"], 4),
    )
    return {
        "lost": lost,
        "lost by the known half": float(found(known, chosen).mean()),
        "thresholds": asdict(limits),
        "single thresholds": single,
        "dev": counted(dev, chosen, single),
        "test": counted(test, chosen, single),
        "curve": {kind: curve(test, kind) for kind in KINDS},
    }


def limit_at(clean: np.ndarray, lost: float) -> float:
    """The least threshold that takes at most this share of clean pairs."""
    values = np.unique(clean)[::-1]
    taken = np.searchsorted(np.sort(-clean), -values, side="right") / len(clean)
    allowed = values[taken <= lost]
    return float(allowed[-1]) if len(allowed) else float(np.nextafter(values[0], np.inf))


def found(values: dict[str, np.ndarray], limits: dict[str, float]) -> np.ndarray:
    """bool[n]: whether any kind of evidence reaches its threshold."""
    return np.any([values[kind] >= limit for kind, limit in limits.items()], axis=0)


def choose_union(planted: Values, clean: dict[str, np.ndarray]) -> dict[str, float]:
    """Of the thresholds that find as much of each transform as its bar asks for, those that lose fewest clean pairs."""
    best: tuple[float, dict[str, float]] = (np.inf, {})
    for embedding, bits, levels, pixels in product(*GRID.values()):
        limits = {"embedding": embedding, "hash": -bits, "miniature": -levels, "pixels": pixels}
        limits = {kind: float(limit) for kind, limit in limits.items()}
        limits["both"] = min(enough(planted[name], limits, bar) for name, bar in BARS.items())
        best = min(best, (float(found(clean, limits).mean()), limits), key=lambda one: one[0])
    return best[1]


def enough(values: dict[str, np.ndarray], limits: dict[str, float], bar: float) -> float:
    """The greatest threshold of ``both``, to four digits, with which such a share is found; 1.1 where it is without."""
    known = found(values, limits)
    missing = math.ceil(bar * len(known)) - int(known.sum())
    return math.floor(1e4 * np.sort(values["both"][~known])[-missing]) / 1e4 if missing > 0 else 1.1


def counted(values: Values, union: dict[str, float], single: dict[str, float]) -> dict[str, Any]:
    """Share found of each transform, and lost of clean pairs, by each kind alone and by all together."""
    ways = {kind: {kind: limit} for kind, limit in single.items()} | {"union": union}
    return {
        name: {"pictures": len(of["hash"])} | {way: round(float(found(of, by).mean()), 4) for way, by in ways.items()}
        for name, of in values.items()
    }


def curve(values: Values, kind: str) -> list[dict[str, float]]:
    """Operating points of one kind."""
    points = []
    for lost in LOSSES:
        limit = limit_at(values["clean"][kind], lost)
        shares = {name: round(float((of[kind] >= limit).mean()), 4) for name, of in values.items()}
        points.append({"lost": lost, "threshold": limit} | shares)
    return points
