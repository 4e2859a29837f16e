"""How often what is retrieved for a class shows that class: precision by mode and rank.

    uv run python examples/icons/precision.py --memory ~/icons/memory --benchmark ~/icons/benchmark \
        --splits ~/icons/splits --out ~/icons/precision

Every class of the dev and test sets asks the memory, by its name and by its evaluation pictures. A row is right if it
shows the asked entity, whatever its caption says. `exact` are the rows whose caption is the class name, `other` the
rest: what a string match finds, and what it cannot. `string match` is that match itself.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tyro
from benchmark import TEMPLATES
from deal import TIERS
from prepare import put_json

from memory_builder import Memory
from memory_builder.base.charts import COLOURS, Series, line_chart, names_axis, number_axis
from memory_builder.model.encoder import EncoderConfig
from memory_builder.model.templates import fill
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.retrieval.config import MODES, Mode, modality_of, query_modality_of
from memory_builder.retrieval.queries import Query
from memory_builder.retrieval.search import block_vectors

RANKS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Ask for every class, and look at what came."""

    memory: Path
    """A memory of the benchmark's `memory` folder."""
    benchmark: Path
    """Folder that benchmark.py wrote."""
    splits: Path
    """Folder that splits.py wrote."""
    out: Path
    """Folder of the table and the plot."""
    model: str | None = None
    """Where the memory's model is now, if not where it was."""
    sides: tuple[str, ...] = ("dev", "test")
    templates: tuple[str, ...] = TEMPLATES
    """Averaged into one query a class."""


@dataclass(frozen=True)
class Asked:
    """A class of an evaluation set."""

    name: str
    entity: str
    tier: str
    pictures: list[bytes]


def read_asked(config: Precision, side: str, entity: dict[str, str]) -> list[Asked]:
    """The classes of a side, with their evaluation pictures."""
    found = []
    for tier in TIERS:
        folder = config.benchmark / f"{side}-{tier}"
        names = (folder / "classnames.txt").read_text().splitlines()
        by_label: dict[int, list[tuple[str, bytes]]] = {}
        for tar in sorted((folder / "test").glob("*.tar")):
            for pair in read_pairs(str(tar), require="image", caption_key="cls"):
                assert isinstance(pair, Pair)
                by_label.setdefault(int(pair.caption or -1), []).append((pair.key, pair.image or b""))
        for label, name in enumerate(names):
            pictures = by_label[label]
            found.append(Asked(name, entity[pictures[0][0]], tier, [image for _, image in pictures]))
    return found


def ask(memory: Memory, asked: Sequence[Asked], mode: Mode, templates: Sequence[str]) -> np.ndarray:
    """i64[classes, 50] row ids; classes ask with the mean of their prompts, or of their pictures."""
    side = query_modality_of(mode)
    if side == "text":
        queries = [
            Query(number=i, label=i, name=a.name, inputs=tuple(fill(template, a.name) for template in templates))
            for i, a in enumerate(asked)
        ]
        vectors = block_vectors(queries, side, memory)
    else:
        vectors = np.stack([mean_picture(memory, a.pictures) for a in asked])
    return memory.search(vectors=vectors, side=side, k=max(RANKS), keys=modality_of(mode)).ids


def mean_picture(memory: Memory, pictures: Sequence[bytes]) -> np.ndarray:
    """f32[d]."""
    from memory_builder.model.images import decode_image

    pixels = np.stack([memory.encoder.preprocess(decode_image(picture)) for picture in pictures])
    mean = memory.encoder.encode_images(pixels).astype(np.float32).mean(axis=0)
    return mean / np.linalg.norm(mean)


