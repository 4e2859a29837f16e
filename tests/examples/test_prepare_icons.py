"""The icon corpus: a tiny package stands for the real one, so nothing is fetched."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import iconify
import numpy as np
import prepare
import pytest
import render
from PIL import Image

SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'
CIRCLE = '<circle cx="8" cy="8" r="6" fill="#c00"/>'
DRAWN_LATE = (
    '<path fill="none" stroke="currentColor" stroke-width="4" stroke-dasharray="16" stroke-dashoffset="16" '
    'd="M4 12h16"><animate fill="freeze" attributeName="stroke-dashoffset" dur="1s" values="16;0"/></path>'
)
MONO: dict[str, Any] = {
    "prefix": "mono",
    "width": 24,
    "height": 24,
    "icons": {
        "clock-outline": {"body": SQUARE},
        "wide": {"body": SQUARE, "width": 48},
        "late": {"body": DRAWN_LATE},
        "broken": {"body": '<path fill="currentColor" d="M4 4h16'},
        "gone": {"body": SQUARE, "hidden": True},
    },
    "aliases": {"watch": {"parent": "clock-outline"}},
}
COLOUR: dict[str, Any] = {
    "prefix": "colour",
    "icons": {
        "red-dot": {"body": CIRCLE},
        "white-dot": {"body": CIRCLE.replace("#c00", "#fff")},
        "empty": {"body": "<g/>"},
    },
}
KEYS = ["colour--red-dot", "colour--white-dot", "mono--clock-outline", "mono--late", "mono--wide"]


def info(name: str, title: str, spdx: str) -> dict[str, Any]:
    return {"name": name, "author": {"name": "A. N. Artist"}, "license": {"title": title, "spdx": spdx}}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "json").mkdir(parents=True)
    sets = {"mono": info("Mono", "Apache 2.0", "Apache-2.0"), "colour": info("Colour", "MIT", "MIT")}
    sets["mono"]["category"] = "UI 24px"
    written = {"package": {"name": iconify.PACKAGE, "version": iconify.VERSION}, "collections": sets}
    for name, value in (written | {"json/mono": MONO, "json/colour": COLOUR}).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


@pytest.fixture
def config(package: Path, tmp_path: Path) -> prepare.Prepare:
    return prepare.Prepare(out=tmp_path / "out", source=package, pairs_per_shard=3, workers=1)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def members(out: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for data in shards(out).values():
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def test_every_icon_is_a_pair_or_a_counted_failure(config: prepare.Prepare) -> None:
    summary = prepare.prepare(config)
    found = members(config.out)
    assert sorted(found) == sorted(f"{key}.{suffix}" for key in KEYS for suffix in ("png", "txt", "json"))
    about = json.loads((config.out / "icons.json").read_text())
    assert (about["pairs"], about["shards"]) == (5, 3)
    assert about["reasons"] == {"blank": 1, "unreadable": 1}
    assert [failure["key"] for failure in about["failures"]] == ["colour--empty", "mono--broken"]
    assert about["bytes"] == sum(map(len, shards(config.out).values()))
    assert about["sets"]["mono"]["pairs"] == 3
    assert summary.startswith("5 pairs in 3 shards")
    assert "1 blank, 1 unreadable" in summary


def test_caption_and_json(config: prepare.Prepare) -> None:
    prepare.prepare(config)
    found = members(config.out)
    assert found["mono--clock-outline.txt"] == b"clock outline"
    assert json.loads(found["mono--clock-outline.json"]) == {
        "key": "mono--clock-outline",
        "set": "mono",
        "set_name": "Mono",
        "name": "clock-outline",
        "licence": "Apache 2.0",
        "licence_spdx": "Apache-2.0",
        "category": "UI 24px",
        "palette": False,
        "width": 64,
        "height": 64,
    }
    assert json.loads(found["colour--red-dot.json"])["palette"] is True


def test_caption_of_both_separators() -> None:
    assert prepare.caption_of("red_panda-face") == "red panda face"


def test_pictures(config: prepare.Prepare) -> None:
    prepare.prepare(config)
    found = members(config.out)
    red, white = pixels(found["colour--red-dot.png"]), pixels(found["colour--white-dot.png"])
    assert red.shape == (64, 64, 3)
    assert (red[0, 0].tolist(), red[32, 32].tolist()) == ([255, 255, 255], [0xCC, 0, 0])
    # White on white shows nothing, so it gets the dark ground.
    assert (white[0, 0].tolist(), white[32, 32].tolist()) == ([0x20, 0x24, 0x2C], [255, 255, 255])
    front, back = render.colours_of("mono", "clock-outline", 0)
    square = pixels(found["mono--clock-outline.png"])
    assert bytes(square[32, 32]).hex() == front[1:]
    assert bytes(square[0, 0]).hex() == back[1:]
    # An animated icon is shown as it looks once drawn.
    assert bytes(pixels(found["mono--late.png"])[32, 32]).hex() == render.colours_of("mono", "late", 0)[0][1:]


def test_png_is_lossless_with_and_without_a_palette() -> None:
    few = Image.new("RGB", (16, 16), (1, 2, 3))
    few.putpixel((3, 4), (250, 0, 9))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for picture, mode in ((few, "P"), (Image.fromarray(noise), "RGB")):
        png = render.encode_png(picture)
        assert np.array_equal(pixels(png), np.asarray(picture))
        with Image.open(io.BytesIO(png)) as written:
            assert (written.mode, written.info) == (mode, {})


def test_same_bytes_for_any_number_of_workers(config: prepare.Prepare, tmp_path: Path) -> None:
    two = replace(config, out=tmp_path / "two", workers=2)
    prepare.prepare(config)
    prepare.prepare(two)
    assert shards(config.out) == shards(two.out)
    assert (config.out / "icons.json").read_bytes() == (two.out / "icons.json").read_bytes()


def test_rerun_does_only_what_is_missing(config: prepare.Prepare, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.prepare(config)
    before = shards(config.out)
    whole = (config.out / "icons.json").read_bytes()
    assert "; 0 written in" in prepare.prepare(config)
    assert "3 complete already" in capsys.readouterr().err
    # A tar without its record is what a killed run leaves.
    (config.out / "00001.tar").write_bytes(b"half a tar")
    (config.out / "commits" / "00001.json").unlink()
    (config.out / "00002.tar").unlink()
    assert "; 3 written in" in prepare.prepare(config)
    assert shards(config.out) == before
    assert (config.out / "icons.json").read_bytes() == whole


def test_another_config_is_refused(config: prepare.Prepare) -> None:
    prepare.prepare(config)
    with pytest.raises(iconify.IconsError, match=r'(?s)"seed": 0.*"seed": 1.*another --out'):
        prepare.prepare(replace(config, seed=1))


def test_pictures_do_not_depend_on_the_selection(config: prepare.Prepare, tmp_path: Path) -> None:
    prepare.prepare(config)
    only = replace(config, out=tmp_path / "only", licences=("Apache-2.0",), pairs_per_shard=100)
    prepare.prepare(only)
    everything, some = members(config.out), members(only.out)
    assert some == {name: data for name, data in everything.items() if name.startswith("mono--")}


def test_max_pairs_is_a_sample_over_the_sets(config: prepare.Prepare) -> None:
    names = {"a": [f"x{i}" for i in range(900)], "b": [f"y{i}" for i in range(100)]}
    plan = prepare.plan_shards(names, replace(config, max_pairs=100, pairs_per_shard=40))
    drawn = [icon for shard in plan for icon in shard.icons]
    assert [len(shard.icons) for shard in plan] == [40, 40, 20]
    assert len(set(drawn)) == 100
    assert 0 < sum(prefix == "b" for prefix, _ in drawn) < 30


def test_colours_depend_on_seed_set_and_name_and_contrast() -> None:
    assert render.colours_of("mdi", "home", 0) == render.colours_of("mdi", "home", 0)
    drawn = {render.colours_of(s, n, seed) for s in ("mdi", "tabler") for n in ("home", "bell") for seed in (0, 1)}
    assert len(drawn) == 8
    for front, back in drawn:
        assert render.contrast(bytes.fromhex(front[1:]), bytes.fromhex(back[1:])) >= render.LEAST_CONTRAST


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": ("mono", "nope")}, "--sets: .* has no nope; it has colour, mono"),
        ({"licences": ("WTFPL",)}, "--licences: .* has no WTFPL; it has Apache-2.0, MIT"),
        ({"sets": ("mono",), "licences": ("MIT",)}, "none of --sets is under one of --licences"),
        ({"workers": 0}, "--workers is 0"),
        ({"max_pairs": 0}, "--max-pairs is 0"),
    ],
)
def test_wrong_usage_says_what_there_is(config: prepare.Prepare, change: dict[str, Any], message: str) -> None:
    with pytest.raises(iconify.IconsError, match=message):
        prepare.prepare(replace(config, **change))


def test_another_version_of_the_package_is_refused(config: prepare.Prepare, package: Path) -> None:
    (package / "package.json").write_text(json.dumps({"name": iconify.PACKAGE, "version": "1.0.0"}))
    with pytest.raises(iconify.IconsError, match=r"holds @iconify/json@1\.0\.0, not @iconify/json@2"):
        prepare.prepare(config)


def test_tgz_is_unpacked_once_into_the_cache(package: Path, tmp_path: Path) -> None:
    tgz = tmp_path / "package.tgz"
    with tarfile.open(tgz, "w:gz") as tar:
        tar.add(package, "package")
    first = iconify.open_package(tgz, tmp_path / "cache")
    assert sorted(iconify.read_sets(first)) == ["colour", "mono"]
    tgz.unlink()
    assert iconify.open_package(None, tmp_path / "cache") == first
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]


def test_npm_missing_says_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(iconify.IconsError, match=r"npm is not on the PATH: .* --source"):
        iconify.open_package(None, tmp_path / "cache")
