"""Charts: curves, intervals and histograms, laid out as shapes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from memory_builder.base.drawing import Bar, Chart, Dot, Label, Line, Shape, moved

WIDTH, PLOT_HEIGHT, LEFT, RIGHT, TOP, BOTTOM, ROW = 440, 210, 52, 20, 44, 40, 16
GAP = 24
"""Pixels between the charts of one picture."""
COLOURS = ("c0", "c1", "c2", "c3")
"""Colours of the series, in order; a fifth series repeats the first."""
LETTER = 0.6
"""Estimated width of a letter, as a share of the font size."""
BINS = 24


Mark = Literal["dot", "dashes", "ring"]
"""Symbol before a name in the legend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Range, ticks and label of an axis."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """Position of a value on the axis: 0 at the low end, 1 at the high one."""
        scale = math.log10 if self.log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(max(value, self.low)) - low) / (high - low)


def number_axis(low: float, high: float, label: str = "", scale: float = 1.0, least_step: float = 0.0) -> Axis:
    """Return an axis with round ends and about five ticks; ``scale`` 100 labels shares in per cent."""
    rough = max((high - low or 1) / 4, least_step)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(nice for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = [(i * step, f"{round(scale * i * step, 9):,g}") for i in range(first, last + 1)]
    return Axis(low=ticks[0][0], high=ticks[-1][0], ticks=ticks, label=label)


def names_axis(names: Sequence[str], label: str = "") -> Axis:
    """Return an axis with names at 0, 1, 2 …"""
    return Axis(low=-0.3, high=max(len(names) - 0.7, 0.3), ticks=list(enumerate(names)), label=label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Points of one line, from left to right."""

    name: str
    points: Sequence[tuple[float, float]]
    spans: Sequence[tuple[float, float]] = ()
    """An interval for each point; none if empty."""
    colour: str
    dashed: bool = False
    dots: bool = True


def line_chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], ring: tuple[float, float, str] | None = None
) -> Chart:
    """Draw lines over numbers or names.

    Args:
        ring: a point to mark, and its name in the legend.
    """
    keys: list[tuple[str, str, Mark]] = [(one.name, one.colour, "dashes" if one.dashed else "dot") for one in series]
    keys += [(ring[2], "ink", "ring")] if ring else []
    legend, top = _legend(keys)
    to_pixels = _placer(x, y, top)
    shapes = [*_frame(title, x, y, top), *legend]
    for one in series:
        points = [to_pixels(*point) for point in one.points]
        for (value_x, _), (low, high) in zip(one.points, one.spans, strict=False):
            shapes.append(Line((to_pixels(value_x, low), to_pixels(value_x, high)), one.colour, 1.5))
        shapes.append(Line(tuple(points), one.colour, 2, one.dashed))
        shapes += [Dot(*point, 3, one.colour) for point in points if one.dots]
    if ring:
        shapes.append(Dot(*to_pixels(*ring[:2]), 6, "ink", filled=False))
    return Chart(title=title, width=WIDTH, height=top + PLOT_HEIGHT + BOTTOM, shapes=tuple(shapes))


