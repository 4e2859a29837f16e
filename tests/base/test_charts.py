"""Charts hold every value, stay inside their picture, and are drawn in the page's colours or on their own."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from memory_builder.base.charts import (
    Axis,
    Series,
    beside,
    histogram,
    interval_chart,
    line_chart,
    names_axis,
    number_axis,
)
from memory_builder.base.drawing import MARGIN, Bar, Chart, Dot, Label
from memory_builder.base.pages import palette


def curves() -> Chart:
    x = Axis(low=1, high=1000, ticks=[(1, "1 B"), (1000, "1 kB")], label="bytes", log=True)
    series = [
        Series(name="recall@1 & more", points=[(1, 0.1), (10, 0.5)], spans=[(0, 0.2), (0.4, 0.6)], colour="c0"),
        Series(name="flat", points=[(1, 0.3), (1000, 0.3)], colour="ink", dashed=True, dots=False),
    ]
    return line_chart("A <title>", x, number_axis(0, 1, "recall"), series, (10, 0.5, "in use"))


def intervals() -> Chart:
    rows = [("zero-shot", [(0.1, 0.05, 0.2), None]), ("a method with a name of two lines", [(0.3, 0.2, 0.41)] * 2)]
    return interval_chart("Accuracy", "top-1 in per cent", ["all", "rare"], rows)


@pytest.mark.parametrize("chart", [curves(), intervals(), beside("both", [curves(), intervals(), curves()])])
def test_shapes_stay_inside_and_both_files_have_the_size_of_the_picture(chart: Chart) -> None:
    for shape in chart.shapes:
        for x, y in shape.points if hasattr(shape, "points") else [(shape.x, shape.y)]:
            assert -1 <= x <= chart.width
            assert -1 <= y <= chart.height
    root = ElementTree.fromstring(chart.svg())
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    assert (width, height) == (round(chart.width + 2 * MARGIN), round(chart.height + 2 * MARGIN))
    assert Image.open(io.BytesIO(chart.png())).size == (2 * width, 2 * height)


def test_a_page_shows_a_chart_in_its_own_colours_and_a_file_in_the_light_ones() -> None:
    inline, file = str(escape(curves())), curves().svg()
    assert set(re.findall(r'(?:fill|stroke)="([^"]+)"', inline)) <= {"none", *(f"var(--{name})" for name in palette())}
    assert set(re.findall(r'(?:fill|stroke)="([^"]+)"', file)) <= {"none", *palette().values()}
    assert "A &lt;title&gt;" in inline
    assert "recall@1 &amp; more" in inline


def test_values_lie_where_the_axes_say() -> None:
    dots = [shape for shape in curves().shapes if isinstance(shape, Dot)]
    low, middle, ring = (dot for dot in dots if dot.radius in (3, 6))
    assert (ring.x, ring.y) == (middle.x, middle.y)
    assert not ring.filled
    assert low.y > middle.y
    labels = {shape.text: shape for shape in curves().shapes if isinstance(shape, Label)}
    assert low.x == labels["1 B"].x
    assert middle.x - low.x == pytest.approx((labels["1 kB"].x - labels["1 B"].x) / 3)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, ["0", "0.25", "0.5", "0.75", "1"]),
        (0, 19.2, ["0", "5", "10", "15", "20"]),
        (3, 3, ["3", "3.25"]),
        (0, 12_000, ["0", "5,000", "10,000", "15,000"]),
    ],
)
def test_an_axis_ends_at_round_numbers(low: float, high: float, ticks: list[str]) -> None:
    axis = number_axis(low, high)
    assert [text for _, text in axis.ticks] == ticks
    assert (axis.low, axis.high) == (axis.ticks[0][0], axis.ticks[-1][0])


def test_names_stand_equally_far_apart() -> None:
    axis = names_axis(["1", "4", "all"])
    shares = [axis.share(i) for i in range(3)]
    assert shares[1] - shares[0] == pytest.approx(shares[2] - shares[1])
    assert 0 < shares[0] < shares[2] < 1


def test_histograms_count_every_value_once() -> None:
    for values in (np.array([3, 3, 4]), np.arange(1_000), np.array([0.25]), np.linspace(0, 1, 77)):
        chart = histogram(values, "t", "a", "u")
        assert chart is not None
        bars = [int(shape.text.split(": ")[1].replace(",", "")) for shape in chart.shapes if isinstance(shape, Bar)]
        assert sum(bars) == len(values)
    assert histogram(np.zeros(0), "t", "a", "u") is None
