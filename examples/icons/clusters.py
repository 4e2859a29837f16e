"""Find the pictures that copy one another: `clusters.parquet`, a cluster for each key.

    uv run python examples/icons/clusters.py --pairs ~/icons/64 --entities ~/icons/entities.parquet \
        --out ~/icons/clusters

Two icons are linked if their shapes are written with the same numbers; if their glyphs correlate (either way round:
light on dark is the same drawing) by `--least` and they share a name, or by `--least-unrelated`; if they show one brand
and their glyphs or masks correlate by `--least-brand`; or if one artist drew both for one entity. A cluster is all that
links join, and the unit that the splits deal out.
"""

import hashlib
import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from command import run
from copies import nearest, verify
from glyphs import glyphs_of_tar
from iconify import open_package, read_icons, read_sets
from prepare import pool, put_json

NUMBERS = re.compile(r'\b(?:d|points|cx|cy|r|rx|ry|x|y|x1|y1|x2|y2|width|height|transform)="([^"]*)"')

NEAR_MISS = 0.1  # below --least, links are kept for sheets and other thresholds


@dataclass(frozen=True, kw_only=True, slots=True)
class Clusters:
    """Write `clusters.parquet`, `links.parquet` and the glyphs they were found with."""

    pairs: Path
    """Folder that prepare.py wrote."""
    entities: Path
    """The file that entities.py wrote."""
    out: Path
    """Folder of the results; a rerun takes the glyphs that lie there."""
    least: float = 0.9
    """Least correlation of two glyphs that are copies; set on checked_pairs.csv."""
    least_unrelated: float = 0.97
    """The same for two things of different names; set likewise."""
    least_brand: float = 0.8
    """The same for two pictures of one brand, by ink or by mask; not below what links.parquet keeps, 0.8."""
    relink: bool = False
    """Take the links that lie there, and join them with other thresholds."""
    candidates: int = 24
    """Neighbours of each glyph, at 16 px, that are compared at 32 px."""
    glyphs_only: bool = False
    """Stop after the glyphs of the tars that are there."""
    source: Path | None = None
    """The package's tgz or its unpacked folder; npm fetches it otherwise."""
    cache: Path | None = None
    """Folder the package is unpacked into; beside --pairs otherwise."""
    workers: int = 2
    """Processes that read the tars."""


def save_glyphs(tar: Path, *, out: Path, seed: int) -> None:
    """Write one tar's glyphs, `00000.npz`, unless they are there."""
    path = out / f"{tar.stem}.npz"
    if not path.exists():
        keys, glyphs = glyphs_of_tar(tar, seed=seed)
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as stream:
            np.savez(stream, keys=np.array(keys), glyphs=glyphs)
        scratch.replace(path)


def load_glyphs(config: Clusters) -> tuple[list[str], np.ndarray]:
    """Return all keys and their glyphs, u8[n, 2, 32, 32], in order of the tars; make those that are missing."""
    folder = config.out / "glyphs"
    folder.mkdir(parents=True, exist_ok=True)
    seed = json.loads((config.pairs / "icons.json").read_bytes())["config"]["seed"]
    commits = config.pairs / "commits"
    done = [path for path in sorted(config.pairs.glob("*.tar")) if (commits / f"{path.stem}.json").exists()]
    with pool(config.workers) as map_:
        for _ in map_(partial(save_glyphs, out=folder, seed=seed), done):
            pass
    parts = [np.load(folder / f"{path.stem}.npz") for path in done]
    keys = [str(key) for part in parts for key in part["keys"]]
    return keys, np.concatenate([part["glyphs"] for part in parts])


def same_numbers(package: Path) -> dict[str, str]:
    """Return, by key, a hash of the numbers its shapes are written with; colours do not matter."""
    hashes = {}
    for prefix in read_sets(package):
        for name, icon in read_icons(package, prefix).items():
            numbers = " ".join(NUMBERS.findall(icon.body))
            hashes[f"{prefix}--{name}"] = hashlib.sha256(numbers.encode()).hexdigest()[:32] if numbers else ""
    return hashes


def groups(values: Sequence[Any]) -> Iterable[list[int]]:
    """Return the rows that share a value, for every value that more than one row has; empty values are none."""
    rows: dict[Any, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        if value:
            rows[value].append(row)
    return (members for members in rows.values() if len(members) > 1)


def chain(values: Sequence[Any]) -> np.ndarray:
    """Return i64[m, 2], links that join all rows of a value."""
    links = [link for members in groups(values) for link in pairwise(members)]
    return np.array(links, dtype=np.int64).reshape(-1, 2)


def brand_pairs(entities: Sequence[str], kinds: Sequence[str]) -> np.ndarray:
    """Return i64[m, 2], every two pictures of one brand."""
    brands = [entity if kind == "brand" else "" for entity, kind in zip(entities, kinds, strict=True)]
    return np.array([pair for members in groups(brands) for pair in combinations(members, 2)], dtype=np.int64).reshape(
        -1, 2
    )


def components(count: int, links: np.ndarray) -> np.ndarray:
    """Return i64[n], for each row the least row that links i64[m, 2] join it to."""
    parent = np.arange(count)

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in links.tolist():
        a, b = root(one), root(other)
        if a != b:
            parent[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(count)])


