"""Every page is one file in one style, whose colours can be read in both themes, and every value is escaped."""

import re

import pytest

from memory_builder.base.pages import data_uri, palette, render, stylesheet


def contrast(a: str, b: str) -> float:
    """WCAG 2: from 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_their_ground(dark: bool) -> None:
    colours = palette(dark=dark)
    for ground in ("paper", "raised"):
        for ink in ("ink", "soft"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    for mark in ("c0", "c1", "c2", "c3"):
        assert contrast(colours[mark], colours["paper"]) >= 4.5, mark


def test_every_colour_of_the_stylesheet_is_defined_in_it_for_both_themes() -> None:
    used = set(re.findall(r"var\(--(\w+)\)", stylesheet()))
    assert used <= palette().keys() == palette(dark=True).keys()
    assert len(re.findall(r"#[0-9a-f]{6}", stylesheet())) == 2 * len(palette())
    assert "url(" not in stylesheet()


def test_values_are_escaped_and_the_style_is_not() -> None:
    class Bold:
        def __html__(self) -> str:
            return "<svg></svg>"

    page = render("memory_builder.indexing/curves.html", title="<b>&", charts=[Bold()])
    assert "<title>&lt;b&gt;&amp;</title>" in page
    assert "<svg></svg>" in page
    assert f"<style>{stylesheet()}</style>" in page
    assert data_uri(b"abc", "image/png") == "data:image/png;base64,YWJj"