def histogram(values: npt.NDArray[np.floating] | npt.NDArray[np.integer], title: str, x: str, y: str) -> Chart | None:
    """Draw the distribution of values; None without values."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    if whole and high - low < BINS:
        edges = np.arange(low, high + 2) - 0.5
    counts, _ = np.histogram(values, edges)
    ticks = [tick for tick in number_axis(low, high, least_step=whole).ticks if edges[0] <= tick[0] <= edges[-1]]
    across = Axis(low=float(edges[0]), high=float(edges[-1]), ticks=ticks, label=x)
    up = number_axis(0, float(counts.max()), y, least_step=1)
    to_pixels = _placer(across, up, TOP)
    shapes = _frame(title, across, up, TOP)
    for left, right, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True):
        (x0, y0), (x1, y1) = to_pixels(left, 0), to_pixels(right, n)
        shapes.append(Bar(x0 + 0.5, y1, max(1, x1 - x0 - 1), y0 - y1, "c0", f"{left:.3g} to {right:.3g}: {n:,}"))
    return Chart(title=title, width=WIDTH, height=TOP + PLOT_HEIGHT + BOTTOM, shapes=tuple(shapes))


Interval = tuple[float, float, float]
"""A value, and the low and high end of its interval."""


def interval_chart(
    title: str, x: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[Interval | None]]]
) -> Chart:
    """Draw intervals of shares in per cent: a row for each label, with an interval for each name."""
    axis = number_axis(0, max(one[2] for _, row in rows for one in row if one), x, scale=100)
    left = min(170, 16 + max(LETTER * 12 * len(label) for label, _ in rows))
    legend, top = _legend([(name, COLOURS[i % len(COLOURS)], "dot") for i, name in enumerate(names)], first=26)
    tall = 11 * len(names) + 9
    bottom = top + tall * len(rows)

    def at(value: float) -> float:
        return left + axis.share(value) * (WIDTH - RIGHT - left)

    shapes: list[Shape] = [_title(title), *legend, Label((left + WIDTH - RIGHT) / 2, bottom + 32, x, 0.5)]
    for value, text in axis.ticks:
        shapes += [Line(((at(value), top), (at(value), bottom)), "line"), Label(at(value), bottom + 13, text, 0.5)]
    for i, (label, row) in enumerate(rows):
        middle = top + tall * (i + 0.5)
        shapes += _wrapped(left - 10, middle, label, left - 10)
        for j, one in enumerate(row):
            if one is not None:
                y, colour = middle + 11 * (j - (len(names) - 1) / 2), COLOURS[j % len(COLOURS)]
                value, low, high = map(at, one)
                shapes += [Line(((low, y), (high, y)), colour, 2.5), Dot(value, y, 4, colour)]
    return Chart(title=title, width=WIDTH, height=bottom + BOTTOM, shapes=tuple(shapes))


def beside(title: str, charts: Sequence[Chart], columns: int = 2) -> Chart:
    """Join charts into one picture, row by row, under a title."""
    columns, head = min(columns, len(charts)), 40
    height = max(chart.height for chart in charts) + GAP
    shapes: list[Shape] = [Label(0, 10, title, 0, "ink", True, 14)]
    for i, chart in enumerate(charts):
        dx, dy = (i % columns) * (WIDTH + GAP), head + (i // columns) * height
        shapes += [moved(shape, dx, dy) for shape in chart.shapes]
    tall = head + math.ceil(len(charts) / columns) * height - GAP
    return Chart(title=title, width=columns * (WIDTH + GAP) - GAP, height=tall, shapes=tuple(shapes))


def _placer(x: Axis, y: Axis, top: float) -> Callable[[float, float], tuple[float, float]]:
    def to_pixels(value_x: float, value_y: float) -> tuple[float, float]:
        return LEFT + x.share(value_x) * (WIDTH - LEFT - RIGHT), top + (1 - y.share(value_y)) * PLOT_HEIGHT

    return to_pixels


def _frame(title: str, x: Axis, y: Axis, top: float) -> list[Shape]:
    """Title, grid, ticks and labels."""
    to_pixels, bottom = _placer(x, y, top), top + PLOT_HEIGHT
    shapes: list[Shape] = [_title(title), Label(0, 26, y.label)]
    for value, text in y.ticks:
        at = to_pixels(x.low, value)[1]
        shapes += [Line(((LEFT, at), (WIDTH - RIGHT, at)), "line"), Label(LEFT - 8, at, text, 1)]
    shapes += [Label(to_pixels(value, y.low)[0], bottom + 13, text, 0.5) for value, text in x.ticks]
    return [*shapes, Label((LEFT + WIDTH - RIGHT) / 2, bottom + 32, x.label, 0.5)]


def _title(text: str) -> Label:
    return Label(0, 8, text, 0, "ink", True, 13)


def _legend(keys: Sequence[tuple[str, str, Mark]], first: float = TOP) -> tuple[list[Shape], float]:
    """Lay out the legend in as many rows as it needs; return its shapes and the y of the plot below."""
    shapes: list[Shape] = []
    x, y = 0.0, first
    for name, colour, mark in keys:
        wide = 32 + LETTER * 12 * len(name)
        if x and x + wide > WIDTH:
            x, y = 0.0, y + ROW
        dashes = Line(((x, y), (x + 12, y)), colour, 2, dashed=True)
        shapes.append(dashes if mark == "dashes" else Dot(x + 5, y, 4, colour, filled=mark == "dot"))
        shapes.append(Label(x + 15, y, name, 0, "ink"))
        x += wide
    return shapes, y + ROW + 6


def _wrapped(x: float, y: float, text: str, width: float) -> list[Shape]:
    """Return a label that ends at ``x``, on two lines if it is wider than ``width``."""
    room, lines = int(width / (LETTER * 12)), [text]
    if len(text) > room and (cut := text.rfind(" ", 0, room + 1)) > 0:
        lines = [text[:cut], text[cut + 1 :]]
    first = y - 6.5 * (len(lines) - 1)
    return [Label(x, first + 13 * i, line, 1, "ink") for i, line in enumerate(lines)]
