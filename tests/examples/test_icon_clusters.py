"""Which drawings count as copies of one another."""

import clusters
import numpy as np
import pyarrow as pa
import pytest
from copies import nearest, verify
from glyphs import crop, layers
from PIL import Image, ImageDraw

from memory_builder.retrieval.copies.glyph import correlation, unit


def drawing(number: int, *, size: int = 64, at: tuple[int, int] = (8, 8), side: int = 48) -> np.ndarray:
    """Return f32[size, size], an artist's drawing: some random strokes in a box of `side` pixels."""
    draw = np.random.default_rng(number)
    points = draw.uniform(0, 1, (5, 4))
    points[0] = (0, 0, 1, 1)
    big = Image.new("L", (size * 4, size * 4))
    pen = ImageDraw.Draw(big)
    for x0, y0, x1, y1 in points:
        line = [(at[0] + x0 * side) * 4, (at[1] + y0 * side) * 4, (at[0] + x1 * side) * 4, (at[1] + y1 * side) * 4]
        pen.line(line, fill=255, width=20)
    return np.asarray(big.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / 255


def glyph(ink: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    return crop(ink, ink if mask is None else mask)


def score(one: np.ndarray, other: np.ndarray) -> float:
    return float(correlation(one[None], other[None], least=0.9)[0])


def test_a_copy_is_found_wherever_it_lies_and_however_it_is_coloured() -> None:
    original = drawing(1)
    assert score(glyph(original), glyph(original)) == pytest.approx(1, abs=1e-4)
    moved = drawing(1, at=(2, 14))
    smaller = drawing(1, side=40)
    assert score(glyph(original), glyph(moved)) > 0.9
    assert score(glyph(original), glyph(smaller)) > 0.9
    inverted = glyph(1 - original, original)
    assert score(glyph(original), inverted) > 0.99


def test_different_drawings_are_not_copies() -> None:
    one = np.stack([glyph(drawing(number)) for number in range(20)])
    other = np.stack([glyph(drawing(number)) for number in range(20, 40)])
    assert correlation(one, other, least=0.9).max() < 0.9


def test_a_plain_tile_is_like_nothing() -> None:
    tile = np.full((32, 32), 255, np.uint8)
    assert not unit(tile).any()
    assert score(tile, tile) == 0


def test_ink_does_not_depend_on_the_colours_of_a_mono_icon() -> None:
    ink = drawing(3)
    inks = []
    for front, back in (("#ff0000", "#000000"), ("#102030", "#f0f0f0")):
        colours = [np.frombuffer(bytes.fromhex(c[1:]), np.uint8).astype(np.float32) for c in (front, back)]
        pixels = np.rint(colours[1] + ink[..., None] * (colours[0] - colours[1])).astype(np.uint8)
        inks.append(layers(pixels, (front, back))[0])
    assert np.abs(inks[0] - inks[1]).max() < 0.02


def test_nearest_finds_the_copies_among_many() -> None:
    many = [glyph(drawing(number)) for number in range(300)]
    many[299] = glyph(1 - drawing(7), drawing(7))
    pairs, _ = nearest(np.stack(many), 8, least=0.8)
    assert [7, 299] in pairs.tolist()
    scores = verify(pairs, np.stack(many), least=0.9)
    assert scores[pairs.tolist().index([7, 299])] > 0.9


def test_links_join_clusters() -> None:
    links = np.array([[0, 1], [3, 4], [1, 4]])
    assert clusters.components(6, links).tolist() == [0, 0, 2, 0, 0, 5]
    assert clusters.chain(["a", "b", "a", "", ""]).tolist() == [[0, 2]]


def test_numbers_see_through_colours() -> None:
    found = clusters.NUMBERS.findall('<path fill="#c00" d="M4 4h16"/><circle r="3" cx="8"/>')
    assert found == clusters.NUMBERS.findall('<path d="M4 4h16" fill="currentColor"/><circle r="3" cx="8"/>')
    assert found == ["M4 4h16", "3", "8"]
    assert clusters.NUMBERS.findall('<path id="M1"/>') == []


def test_unrelated_names_need_more_and_brands_less() -> None:
    config = clusters.Clusters(pairs=None, entities=None, out=None)  # type: ignore[arg-type]
    about = {"entity": ["home", "home", "house", "acme", "acme"], "kind": ["generic"] * 3 + ["brand"] * 2}
    links = pa.table({"one": [0, 0, 1, 0, 3], "other": [1, 2, 2, 1, 4], "score": [0.93, 0.93, 0.98, 0.85, 0.85]})
    assert clusters.close_enough(links, about, config).tolist() == [True, False, True, False, True]
