"""The splits: no cluster and no entity on two sides, tiers as they are called, captions in their shares."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import splits
from captions import SHARES, Thing, caption_of, spoken_words
from deal import BASE, DEV, MEMORY, SHOTS, TEST, Row, Rules, deal, names_in, representative

RULES = Rules()


def brand_rows(brands: int, clusters: int, start: int) -> list[Row]:
    """Return brands drawn in so many clusters of two pictures each."""
    rows = []
    for brand in range(brands):
        for cluster in range(clusters):
            name = f"acme{brand}x"
            for copy in range(2):
                key = f"logos{cluster}--{name}-{copy}"
                rows.append(Row(key, f"logos{cluster}", name, name, "brand", "plain", True, start + len(rows) // 2))
    return rows


def generic_rows(things: int, clusters: int, start: int) -> list[Row]:
    """Return generic things drawn in so many clusters of one picture."""
    rows = []
    for thing in range(things):
        for cluster in range(clusters):
            name = f"thing{thing}y"
            rows.append(
                Row(f"ui{cluster}--{name}", f"ui{cluster}", name, name, "generic", "plain", False, start + len(rows))
            )
    return rows


def corpus() -> list[Row]:
    rows = brand_rows(60, 4, 0) + generic_rows(40, 24, 10_000) + generic_rows(0, 0, 0)
    # A generic thing that names a brand, a flag, and a drawing two brands share.
    rows.append(Row("ui0--fork-of-acme1x", "ui0", "fork of acme1x", "forkofacme1x", "generic", "plain", False, 90_000))
    rows.append(Row("flag--fr", "flag", "flag of france", "flagoffrance", "flag", "plain", False, 90_001))
    rows.append(Row("cib--acme2x", "cib", "acme2x", "acme2x", "brand", "plain", True, 90_002))
    rows.append(Row("cib--acme3x", "cib", "acme3x", "acme3x", "brand", "plain", True, 90_002))
    return sorted(rows)


def table_of(rows: list[Row], rules: Rules = RULES) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in Row._fields}
    columns |= {"artist": columns["set"], "display": columns["words"], "tags": [""] * len(rows)}
    names = {row.set: (f"Set {row.set}", "UI 24px") for row in rows}
    return splits.split_table(pa.table(columns), names, rules)


def test_no_cluster_and_no_entity_is_on_two_sides() -> None:
    table = table_of(corpus())
    assert splits.problems(table) == []
    assert {TEST, DEV, BASE, MEMORY, SHOTS} <= set(table["split"].to_pylist())


def test_tiers_are_what_base_training_has_seen() -> None:
    rows = table_of(corpus()).to_pylist()
    seen = Counter(row["entity"] for row in rows if row["split"] == BASE)
    tiers = {row["entity"]: row["tier"] for row in rows if row["tier"]}
    assert Counter(tiers.values()).keys() == {"absent", "rare", "common"}
    for entity, tier in tiers.items():
        assert {"absent": seen[entity] == 0, "rare": 1 <= seen[entity] <= 4, "common": seen[entity] >= 5}[tier]
        assert any(row["entity"] == entity and row["split"] == MEMORY for row in rows)


def test_what_names_or_shares_a_drawing_with_a_brand_is_withheld() -> None:
    rows = {row["key"]: row["split"] for row in table_of(corpus()).to_pylist()}
    assert rows["ui0--fork-of-acme1x"] == rows["cib--acme2x"] == rows["cib--acme3x"] == rows["flag--fr"] == MEMORY


def test_base_captions_name_no_brand_that_is_asked_about() -> None:
    rows = table_of(corpus()).to_pylist()
    brands = {row["entity"] for row in rows if row["tier"] in ("absent", "rare")}
    for row in rows:
        if row["split"] == BASE:
            assert names_in(row["caption"].lower()) & brands <= {row["entity"]}


def test_the_same_seed_gives_the_same_splits_in_any_order() -> None:
    rows = corpus()
    one, _ = deal(rows, set(), RULES)
    other, _ = deal(rows[::-1], set(), RULES)
    assert one == other
    assert one != deal(rows, set(), replace(RULES, seed=1))[0]


def test_a_word_of_the_grammar_is_no_brand_to_ask_about() -> None:
    rows = [row._replace(words="sticker", entity="sticker") for row in brand_rows(1, 6, 0)]
    assert deal(rows, set(), RULES)[1].keys() == {"sticker"}
    assert not deal(rows, spoken_words(), RULES)[1]


@pytest.mark.parametrize("column", ["cluster", "entity"])
def test_check_finds_a_leak(column: str) -> None:
    table = table_of(corpus())
    rows = table.to_pylist()
    asked = next(row for row in rows if row["split"] == TEST)
    other = next(i for i, row in enumerate(rows) if row["split"] == (MEMORY if column == "cluster" else DEV))
    rows[other] = rows[other] | {column: asked[column]}
    assert splits.problems(pa.Table.from_pylist(rows, schema=table.schema))


def test_captions_keep_their_shares() -> None:
    says: Counter[str] = Counter()
    named = 0
    for number in range(4000):
        thing = Thing(
            key=f"a--{number}",
            words="red panda",
            set_name="Set",
            headings=("animals",),
            logo=False,
            aliases=("lesser panda",),
        )
        text, what = caption_of(thing, ["blue whale"], 0)
        says[what] += 1
        named += "red panda" in text
        assert ("blue whale" in text) == (what == "other")
        assert ("lesser panda" in text) == (what == "alias")
        assert caption_of(thing, ["blue whale"], 0) == (text, what)
    for what, share in SHARES.items():
        assert says[what] / 4000 == pytest.approx(share, abs=0.025)
    assert named == says["name"]


@pytest.mark.skipif("ICONS_SPLITS" not in os.environ, reason="ICONS_SPLITS names no folder of finished splits")
def test_the_real_splits_hold() -> None:
    assert "no cluster and no entity on two sides" in splits.check_splits(Path(os.environ["ICONS_SPLITS"]))


def test_a_brand_is_asked_about_with_what_its_set_calls_a_logo() -> None:
    wordmark, folder, unmarked, logo = (
        Row(f"{name}--zed", name, "zed", "zed", "brand", role, marked, number)
        for number, (name, role, marked) in enumerate(
            [("a", "wordmark", True), ("b", "folder", True), ("c", "plain", False), ("d", "plain", True)]
        )
    )
    assert representative([wordmark, folder, unmarked], 0) is None
    assert representative([wordmark, folder, unmarked, logo], 0) == logo
    assert representative([unmarked._replace(entity="github")], 0) is not None  # a name that means nothing else
    found, classes = deal([wordmark, folder, unmarked, logo], set(), RULES)
    assert found[logo.key] == classes["zed"].split
