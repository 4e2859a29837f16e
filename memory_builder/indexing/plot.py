"""Draw recall/work curves as a picture: laid out once as a few shapes, written as SVG, HTML or PNG.

PNG is drawn with pillow at twice the size; the other two are text. No plotting library is needed.
"""

import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from memory_builder.errors import UsageError
from memory_builder.indexing.curve import RECALL_AT, Curve, bytes_text

PANEL_W, PANEL_H, LEFT, TOP, RIGHT, BOTTOM, TITLE = 430, 270, 52, 40, 18, 44, 34
COLOURS = {1: "#9aa5b1", 10: "#1f5fbf", 100: "#d9822b"}
INK, FAINT, PAPER = "#1f2933", "#e4e7eb", "#ffffff"
PNG_SCALE = 2
SUFFIXES = (".png", ".svg", ".html")


@dataclass(frozen=True, slots=True)
class Line:
    """Straight pieces from point to point."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle, or a ring."""

    x: float
    y: float
    radius: float
    colour: str
    filled: bool = True


@dataclass(frozen=True, slots=True)
class Label:
    """Text on one line; ``y`` is its middle, ``at`` (0, 0.5 or 1) the part of it that stands at ``x``."""

    x: float
    y: float
    text: str
    size: int
    colour: str = INK
    at: float = 0.0


Shape = Line | Dot | Label


def plot(curves: Sequence[Curve], title: str, suffix: str) -> bytes:
    """The picture as a file with this suffix.

    Raises:
        UsageError: there is no curve yet, or the suffix is none of SUFFIXES.
    """
    check_suffix(Path(f"curve{suffix}"))
    if not curves:
        raise UsageError("nothing to plot: no index has been tuned yet; run memory-builder index first")
    columns = min(2, len(curves))
    width = columns * PANEL_W
    height = TITLE + math.ceil(len(curves) / columns) * PANEL_H
    shapes: list[Shape] = [Label(LEFT / 2, TITLE / 2 + 4, title, 14)]
    for i, curve in enumerate(curves):
        shapes += _panel(curve, (i % columns) * PANEL_W, TITLE + (i // columns) * PANEL_H)
    if suffix == ".png":
        return _png(shapes, width, height)
    svg = _svg(shapes, width, height)
    if suffix == ".html":
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        return f'{head}<body style="margin:2em;background:{PAPER}">{svg}</body></html>\n'.encode()
    return svg.encode()


def check_suffix(path: Path) -> None:
    """Refuse a file that could not be drawn, before anything is read."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: expected a name that ends in {', '.join(SUFFIXES)}")


def _panel(curve: Curve, left: float, top: float) -> list[Shape]:
    """One curve: recall upwards, bytes touched a query to the right, in powers of ten."""
    points = [*curve.points, *([curve.chosen] if curve.chosen else [])]
    work = [max(1.0, point.work_bytes) for point in points]
    low, high = math.floor(math.log10(min(work))), math.ceil(math.log10(max(work)) + 1e-9)
    high = max(high, low + 1)

    def x(point_work: float) -> float:
        share = (math.log10(max(1.0, point_work)) - low) / (high - low)
        return left + LEFT + share * (PANEL_W - LEFT - RIGHT)

    def y(recall: float) -> float:
        return top + TOP + (1 - recall) * (PANEL_H - TOP - BOTTOM)

    shapes: list[Shape] = [Label(left + LEFT, top + 12, f"{curve.name}: {curve.side} to {curve.keys}", 13)]
    for tick in range(6):
        at = y(tick / 5)
        shapes += [
            Line(((x(10**low), at), (x(10**high), at)), FAINT, 1),
            Label(left + LEFT - 6, at, f"{tick / 5:g}", 11, at=1),
        ]
    for power in range(low, high + 1):
        shapes += [Label(x(10.0**power), y(0) + 14, bytes_text(10.0**power), 11, at=0.5)]
    shapes += [Label((x(10.0**low) + x(10.0**high)) / 2, y(0) + 31, "bytes touched a query for ten rows", 11, at=0.5)]
    for i, k in enumerate(RECALL_AT):
        shapes += _line(
            [(x(p.work_bytes), y(p.recall[str(k)])) for p in curve.points if str(k) in p.recall], COLOURS[k]
        )
        at = left + LEFT + i * 76
        shapes += [Dot(at + 3, top + 28, 2.5, COLOURS[k]), Label(at + 9, top + 28, f"recall@{k}", 11)]
    if curve.chosen:
        in_use = f"in use: nprobe {curve.chosen.nprobe}, refine {curve.chosen.refine}"
        shapes += [Label(left + PANEL_W - RIGHT, top + 28, in_use, 11, at=1)]
        shapes += [Dot(x(curve.chosen.work_bytes), y(curve.chosen.recall["10"]), 6, INK, filled=False)]
    return shapes


def _line(points: list[tuple[float, float]], colour: str) -> list[Shape]:
    return [Line(tuple(points), colour, 2), *(Dot(x, y, 2.5, colour) for x, y in points)]


def _svg(shapes: Sequence[Shape], width: int, height: int) -> str:
    drawn = [f'<rect width="{width}" height="{height}" fill="{PAPER}"/>']
    for shape in shapes:
        match shape:
            case Line():
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
                drawn.append(
                    f'<polyline points="{points}" fill="none" stroke="{shape.colour}" stroke-width="{shape.width}"/>'
                )
            case Dot(x, y, radius, colour, filled):
                paint = f'fill="{colour}"' if filled else f'fill="none" stroke="{colour}"'
                drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {paint}/>')
            case Label(x, y, text, size, colour, at):
                anchor = {0: "start", 0.5: "middle", 1: "end"}[at]
                place = f'x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}"'
                drawn.append(f'<text {place} font-size="{size}" fill="{colour}">{html.escape(text)}</text>')
    frame = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, sans-serif"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>\n' + "\n".join(drawn) + "\n</svg>\n"


def _png(shapes: Sequence[Shape], width: int, height: int) -> bytes:
    s = PNG_SCALE
    image = Image.new("RGB", (s * width, s * height), PAPER)
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        match shape:
            case Line():
                draw.line(
                    [(s * x, s * y) for x, y in shape.points], shape.colour, round(s * shape.width), joint="curve"
                )
            case Dot():
                x, y, r = s * shape.x, s * shape.y, s * shape.radius
                fill = shape.colour if shape.filled else None
                draw.ellipse((x - r, y - r, x + r, y + r), fill, shape.colour, width=s)
            case Label():
                font = ImageFont.load_default(s * shape.size)
                anchor = {0: "lm", 0.5: "mm", 1: "rm"}[shape.at]
                draw.text((s * shape.x, s * shape.y), shape.text, shape.colour, font, anchor)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
