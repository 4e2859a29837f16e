"""A line chart as SVG: some lines over a few named places, each with its name at its end."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f5fbf", "#b3541e", "#1f7a4d", "#8a3ea8")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 300, 48, 90, 16, 44
LABEL_GAP = 13
"""Pixels between two lines' names, at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChartLine:
    """One line."""

    label: str
    """At its end; none if empty."""
    values: Sequence[float | None]
    """One for each place; None is left out."""
    colour: str
    dashed: bool = False
    spans: Sequence[tuple[float, float]] = ()
    """An interval for each value, drawn as a bar; none if empty."""


def line_chart(
    below: str, places: Sequence[str], lines: Sequence[ChartLine], top: float, ticks: Sequence[float]
) -> str:
    """Return the chart.

    Args:
        below: what the places are.
        places: their names, from left to right, equally far apart.
        lines: drawn in this order.
        top: the value at the upper edge; zero is at the lower one.
        ticks: values that are named at the left.
    """

    def x(place: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * place / max(len(places) - 1, 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)

    end, parts = WIDTH - RIGHT, []
    for tick in ticks:
        parts.append(f'<line x1="{LEFT}" x2="{end}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#d5dae0"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for i, place in enumerate(places):
        parts.append(f'<text x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(place)}</text>')
    parts.append(f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(below)}</text>')
    for line in lines:
        parts += [
            f'<line x1="{x(i):.1f}" x2="{x(i):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}" stroke="{line.colour}" '
            'stroke-opacity="0.4" stroke-width="5"/>'
            for i, (low, high) in enumerate(line.spans)
        ]
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(line.values) if v is not None)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>')
    ends = [(y(next(v for v in reversed(line.values) if v is not None)), line) for line in lines if line.label]
    lowest = 0.0
    for height, line in sorted(ends, key=lambda of_line: of_line[0]):
        lowest = max(height + 4, lowest + LABEL_GAP)
        parts.append(f'<text x="{end + 6}" y="{lowest:.1f}" style="fill:{line.colour}">{escape(line.label)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#56616e"><rect width="{WIDTH}" height="{HEIGHT}" '
        f'fill="#fff"/>{"".join(parts)}</svg>\n'
    )