def close_enough(links: pa.Table, about: Mapping[str, list[str]], config: Clusters) -> np.ndarray:
    """Return bool[m], which links count: simple shapes look alike, so things of different names must be nearly equal.

    A logo is the same drawing whoever draws it, so two pictures of one brand are copies sooner than two clocks are.
    """
    entity, brand = np.array(about["entity"]), np.array(about["kind"]) == "brand"
    one, other = links["one"].to_numpy(), links["other"].to_numpy()
    same = entity[one] == entity[other]
    least = np.where(same & brand[one], config.least_brand, np.where(same, config.least, config.least_unrelated))
    return links["score"].to_numpy() >= least


def candidates(ink: np.ndarray, entity: np.ndarray, config: Clusters) -> np.ndarray:
    """Return i64[m, 2], the pairs of glyphs u8[n, 32, 32] worth a close look: near for their names at 16 px."""
    pairs, scores = nearest(ink, config.candidates, least=config.least - 0.05)
    same = entity[pairs[:, 0]] == entity[pairs[:, 1]]
    return pairs[scores >= np.where(same, config.least - 0.05, config.least_unrelated - 0.03)]


def find_links(
    glyphs: np.ndarray, about: Mapping[str, list[str]], numbers: Sequence[str], config: Clusters
) -> pa.Table:
    """Return every link and near miss: rows `one` and `other`, `by` (numbers, artist, ink, mask) and `score`."""
    tables = []

    def add(pairs: np.ndarray, by: str, scores: np.ndarray) -> None:
        tables.append(pa.table({"one": pairs[:, 0], "other": pairs[:, 1], "by": [by] * len(pairs), "score": scores}))

    artist = chain([f"{a}/{e}" for a, e in zip(about["artist"], about["entity"], strict=True)])
    for pairs, by in ((chain(numbers), "numbers"), (artist, "artist")):
        add(pairs, by, np.ones(len(pairs), np.float32))
    brands = brand_pairs(about["entity"], about["kind"])
    near = candidates(glyphs[:, 0], np.array(about["entity"]), config)
    print(f"{len(near)} near pairs, {len(brands)} pairs of one brand", file=sys.stderr, flush=True)
    for pairs, layer, by in ((np.unique(np.concatenate([near, brands]), axis=0), 0, "ink"), (brands, 1, "mask")):
        scores = verify(pairs, glyphs[:, layer], least=config.least)
        kept = scores >= config.least - NEAR_MISS
        add(pairs[kept], by, scores[kept])
    return pa.concat_tables(tables)


def write_clusters(config: Clusters) -> str:
    """Do the whole of it and return the summary line."""
    started = time.perf_counter()
    keys, glyphs = load_glyphs(config)
    if config.glyphs_only:
        return f"{len(keys)} glyphs in {config.out}"
    package = open_package(config.source, config.cache or config.pairs.resolve().parent)
    entities = pq.read_table(config.entities)
    row_of = {key: row for row, key in enumerate(entities["key"].to_pylist())}
    entities = entities.take([row_of[key] for key in keys])  # an icon without a picture is in no cluster
    about = {column: entities[column].to_pylist() for column in ("artist", "entity", "kind")}
    if config.relink:
        links = pq.read_table(config.out / "links.parquet", columns=["one", "other", "by", "score"])
    else:
        hashes = same_numbers(package)
        links = find_links(glyphs, about, [hashes[key] for key in keys], config)
    linked = links.filter(pa.array(close_enough(links, about, config)))
    cluster = components(len(keys), np.stack([linked["one"].to_numpy(), linked["other"].to_numpy()], axis=1))
    pq.write_table(links, config.out / "links.parquet", compression="zstd")
    pq.write_table(pa.table({"key": keys, "cluster": cluster}), config.out / "clusters.parquet", compression="zstd")
    sizes = Counter(cluster.tolist())
    summary: dict[str, Any] = {
        "pictures": len(keys),
        "clusters": len(sizes),
        "largest": [size for _, size in sizes.most_common(10)],
        "links": dict(sorted(Counter(linked["by"].to_pylist()).items())),
        "least": config.least,
        "least_unrelated": config.least_unrelated,
        "least_brand": config.least_brand,
        "seconds": round(time.perf_counter() - started, 1),
    }
    put_json(config.out / "clusters.json", summary)
    return json.dumps(summary)


if __name__ == "__main__":
    sys.exit(run(write_clusters, Clusters, __doc__))
