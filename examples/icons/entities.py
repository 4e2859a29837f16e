"""Say of every icon which thing it shows: `entities.parquet`, a row for each key.

    uv run python examples/icons/entities.py --out ~/icons/entities.parquet

An entity is a name with the marks of its set taken off (`names.py`), in one spelling. Its kind is what most of its
artists draw it as: `brand`, `flag`, `ticker` (a coin known by its symbol), `generic` or `homonym`, a word that is
both (zoom, eclipse).
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from command import run
from iconify import IconSet, icon_names, open_package, read_sets, read_tags
from names import BRANDS, FRAMES, Named, entity_of, read_name

# Sets one artist made, or took over from another, under several author names.
SAME_ARTIST = {
    "Google Inc": "Google",
    "Material Design Authors": "Google",
    "MDI Community": "Pictogrammers",
    "Family": "Ben Sperry",  # Famicons go on with Ionicons
}
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # {set}--{name}, in order
        ("set", pa.string()),
        ("artist", pa.string()),  # author of the set
        ("name", pa.string()),
        ("words", pa.string()),  # the thing in the set's own spelling
        ("entity", pa.string()),
        ("display", pa.string()),  # the class name: the spelling most artists use
        ("kind", pa.string()),  # brand, flag, ticker, generic or homonym
        ("logo", pa.bool_()),  # the set itself says that this is a logo
        ("role", pa.string()),  # plain, wordmark or folder (a folder that wears the thing as a badge)
        ("tags", pa.string()),  # the headings its set files it under, joined by "; "
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entities:
    """Write `entities.parquet`: the thing that each icon of the package shows."""

    out: Path
    """The parquet file."""
    source: Path | None = None
    """The package's tgz or its unpacked folder; npm fetches it otherwise."""
    cache: Path | None = None
    """Folder the package is unpacked into; beside --out otherwise."""


class Row(NamedTuple):
    """An icon with what its name says, before the names of all sets are weighed against each other."""

    set: str
    artist: str
    name: str
    tags: tuple[str, ...]
    named: Named
    entity: str


def read_rows(package: Path, sets: Mapping[str, IconSet]) -> list[Row]:
    """Read every icon's name, in order of keys."""
    rows = []
    for prefix, about in sorted(sets.items()):
        tags = read_tags(package, prefix)
        artist = SAME_ARTIST.get(about.author, about.author)
        for name in icon_names(package, prefix):
            named = read_name(prefix, about.category, tags.get(name, ()), name)
            rows.append(Row(prefix, artist, name, tags.get(name, ()), named, namespaced(named)))
    return rows


def namespaced(named: Named) -> str:
    """Return the entity's id; a coin's symbol is no name, so `ticker:near` is not `near`."""
    return ("ticker:" if named.ticker else "") + entity_of(named.words, logo=named.logo)


def join_brands(rows: Sequence[Row]) -> list[Row]:
    """Give an icon the brand it frames: `jam:github-circle` shows what the logo sets call github.

    A frame word is taken off where that makes the name of a brand that two artists mark as one.
    """
    artists: dict[str, set[str]] = defaultdict(set)
    plain: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        (artists if row.named.logo else plain)[row.entity].add(row.artist)
    brands = {
        entity for entity, by in artists.items() if entity in BRANDS or len(by) >= max(2, len(plain.get(entity, ())))
    }

    def joined(row: Row) -> Row:
        if row.named.ticker or row.named.country:
            return row
        words = list(row.named.words)
        while len(words) > 1 and words[-1] in FRAMES and entity_of(words, logo=row.named.logo) not in brands:
            words.pop()
        entity = entity_of(words, logo=row.named.logo)
        if entity not in brands:
            return row
        return row._replace(entity=entity, named=_with_words(row.named, words))

    return [joined(row) for row in rows]


def _with_words(named: Named, words: Sequence[str]) -> Named:
    return Named(words=tuple(words), role=named.role, logo=named.logo, country=named.country, ticker=named.ticker)


def kinds_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return each entity's kind, by how many artists draw it as a logo and how many as a thing."""
    logo: dict[str, set[str]] = defaultdict(set)
    plain: dict[str, set[str]] = defaultdict(set)
    kinds: dict[str, str] = {}
    for row in rows:
        (logo if row.named.logo else plain)[row.entity].add(row.artist)
        if row.named.country or row.named.ticker:
            kinds[row.entity] = "flag" if row.named.country else "ticker"
    for entity in logo.keys() | plain.keys():
        kinds.setdefault(entity, _kind(entity, len(logo.get(entity, ())), len(plain.get(entity, ()))))
    return kinds


def _kind(entity: str, logos: int, things: int) -> str:
    if entity in BRANDS or logos >= max(1, 2 * things):
        return "brand"
    return "homonym" if logos * 5 >= logos + things else "generic"


def displays_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return each entity's display name: the spelling most artists use, but spaced if a quarter of them space it."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for entity, spelling, _ in {(row.entity, " ".join(row.named.words), row.artist) for row in rows}:
        votes[entity][spelling] += 1
    return {entity: _elect(counts) for entity, counts in votes.items()}


def _elect(counts: Counter[str]) -> str:
    ranked = sorted(counts, key=lambda spelling: (-counts[spelling], -len(spelling), spelling))
    spaced = [spelling for spelling in ranked if " " in spelling]
    if spaced and counts[spaced[0]] * 4 >= counts.total():
        return spaced[0]
    return ranked[0]


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Return the rows of `entities.parquet`, in order of keys."""
    rows = join_brands(rows)
    kinds, displays = kinds_of(rows), displays_of(rows)
    columns: dict[str, list[Any]] = {
        "key": [f"{row.set}--{row.name}" for row in rows],
        "set": [row.set for row in rows],
        "artist": [row.artist for row in rows],
        "name": [row.name for row in rows],
        "words": [" ".join(row.named.words) for row in rows],
        "entity": [row.entity for row in rows],
        "display": [displays[row.entity] for row in rows],
        "kind": [kinds[row.entity] for row in rows],
        "logo": [row.named.logo for row in rows],
        "role": [row.named.role for row in rows],
        "tags": ["; ".join(row.tags) for row in rows],
    }
    return pa.table(columns, schema=SCHEMA).sort_by("key")


def write_entities(config: Entities) -> str:
    """Do the whole of it and return the summary line."""
    package = open_package(config.source, config.cache or config.out.resolve().parent)
    table = table_of(read_rows(package, read_sets(package)))
    scratch = config.out.with_suffix(".tmp")
    pq.write_table(table, scratch, compression="zstd")
    scratch.replace(config.out)
    kinds = Counter(table["kind"].to_pylist())
    entities = Counter(dict(set(zip(table["entity"].to_pylist(), table["kind"].to_pylist(), strict=True))).values())
    counts = ", ".join(f"{n} {kind} ({entities[kind]} entities)" for kind, n in kinds.most_common())
    return f"{len(table)} icons in {config.out}: {counts}"


if __name__ == "__main__":
    sys.exit(run(write_entities, Entities, __doc__))
