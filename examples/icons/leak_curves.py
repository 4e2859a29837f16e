"""From the evidence for planted and for clean pairs: thresholds, what they find and lose, and whole curves."""

import math
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from memory_builder.retrieve.thresholds import Thresholds

BARS = {"JPEG 60": 0.99, "resize ±30 %": 0.99, "grey": 0.99, "white pad": 0.99, "flip": 0.95, "crop 5 %": 0.9}
GRID = {
    "embedding": np.arange(0.985, 1.0001, 0.0025),
    "hash": np.array([-1, 0, 2, 4]),
    "miniature": np.array([-1, 4, 6, 8]),
    "pixels": np.append(np.arange(0.97, 0.9999, 0.0025), 1.1),
    "both": np.arange(0.86, 0.985, 0.0025),
}
SURE = 1.64
"""Standard deviations: of 95 %, to one side."""
LOSSES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)

Values = dict[str, dict[str, np.ndarray]]
"""What was compared (``clean`` or a transform) → kind of evidence → f32[n], the higher the stronger."""


def read_values(path: Path) -> Values:
    table = pq.read_table(path)
    what = np.array(table["what"].to_pylist())
    kinds = {kind: table[kind].to_numpy() * (-1 if kind in ("hash", "miniature") else 1) for kind in GRID}
    return {str(name): {kind: values[what == name] for kind, values in kinds.items()} for name in np.unique(what)}


def judge(folder: Path, lost: float) -> dict[str, Any]:
    """Set thresholds by dev's planted pictures and half of the clean pairs; count test's and the other half."""
    dev, test = (read_values(folder / f"{side}.parquet") for side in ("dev", "test"))
    known, test["clean"] = ({kind: of[start::2] for kind, of in test["clean"].items()} for start in (0, 1))
    allowed = lost - SURE * math.sqrt(lost / len(known["hash"]))
    chosen = choose_union(dev, known, allowed)
    single = {kind: limit_at(known[kind], allowed) for kind in GRID}
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
        "curve": {kind: curve(test, kind) for kind in GRID},
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


def choose_union(planted: Values, clean: dict[str, np.ndarray], lost: float) -> dict[str, float]:
    """The thresholds of the grid that leave the least well found transform furthest above its bar."""
    best: tuple[float, float, dict[str, float]] = (-np.inf, 0, {})
    for embedding, bits, levels, pixels in product(
        *(GRID[kind] for kind in ("embedding", "hash", "miniature", "pixels"))
    ):
        limits = {"embedding": embedding, "hash": -bits, "miniature": -levels, "pixels": pixels}
        limits = {kind: float(limit) for kind, limit in limits.items()}
        taken = found(clean, limits)
        if taken.mean() > lost:
            continue
        both = limit_at_count(clean["both"][~taken], int(lost * len(taken)) - int(taken.sum()))
        limits["both"] = float(GRID["both"][np.searchsorted(GRID["both"], both)]) if both <= 0.98 else 1.1
        shares = [float(found(planted[name], limits).mean()) for name in BARS]
        margin = min(share - bar for share, bar in zip(shares, BARS.values(), strict=True))
        best = max(best, (margin, sum(shares), limits), key=lambda one: one[:2])
    return best[2]


def limit_at_count(values: np.ndarray, room: int) -> float:
    """The least threshold that at most so many reach."""
    ordered = np.sort(values)[::-1]
    return float(np.nextafter(ordered[room], np.float32(np.inf))) if room < len(ordered) else 0.0


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
