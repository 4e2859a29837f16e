"""Deal clusters out to the splits: which entities are asked about, at which tier, and where their clusters go.

Pure functions over rows; `splits.py` reads and writes. Every draw is a hash of the seed and a name, and depends on
nothing else.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from names import BRANDS

BASE, MEMORY, DEV, TEST, SHOTS, DROPPED = "base", "memory", "dev", "test", "shots", "dropped"
SPLITS = (BASE, MEMORY, DEV, TEST, SHOTS, DROPPED)
TIERS = ("absent", "rare", "common")
MOST_RARE = 4  # occurrences in base training of an entity that is rare
# Brands whose name some sets give to another thing: twins of the zodiac, hands and faces among emoji, a grid of four.
AMBIGUOUS = frozenset({"gemini", "openhands", "huggingface", "uservoice", "pinboard", "appstore", "foursquare"})
MANY_CLUSTERS = 9  # of a rare brand, for base training to see two of them
LONGEST_NAME = 4  # words of a name looked for inside other names


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The numbers the splits follow from."""

    seed: int = 0
    """Seed of every draw."""
    least_clusters: int = 3
    """Clusters a brand must have to be asked about: one each for evaluation, memory and, if rare, base training."""
    dev_share: float = 0.2
    """Share of the entities asked about that are for development."""
    rare_share: float = 0.5
    """Share of the brands asked about that occur in base training, one to four times; the others are absent."""
    common_clusters: int = 12
    """Clusters a generic entity must have to be asked about."""
    most_ordinary: int = 20
    """Pictures of other generic things whose names hold a brand's, at most; a brand beyond that is an ordinary word."""
    few_shot_sets: int = 20
    """Icon sets that must draw a generic entity for it to be a few-shot class."""
    most_shots: int = 16
    """Training pictures of a few-shot class, at most."""
    base_share: float = 0.46
    """Share of all clusters nothing else is decided about that are base training; the rest is memory."""


class Row(NamedTuple):
    """A picture."""

    key: str
    set: str
    words: str
    entity: str
    kind: str
    role: str
    logo: bool
    cluster: int


class Class(NamedTuple):
    """An entity asked about: its split (dev or test), its tier, and whether it has shots."""

    split: str
    tier: str
    few_shot: bool