def figures(right: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Of bool[classes, 50]: mean precision at each rank, of all rows, of the exact ones and of the others."""
    found: dict[str, Any] = {"classes": len(right)}
    for rank in RANKS:
        r, e = right[:, :rank], exact[:, :rank]
        found[f"p@{rank}"] = round(float(r.mean()), 4)
        found[f"exact share@{rank}"] = round(float(e.mean()), 4)
        found[f"exact p@{rank}"] = round(float(r[e].mean()), 4) if e.any() else None
        found[f"other p@{rank}"] = round(float(r[~e].mean()), 4) if (~e).any() else None
    return found


def string_match(captions: dict[str, list[int]], asked: Sequence[Asked], shows: Sequence[str]) -> dict[str, Any]:
    """What the rows whose caption is the class name come to, and how many of the entity's rows they are."""
    counts = Counter(shows)
    rows = [captions.get(a.name.lower(), []) for a in asked]
    right = [np.array([shows[i] == a.entity for i in some]) for some, a in zip(rows, asked, strict=True)]
    per_class = [float(some.mean()) for some in right if len(some)]
    there = [counts[a.entity] for a in asked]
    return {
        "classes": len(asked),
        "classes with a match": len(per_class),
        "precision": round(float(np.mean(per_class)), 4) if per_class else None,
        "rows a class": round(float(np.mean([len(some) for some in rows])), 2),
        "share of the entity's rows": round(sum(int(r.sum()) for r in right) / max(1, sum(there)), 4),
    }


def measure(config: Precision) -> dict[str, Any]:
    """All tables."""
    encoder = EncoderConfig(model=config.model) if config.model else None
    memory = Memory.open(config.memory, encoder=encoder)
    table = pq.read_table(config.splits / "splits.parquet", columns=["key", "entity"])
    entity = dict(zip(table["key"].to_pylist(), table["entity"].to_pylist(), strict=True))
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    rows = memory.rows(ids)
    shows = [entity[key] for key in rows["key"].to_pylist()]
    caption = [(text or "").lower() for text in rows["caption"].to_pylist()]
    captions: dict[str, list[int]] = {}
    for i, text in enumerate(caption):
        captions.setdefault(text, []).append(i)
    found: dict[str, Any] = {"memory": str(config.memory), "model": memory.description.model, "rows": len(ids)}
    for side in config.sides:
        asked = read_asked(config, side, entity)
        tiers = np.array([a.tier for a in asked])
        found[side] = {
            "string match": {
                tier: string_match(captions, [a for a in asked if tier in ("all", a.tier)], shows)
                for tier in ("all", *TIERS)
            }
        }
        for mode in MODES:
            hits = ask(memory, asked, mode, config.templates)
            of_classes = list(zip(asked, np.searchsorted(ids, hits).tolist(), strict=True))
            is_row = hits >= 0  # a memory of fewer rows than were asked for pads with -1
            right = np.array([[shows[i] == a.entity for i in some] for a, some in of_classes]) & is_row
            exact = np.array([[caption[i] == a.name.lower() for i in some] for a, some in of_classes]) & is_row
            of_tier = {tier: (tiers == tier) | (tier == "all") for tier in ("all", *TIERS)}
            found[side][mode] = {tier: figures(right[some], exact[some]) for tier, some in of_tier.items()}
            print(f"{side} {mode}: {found[side][mode]['all']['p@10']}", file=sys.stderr, flush=True)
    return found


def draw(found: dict[str, Any], side: str) -> str:
    """Precision by rank, a line a mode, dashed without the rows whose caption is the class name."""
    series = []
    for mode, colour in zip(MODES, COLOURS, strict=True):
        for kind, name in (("p", mode), ("other p", f"{mode}, other captions")):
            values = [found[side][mode]["all"][f"{kind}@{rank}"] for rank in RANKS]
            points = [(i, value) for i, value in enumerate(values) if value is not None]
            series.append(Series(name=name, points=points, colour=colour, dashed=kind != "p"))
    x, y = names_axis([str(rank) for rank in RANKS], "rows retrieved for a class"), number_axis(0, 1, "precision")
    return line_chart(f"Precision by rank, {side} queries", x, y, series).svg()


def main() -> int:
    """Run the command; 0 is success."""
    config = tyro.cli(Precision, description=__doc__)
    found = measure(config)
    config.out.mkdir(parents=True, exist_ok=True)
    put_json(config.out / "precision.json", found)
    for side in config.sides:
        (config.out / f"{side}.svg").write_text(draw(found, side))
        print(f"\n{side}: precision by rank\n| mode | classes | {' | '.join(map(str, RANKS))} |")
        for mode in MODES:
            for tier in ("all", *TIERS):
                row = found[side][mode][tier]
                print(f"| {mode} {tier} | {row['classes']} | {' | '.join(str(row[f'p@{rank}']) for rank in RANKS)} |")
        print(json.dumps(found[side]["string match"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
