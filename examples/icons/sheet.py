"""Draw a contact sheet of near pairs, to judge by eye which are copies, and say what the judgements make of thresholds.

    uv run python examples/icons/sheet.py --clusters ~/icons/clusters --entities ~/icons/entities.parquet \
        --out ~/icons/sheet
    uv run python examples/icons/sheet.py --judged examples/icons/checked_pairs.csv

The first writes `sheet-0.png` … and `pairs.csv`, whose last column waits for `copy` or `different`; the second reads
such a file and prints, for each band of correlation, how many pairs were copies.
"""

import csv
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tyro
from iconify import IconsError
from PIL import Image, ImageDraw

BANDS = (0.8, 0.85, 0.9, 0.94, 0.97, 1.01)
COLUMNS = 6  # of pairs on a sheet
TILE = 64
LOGOS = frozenset({"brand", "homonym", "ticker"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Draw near pairs, or sum up the judgements of such pairs."""

    clusters: Path | None = None
    """Folder that clusters.py wrote."""
    entities: Path | None = None
    """The file that entities.py wrote."""
    out: Path | None = None
    """Folder of sheet.png and pairs.csv."""
    judged: Path | None = None
    """A pairs.csv whose last column is filled in."""
    per_band: int = 12
    """Pairs of each band and relation."""
    seed: int = 0
    """Seed of the pairs drawn."""


def relation(kinds: tuple[str, str], entities: tuple[str, str]) -> str:
    """Return what two pictures have to do with each other by name: one thing, a logo among them, or nothing."""
    if entities[0] == entities[1]:
        return "same entity"
    return "logo" if LOGOS & set(kinds) else "unrelated"


def band(score: float) -> str:
    """Return the band of a correlation."""
    for low, high in pairwise(BANDS):
        if low <= score < high:
            return f"{low:.2f}-{min(high, 1):.2f}"
    return f"<{BANDS[0]:.2f}"


def draw(pairs: Sequence[tuple[np.ndarray, np.ndarray]], labels: Sequence[str]) -> Image.Image:
    """Return a sheet of pairs of glyphs u8[32, 32], numbered in order, each with a label below."""
    wide, high = 2 * TILE + 16, TILE + 28
    rows = -(-len(pairs) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * wide, rows * high), 128)
    pen = ImageDraw.Draw(sheet)
    for number, (pair, label) in enumerate(zip(pairs, labels, strict=True)):
        x, y = number % COLUMNS * wide + 4, number // COLUMNS * high + 2
        for side, glyph in enumerate(pair):
            sheet.paste(
                Image.fromarray(glyph).resize((TILE, TILE), Image.Resampling.NEAREST), (x + side * (TILE + 4), y)
            )
        for line, text in enumerate(label.split("\n")):
            pen.text((x, y + TILE + line * 12), text, fill=255)
    return sheet


def short(key: str) -> str:
    """Return what fits below a picture of its name."""
    return key.split("--")[1][:11]


def draw_pairs(config: Sheet) -> str:
    """Draw pairs of each band and relation, and list them."""
    assert config.clusters
    assert config.entities
    assert config.out
    parts = [np.load(path) for path in sorted((config.clusters / "glyphs").glob("*.npz"))]
    glyphs = np.concatenate([part["glyphs"] for part in parts])
    keys = [str(key) for part in parts for key in part["keys"]]
    about = {row["key"]: row for row in pq.read_table(config.entities, columns=["key", "entity", "kind"]).to_pylist()}
    strata: dict[tuple[str, str, str], list[tuple[int, int, float]]] = defaultdict(list)
    for row in pq.read_table(config.clusters / "links.parquet").to_pylist():
        if row["by"] in ("ink", "mask"):
            one, other = about[keys[row["one"]]], about[keys[row["other"]]]
            how = relation((one["kind"], other["kind"]), (one["entity"], other["entity"]))
            strata[row["by"], how, band(row["score"])].append((row["one"], row["other"], row["score"]))
    config.out.mkdir(parents=True, exist_ok=True)
    rows, pictures, labels = [], [], []
    for (by, how, in_band), found in sorted(strata.items()):
        for one, other, score in random.Random(f"{config.seed}/{by}/{how}/{in_band}").sample(
            found, min(len(found), config.per_band)
        ):
            layer = int(by == "mask")
            pictures.append((glyphs[one, layer], glyphs[other, layer]))
            labels.append(f"{len(labels)} {by} {how[:5]} {score:.3f}\n{short(keys[one])}|{short(keys[other])}")
            rows.append([len(rows), keys[one], keys[other], by, how, f"{score:.4f}", ""])
    per_sheet = COLUMNS * 12
    for start in range(0, len(rows), per_sheet):
        draw(pictures[start : start + per_sheet], labels[start : start + per_sheet]).save(
            config.out / f"sheet-{start // per_sheet}.png"
        )
    with (config.out / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["number", "one", "other", "by", "relation", "score", "judgement"], *rows])
    return f"{len(rows)} pairs drawn and listed in {config.out}"


def sum_up(judged: Path) -> str:
    """Return a table of the judgements: pairs that are copies, of all pairs, by evidence, relation and band."""
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    with judged.open(newline="") as stream:
        for row in csv.DictReader(stream):
            cell = counts[row["by"], row["relation"], band(float(row["score"]))]
            cell[0] += row["judgement"] == "copy"
            cell[1] += 1
    lines = ["| by | relation | correlation | copies | of |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {by} | {how} | {in_band} | {n} | {total} |" for (by, how, in_band), (n, total) in sorted(counts.items())
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the command; 0 is success, 2 wrong usage."""
    config = tyro.cli(Sheet, description=__doc__)
    if config.judged is None and not (config.clusters and config.entities and config.out):
        print(
            "error: give --clusters, --entities and --out to draw pairs, or --judged to sum up a file", file=sys.stderr
        )
        return 2
    try:
        print(sum_up(config.judged) if config.judged else draw_pairs(config))
    except (IconsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
