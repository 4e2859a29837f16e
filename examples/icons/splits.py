"""Fix the splits and write the captions: `splits.parquet`, a row for each picture, and `manifest.json`.

    uv run python examples/icons/splits.py --entities ~/icons/entities.parquet --clusters ~/icons/clusters \
        --out ~/icons/splits
    uv run python examples/icons/splits.py --check ~/icons/splits

The rules are in `deal.py` and in the README. `--check` reads finished splits and fails on any overlap.
"""

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from captions import SHARES, Thing, aliases_of, caption_of, spoken_words
from command import run
from deal import BASE, MEMORY, SPLITS, TIERS, Class, Row, Rules, deal, draw, names_in
from iconify import PACKAGE, VERSION, IconsError, open_package, read_sets
from prepare import put_json

FOLDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Write `splits.parquet` and `manifest.json`, or check finished ones."""

    entities: Path | None = None
    """The file that entities.py wrote."""
    clusters: Path | None = None
    """Folder that clusters.py wrote."""
    out: Path | None = None
    """Folder of the results."""
    check: Path | None = None
    """Folder of finished splits to check instead."""
    rules: Rules = field(default_factory=Rules)
    """The numbers the splits follow from."""
    source: Path | None = None
    """The package's tgz or its unpacked folder; npm fetches it otherwise."""
    cache: Path | None = None
    """Folder the package is unpacked into; beside --out otherwise."""


def read_table(entities: Path, clusters: Path) -> pa.Table:
    """Return the entities of all pictures with their cluster, in order of keys."""
    cluster = dict(zip(*pq.read_table(clusters / "clusters.parquet").to_pydict().values(), strict=True))
    table = pq.read_table(entities)
    table = table.filter(pa.array([key in cluster for key in table["key"].to_pylist()]))
    return table.append_column("cluster", pa.array([cluster[key] for key in table["key"].to_pylist()])).sort_by("key")