def draw(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56


def by_cluster(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """Return the rows of each cluster."""
    clusters: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        clusters[row.cluster].append(row)
    return clusters


def own_clusters(clusters: Mapping[int, Sequence[Row]]) -> dict[str, list[int]]:
    """Return, by entity with a picture to ask about, the clusters that show it and nothing else."""
    found: dict[str, list[int]] = defaultdict(list)
    for cluster, rows in clusters.items():
        if len({row.entity for row in rows}) == 1:
            found[rows[0].entity].append(cluster)
    return {entity: own for entity, own in found.items() if any(representative(clusters[c], 0) for c in own)}


def representative(rows: Sequence[Row], seed: int) -> Row | None:
    """Return the picture of a cluster to ask about, if there is one.

    No wordmark, which can be read, and no folder wearing a badge; of a brand, only what its set calls a logo, unless
    the name can mean nothing else.
    """
    plain = [row for row in rows if row.role == "plain" and shows(row)]
    return min(plain, key=lambda row: draw(seed, "representative", row.key), default=None)


def shows(row: Row) -> bool:
    """Return whether a picture surely shows what its entity is."""
    return row.logo or row.entity in BRANDS if row.kind == "brand" else not row.logo


def choose_classes(
    rows: Sequence[Row], own: Mapping[str, Sequence[int]], spoken: Collection[str], rules: Rules
) -> dict[str, Class]:
    """Return the entities asked about; none is a word of `spoken`, which captions use for any picture."""
    kinds = {row.entity: row.kind for row in rows}
    names = {row.key: names_in(row.words) for row in rows}
    ordinary = Counter(name for row in rows if row.kind == "generic" for name in names[row.key])
    brands: dict[str, Class] = {}
    for entity in sorted(own):
        enough = kinds[entity] == "brand" and len(own[entity]) >= rules.least_clusters
        clear = len(entity) > 1 and entity not in AMBIGUOUS and entity not in spoken
        if enough and clear and ordinary[entity] <= rules.most_ordinary:
            tier = "rare" if draw(rules.seed, "rare", entity) < rules.rare_share else "absent"
            brands[entity] = Class(_side(entity, rules), tier, False)
    # A rare brand that names another one in passing, as GitHub Actions does, may not be seen either.
    for row in rows:
        if row.entity in brands and any(name != row.entity and name in brands for name in names[row.key]):
            brands[row.entity] = brands[row.entity]._replace(tier="absent")
    sets: dict[str, set[str]] = defaultdict(set)
    tainted = set()
    for row in rows:
        sets[row.entity].add(row.set)
        if not names[row.key].isdisjoint(brands):
            tainted.add(row.entity)
    things = {
        entity: Class(_side(entity, rules), "common", len(sets[entity]) >= rules.few_shot_sets)
        for entity in sorted(own)
        if kinds[entity] == "generic"
        and len(own[entity]) >= rules.common_clusters
        and len(entity) > 1
        and entity not in tainted
    }
    return brands | things


def _side(entity: str, rules: Rules) -> str:
    return DEV if draw(rules.seed, "dev", entity) < rules.dev_share else TEST


def names_in(words: str) -> set[str]:
    """Return every name that the words hold: up to four words next to each other, run together."""
    parts = words.split()
    spans = (
        (start, stop)
        for start in range(len(parts))
        for stop in range(start + 1, min(start + LONGEST_NAME, len(parts)) + 1)
    )
    return {"".join(parts[start:stop]) for start, stop in spans}


def withheld(rows: Sequence[Row], classes: Mapping[str, Class]) -> set[int]:
    """Return the clusters kept out of base training, as a picture in them shows or names a brand asked about.

    A name inside another (`github actions`, `fork of github`) counts, whatever the kind.
    """
    brands = {entity for entity, c in classes.items() if c.tier in ("absent", "rare")}
    return {row.cluster for row in rows if row.entity in brands or not brands.isdisjoint(names_in(row.words))}


def deal_class(
    entity: str, own: Sequence[int], clusters: Mapping[int, Sequence[Row]], c: Class, rules: Rules
) -> dict[int, str]:
    """Return the split of each cluster that shows this entity alone."""
    order = sorted(own, key=lambda cluster: draw(rules.seed, "deal", entity, min(row.key for row in clusters[cluster])))
    clear = [cluster for cluster in order if representative(clusters[cluster], rules.seed)]
    order = clear + [cluster for cluster in order if cluster not in clear]  # what can be asked about comes first
    count = len(order)
    if c.tier != "common":
        asked = min(len(clear), max(1, count // 3))
        seen = 0 if c.tier == "absent" else 1 if count < MANY_CLUSTERS else 2
        return _in_turn(order, [(c.split, asked), (BASE, seen), (MEMORY, count)])
    if not c.few_shot:
        asked = min(len(clear), max(1, count // 6))
        return _in_turn(order, [(c.split, asked), (BASE, max(5, (count - asked) // 2)), (MEMORY, count)])
    asked = min(len(clear), max(4, count // 5))
    kept = max(7, count // 4)  # for base training, five at least, and memory
    shots = max(0, min(rules.most_shots, count - asked - kept, len(clear) - asked))
    seen = max(5, (count - asked - shots) // 2)
    return _in_turn(order, [(c.split, asked), (SHOTS, shots), (BASE, seen), (MEMORY, count)])


def _in_turn(order: Sequence[int], parts: Sequence[tuple[str, int]]) -> dict[int, str]:
    splits = [split for split, count in parts for _ in range(count)]
    return dict(zip(order, splits, strict=False))


def deal(rows: Sequence[Row], spoken: Collection[str], rules: Rules) -> tuple[dict[str, str], dict[str, Class]]:
    """Return every key's split, and the entities asked about."""
    clusters = by_cluster(rows)
    own = own_clusters(clusters)
    classes = choose_classes(rows, own, spoken, rules)
    kept_out = withheld(rows, classes)
    split_of: dict[int, str] = {}
    for entity, c in classes.items():
        split_of |= deal_class(entity, own[entity], clusters, c, rules)
    for cluster, members in clusters.items():
        if cluster not in split_of:
            split_of[cluster] = _split_of_rest(members, cluster in kept_out, rules)
    keys: dict[str, str] = {}
    occurrences: Counter[str] = Counter()
    for cluster in sorted(clusters):
        keys |= _settle(clusters[cluster], split_of[cluster], classes, occurrences, rules)
    return keys, classes


def _split_of_rest(members: Sequence[Row], kept_out: bool, rules: Rules) -> str:
    """Return the split of a cluster that no class asks for."""
    kinds = {row.kind for row in members}
    first = min(row.key for row in members)
    # Flags and coins are left to the memory, as things nobody asks about; so are half of the brands with few pictures.
    if kept_out or kinds & {"flag", "ticker"}:
        return MEMORY
    if "brand" in kinds:
        brand = min(row.entity for row in members if row.kind == "brand")
        return BASE if draw(rules.seed, "brand", brand) < rules.rare_share else MEMORY
    return BASE if draw(rules.seed, "rest", first) < rules.base_share else MEMORY


def _settle(
    members: Sequence[Row], split: str, classes: Mapping[str, Class], occurrences: Counter[str], rules: Rules
) -> dict[str, str]:
    """Return a cluster's splits by key: copies of what is asked about are dropped, as is the fifth of a rare brand."""
    if split in (DEV, TEST, SHOTS):
        asked = representative(members, rules.seed)
        return {row.key: split if row is asked else DROPPED for row in members}
    keys = {}
    for row in sorted(members, key=lambda row: row.key):
        c = classes.get(row.entity)
        if split == BASE and c is not None and c.tier == "rare":
            occurrences[row.entity] += 1
            keys[row.key] = BASE if occurrences[row.entity] <= MOST_RARE else DROPPED
        else:
            keys[row.key] = split
    return keys
