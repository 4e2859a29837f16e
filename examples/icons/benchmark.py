"""Write what the splits describe: tars of base training and of the memory, and evaluation sets for every tier.

    uv run python examples/icons/benchmark.py --pairs ~/icons/64 --splits ~/icons/splits --out ~/icons/benchmark

`base/` and `memory/` hold webdataset tars of pairs, with the captions of the splits. `dev-absent/`, `test-rare/`, … are
folders in CLIP_benchmark's webdataset layout. The bytes depend on nothing but the pairs and the splits.
"""

import json
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from command import run
from deal import BASE, DEV, MEMORY, SHOTS, TEST, draw
from glyphs import read_tar
from prepare import add, pool, put_json

TEMPLATES = ("{c}", "{c} icon", "{c} logo", "{c} symbol", "icon of {c}")
COLUMNS = (
    "key",
    "set",
    "entity",
    "display",
    "words",
    "kind",
    "split",
    "tier",
    "asked",
    "few_shot",
    "artist_fold",
    "caption",
)
CORPORA = (BASE, MEMORY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """Write the tars of base training and of the memory, and the evaluation sets."""

    pairs: Path
    """Folder that prepare.py wrote."""
    splits: Path
    """Folder that splits.py wrote."""
    out: Path
    """Folder of the results."""
    workers: int = 2
    """Processes."""


def deal_tar(tar: Path, *, rows: Mapping[str, Mapping[str, Any]], out: Path) -> dict[str, bytes]:
    """Write a tar's pairs of base training and of the memory; return the other pictures, as PNG by key."""
    asked: dict[str, bytes] = {}
    written: dict[str, list[tuple[str, bytes]]] = {split: [] for split in CORPORA}
    for pair in read_tar(tar):
        row = rows[pair.key]
        if row["split"] in CORPORA:
            about = {name: row[name] for name in ("key", "set", "words", "kind", "artist_fold")} | {
                "palette": pair.palette
            }
            text = json.dumps(about, ensure_ascii=False).encode()
            members = (("png", pair.png), ("txt", row["caption"].encode()), ("json", text))
            written[row["split"]] += [(f"{pair.key}.{suffix}", data) for suffix, data in members]
        elif row["split"] in (DEV, TEST, SHOTS):
            asked[pair.key] = pair.png
    for split, members in written.items():
        path = out / split / tar.name
        path.unlink(missing_ok=True)  # other splits may have left one that these do not fill
        if members:
            scratch = path.with_suffix(".tmp")
            with tarfile.open(scratch, "w") as archive:
                for name, data in members:
                    add(archive, name, data)
            scratch.replace(path)
    return asked


def write_set(
    folder: Path, names: Sequence[str], parts: Mapping[str, Iterable[tuple[str, bytes, int]]]
) -> dict[str, int]:
    """Write an evaluation set; `parts` are its splits, each of (key, PNG, label); return the pictures of each."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"classnames": names, "zeroshot_classification_templates": TEMPLATES, "dataset_type": ["classification"]}
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = {}
    for part, pictures in parts.items():
        (folder / part).mkdir(exist_ok=True)
        counts[part] = 0
        with tarfile.open(folder / part / "0.tar", "w") as archive:
            for key, png, label in pictures:
                add(archive, f"{key}.png", png)
                add(archive, f"{key}.cls", str(label).encode())
                counts[part] += 1
        (folder / part / "nshards.txt").write_text("1\n")
    return counts


def sets_of(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Return the rows of every evaluation set, by set and part, in an order that is drawn."""
    sets: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: draw(seed, "order", row["key"])):
        if row["split"] in (DEV, TEST):
            sets[f"{row['split']}-{row['tier']}"]["test"].append(row)
            if row["few_shot"]:
                sets[f"{row['split']}-few-shot"]["test"].append(row)
        elif row["split"] == SHOTS:
            sets[f"{row['asked']}-few-shot"]["train"].append(row)
    return sets


def write_benchmark(config: Benchmark) -> str:
    """Do the whole of it and return the summary line."""
    started = time.perf_counter()
    table = pq.read_table(config.splits / "splits.parquet", columns=list(COLUMNS)).to_pylist()
    rows = {row["key"]: row for row in table}
    seed = json.loads((config.splits / "manifest.json").read_bytes())["rules"]["seed"]
    for split in CORPORA:
        (config.out / split).mkdir(parents=True, exist_ok=True)
    pictures: dict[str, bytes] = {}
    with pool(config.workers) as map_:
        tars = sorted(config.pairs.glob("*.tar"))
        own = [{row["key"]: row for row in part} for part in _rows_of(tars, rows)]
        for tar, asked in zip(tars, map_(partial(_deal, out=config.out), tars, own), strict=True):
            pictures |= asked
            print(f"{tar}: {len(asked)} pictures to ask about", file=sys.stderr, flush=True)
    counts: dict[str, Any] = {}
    for name, parts in sorted(sets_of(table, seed).items()):
        displays = {row["entity"]: row["display"] for part in parts.values() for row in part}
        label = {entity: number for number, entity in enumerate(sorted(displays))}
        content = {
            part: [(row["key"], pictures[row["key"]], label[row["entity"]]) for row in own]
            for part, own in sorted(parts.items())
        }
        counts[name] = write_set(config.out / name, [displays[entity] for entity in label], content) | {
            "classes": len(label)
        }
    put_json(config.out / "benchmark.json", counts)
    return f"{len(counts)} evaluation sets in {config.out}, {time.perf_counter() - started:.0f} s: {json.dumps(counts)}"


def _rows_of(tars: Sequence[Path], rows: Mapping[str, Mapping[str, Any]]) -> Iterable[list[Mapping[str, Any]]]:
    """Return each tar's rows, so that a worker is sent no more than it needs."""
    for tar in tars:
        with tarfile.open(tar) as archive:
            yield [rows[name.removesuffix(".txt")] for name in archive.getnames() if name.endswith(".txt")]


def _deal(tar: Path, rows: Mapping[str, Mapping[str, Any]], *, out: Path) -> dict[str, bytes]:
    return deal_tar(tar, rows=rows, out=out)


if __name__ == "__main__":
    sys.exit(run(write_benchmark, Benchmark, __doc__))
