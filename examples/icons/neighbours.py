"""Measure what pixels alone give away: every picture asked about against its nearest picture of the memory.

    uv run python examples/icons/neighbours.py --clusters ~/icons/clusters --splits ~/icons/splits --out ~/icons/nn

Two accuracies for each tier: the nearest row of the whole memory shows the same entity; and the nearest row among those
of the tier's own classes does, which is what a classifier is asked. `sheet.png` shows the nearest pairs of one entity:
copies that the clusters missed would be there.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import tyro
from deal import MEMORY, TIERS
from prepare import put_json
from sheet import draw, short

from memory_builder.retrieval.copies.glyph import coarse


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Look each picture asked about up in the memory, by pixels."""

    clusters: Path
    """Folder that clusters.py wrote."""
    splits: Path
    """Folder that splits.py wrote."""
    out: Path
    """Folder of the results."""
    side: Literal["dev", "test"] = "dev"
    """The pictures to look up."""
    shown: int = 72
    """Pairs on the sheet."""


def read_glyphs(folder: Path) -> tuple[dict[str, int], np.ndarray]:
    """Return the row of each key, and the ink of all glyphs, u8[n, 32, 32]."""
    parts = [np.load(path) for path in sorted((folder / "glyphs").glob("*.npz"))]
    keys = [str(key) for part in parts for key in part["keys"]]
    return {key: row for row, key in enumerate(keys)}, np.concatenate([part["glyphs"][:, 0] for part in parts])


def nearest_rows(
    queries: np.ndarray, memory: np.ndarray, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for f32[q, d] and f32[n, d], the nearest rows, the nearest allowed (bool[n]) and their correlations."""
    found: list[list[np.ndarray]] = [[], [], []]
    for start in range(0, len(queries), 256):
        scores = np.abs(queries[start : start + 256] @ memory.T)
        found[0].append(scores.argmax(1))
        scores[:, ~allowed] = -1
        found[1].append(scores.argmax(1))
        found[2].append(scores.max(1))
    return np.concatenate(found[0]), np.concatenate(found[1]), np.concatenate(found[2])


def measure(config: Neighbours) -> dict[str, Any]:
    """Return the accuracies of each tier, and draw the sheet."""
    columns = ["key", "entity", "split", "tier", "asked"]
    rows = pq.read_table(config.splits / "splits.parquet", columns=columns).to_pylist()
    row_of, ink = read_glyphs(config.clusters)
    memory = [row for row in rows if row["split"] == MEMORY]
    entities = np.array([row["entity"] for row in memory])
    vectors = coarse(ink[[row_of[row["key"]] for row in memory]])
    found: dict[str, Any] = {}
    close: list[tuple[float, str, str]] = []
    for tier in TIERS:
        asked = [row for row in rows if row["split"] == config.side and row["tier"] == tier]
        if not asked:
            continue
        truth = np.array([row["entity"] for row in asked])
        queries = coarse(ink[[row_of[row["key"]] for row in asked]])
        whole, own, score = nearest_rows(queries, vectors, np.isin(entities, truth))
        right = entities[own] == truth
        found[tier] = {
            "classes": len(set(truth.tolist())),
            "pictures": len(asked),
            "nearest_of_memory": round(float((entities[whole] == truth).mean()), 4),
            "nearest_of_classes": round(float(right.mean()), 4),
        }
        close += [(float(score[i]), asked[i]["key"], memory[own[i]]["key"]) for i in np.flatnonzero(right)]
    close = sorted(close, reverse=True)[: config.shown]
    config.out.mkdir(parents=True, exist_ok=True)
    labels = [f"{score:.3f}\n{short(one)}|{short(other)}" for score, one, other in close]
    draw([(ink[row_of[one]], ink[row_of[other]]) for _, one, other in close], labels).save(config.out / "sheet.png")
    put_json(config.out / f"{config.side}.json", found)
    return found


def main() -> int:
    """Run the command; 0 is success."""
    print(json.dumps(measure(tyro.cli(Neighbours, description=__doc__)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