def split_table(table: pa.Table, set_names: Mapping[str, tuple[str, str | None]], rules: Rules) -> pa.Table:
    """Return the rows of `splits.parquet`: the entities with split, tier, artist fold, caption and what it says."""
    rows = [Row(*values) for values in zip(*(table[name].to_pylist() for name in Row._fields), strict=True)]
    split_of, classes = deal(rows, spoken_words(), rules)
    splits = [split_of[row.key] for row in rows]
    captions = write_captions(table, splits, classes, set_names, rules.seed)
    columns = {
        "split": splits,
        "tier": [classes[row.entity].tier if row.entity in classes else "" for row in rows],
        "asked": [classes[row.entity].split if row.entity in classes else "" for row in rows],
        "few_shot": [row.entity in classes and classes[row.entity].few_shot for row in rows],
        # Sets of one artist share a fold, so that neighbours can be looked up among other artists' pictures.
        "artist_fold": [int(draw(rules.seed, "fold", artist) * FOLDS) for artist in table["artist"].to_pylist()],
        "caption": [text for text, _ in captions],
        "says": [says for _, says in captions],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table


def write_captions(
    table: pa.Table,
    splits: Sequence[str],
    classes: Mapping[str, Class],
    set_names: Mapping[str, tuple[str, str | None]],
    seed: int,
) -> list[tuple[str, str]]:
    """Return every row's caption and what it says. What base training reads names no brand that is asked about."""
    secret = {entity for entity, c in classes.items() if c.tier != "common"}
    rows = table.select(["key", "set", "words", "entity", "logo", "tags"]).to_pylist()
    names: dict[str, set[str]] = defaultdict(set)
    spellings: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        spellings[split, row["entity"]].add(row["words"])
        if split != BASE or row["entity"] not in secret:
            names[split].add(row["words"])
    others = {split: sorted(found) for split, found in names.items()}
    captions = []
    for row, split in zip(rows, splits, strict=True):
        title, category = set_names[row["set"]]
        headings = [*row["tags"].split("; "), category or ""]
        if split == BASE:
            title = title if secret.isdisjoint(names_in(title.lower())) else "icon set"
            headings = [heading for heading in headings if secret.isdisjoint(names_in(heading.lower()))]
        thing = Thing(
            key=row["key"],
            words=row["words"],
            set_name=title,
            headings=tuple(heading.lower() for heading in headings if heading),
            logo=row["logo"],
            aliases=aliases_of(sorted(spellings[split, row["entity"]]), row["words"]),
        )
        captions.append(caption_of(thing, others[split], seed))
    return captions


def problems(table: pa.Table) -> list[str]:
    """Return what is wrong: clusters or entities on two sides, names that base training has seen too often."""
    rows = table.select(["key", "words", "entity", "cluster", "split", "tier", "asked", "caption"]).to_pylist()
    found = []
    clusters: dict[int, set[str]] = defaultdict(set)
    asked: dict[str, set[str]] = defaultdict(set)
    seen: Counter[str] = Counter()
    tiers = {row["entity"]: row["tier"] for row in rows if row["tier"]}
    brands = {entity for entity, tier in tiers.items() if tier != "common"}
    for row in rows:
        if row["split"] != "dropped":
            clusters[row["cluster"]].add(row["split"])
        if row["split"] in ("dev", "test"):
            asked[row["entity"]].add(row["split"])
        if row["split"] == BASE:
            seen[row["entity"]] += 1
            if named := {name for name in names_in(row["words"]) if name in brands and name != row["entity"]}:
                found.append(f"{row['key']} is in base training and names {sorted(named)}")
    found += [f"cluster {cluster} is in {sorted(splits)}" for cluster, splits in clusters.items() if len(splits) > 1]
    found += [f"entity {entity} is asked in {sorted(splits)}" for entity, splits in asked.items() if len(splits) > 1]
    bounds = {"absent": (0, 0), "rare": (1, 4), "common": (5, len(rows))}
    for entity, tier in sorted(tiers.items()):
        if not bounds[tier][0] <= seen[entity] <= bounds[tier][1]:
            found.append(f"{tier} entity {entity} occurs {seen[entity]} times in base training")
    return found


def manifest_of(table: pa.Table, rules: Rules) -> dict[str, Any]:
    """Return `manifest.json`: the rules, and for every split its size and a hash of its keys and captions."""
    rows = table.select(
        ["key", "entity", "kind", "cluster", "split", "tier", "asked", "few_shot", "caption", "says"]
    ).to_pylist()
    splits: dict[str, Any] = {}
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        lines = "".join(f"{row['key']}\t{row['caption']}\n" for row in own)
        splits[split] = {
            "pictures": len(own),
            "clusters": len({row["cluster"] for row in own}),
            "entities": len({row["entity"] for row in own}),
            "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        }
    return {
        "package": f"{PACKAGE}@{VERSION}",
        "rules": asdict(rules),
        "splits": splits,
        "tiers": [tier_counts(rows, side, tier) for side in ("dev", "test") for tier in TIERS],
        "says": {
            split: dict(Counter(row["says"] for row in rows if row["split"] == split)) for split in (BASE, MEMORY)
        },
        "shares": SHARES,
    }


def tier_counts(rows: Sequence[Mapping[str, Any]], side: str, tier: str) -> dict[str, Any]:
    """Return a tier's classes, its pictures, and the rows of the memory and of base training for its classes."""
    own = [row for row in rows if row["tier"] == tier and row["asked"] == side]
    counts = {split: Counter(row["entity"] for row in own if row["split"] == split) for split in SPLITS}
    memory = sorted(counts[MEMORY][entity] for entity in counts[side])
    return {
        "side": side,
        "tier": tier,
        "classes": len(counts[side]),
        "pictures": counts[side].total(),
        "memory_rows": sum(memory),
        "memory_rows_median": memory[len(memory) // 2] if memory else 0,
        "without_memory": sum(rows == 0 for rows in memory),
        "base_rows": sum(counts[BASE][entity] for entity in counts[side]),
        "few_shot_classes": len({row["entity"] for row in own if row["few_shot"]}),
        "shots": counts["shots"].total(),
    }


def write_splits(config: Splits) -> str:
    """Do the whole of it and return the summary line."""
    if not (config.entities and config.clusters and config.out):
        raise IconsError("give --entities, --clusters and --out to write splits, or --check to check some")
    package = open_package(config.source, config.cache or config.out.resolve().parent)
    set_names = {prefix: (about.name, about.category) for prefix, about in read_sets(package).items()}
    table = split_table(read_table(config.entities, config.clusters), set_names, config.rules)
    if wrong := problems(table):
        raise IconsError("the rules left overlaps:\n  " + "\n  ".join(wrong[:20]))
    config.out.mkdir(parents=True, exist_ok=True)
    scratch = config.out / "splits.tmp"
    pq.write_table(table, scratch, compression="zstd")
    scratch.replace(config.out / "splits.parquet")
    manifest = manifest_of(table, config.rules)
    put_json(config.out / "manifest.json", manifest)
    return "; ".join(f"{split}: {about['pictures']}" for split, about in manifest["splits"].items())


def check_splits(folder: Path) -> str:
    """Check finished splits against their manifest and for overlaps."""
    table, manifest = pq.read_table(folder / "splits.parquet"), json.loads((folder / "manifest.json").read_bytes())
    wrong = problems(table)
    found = manifest_of(table, Rules(**manifest["rules"]))["splits"]
    wrong += [
        f"split {split} is not the one in manifest.json"
        for split in SPLITS
        if found[split] != manifest["splits"][split]
    ]
    if wrong:
        raise IconsError(f"{folder} has {len(wrong)} problems:\n  " + "\n  ".join(wrong[:20]))
    return (
        f"{len(table)} pictures: no cluster and no entity on two sides, every tier as often in base training as it says"
    )


def main(config: Splits) -> str:
    return check_splits(config.check) if config.check else write_splits(config)


if __name__ == "__main__":
    sys.exit(run(main, Splits, __doc__))
