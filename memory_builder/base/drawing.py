"""Shapes of a picture, drawn as SVG or PNG.

A colour is the name of one in the stylesheet, so a page shows its charts in its own theme; files use the light one.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape

from PIL import Image, ImageDraw, ImageFont

from memory_builder.base.pages import palette

MARGIN = 16
"""Pixels around a picture in a file."""
PNG_SCALE = 2


@dataclass(frozen=True, slots=True)
class Line:
    """Straight pieces from point to point."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle, or a ring."""

    x: float
    y: float
    radius: float
    colour: str
    filled: bool = True


@dataclass(frozen=True, slots=True)
class Bar:
    """A filled box with a tooltip."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    text: str


@dataclass(frozen=True, slots=True)
class Label:
    """Text on one line; ``y`` is its middle, ``anchor`` (0, 0.5 or 1) the point of it at ``x``."""

    x: float
    y: float
    text: str
    anchor: float = 0.0
    colour: str = "soft"
    bold: bool = False
    size: int = 12


Shape = Line | Dot | Bar | Label


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A picture that templates render in the colours of the page."""

    title: str
    width: float
    height: float
    shapes: tuple[Shape, ...]

    def __html__(self) -> str:
        return self._drawn(lambda name: f"var(--{name})", "")

    def svg(self) -> str:
        """Return an SVG file on white."""
        m, colours = MARGIN, palette()
        paper = f'<rect x="{-m}" y="{-m}" width="100%" height="100%" fill="{colours["paper"]}"/>'
        return self._drawn(colours.__getitem__, paper, margin=m) + "\n"

    def png(self) -> bytes:
        """Return a PNG file on white at double resolution."""
        s, colours = PNG_SCALE, palette()
        size = (round(s * (self.width + 2 * MARGIN)), round(s * (self.height + 2 * MARGIN)))
        image = Image.new("RGB", size, colours["paper"])
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            _paint(draw, moved(shape, MARGIN, MARGIN), colours[shape.colour])
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    def _drawn(self, colour: Callable[[str], str], paper: str, margin: int = 0) -> str:
        width, height = f"{self.width + 2 * margin:.0f}", f"{self.height + 2 * margin:.0f}"
        drawn = "\n".join(_element(shape, colour(shape.colour)) for shape in self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(self.title)}" width="{width}" '
            f'height="{height}" viewBox="{-margin} {-margin} {width} {height}" font-family="system-ui, sans-serif">'
            f"{paper}\n{drawn}\n</svg>"
        )


def moved(shape: Shape, dx: float, dy: float) -> Shape:
    if isinstance(shape, Line):
        return replace(shape, points=tuple((x + dx, y + dy) for x, y in shape.points))
    return replace(shape, x=shape.x + dx, y=shape.y + dy)


def _element(shape: Shape, colour: str) -> str:
    match shape:
        case Line(points, _, width, dashed):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            dash = ' stroke-dasharray="5 4"' if dashed else ""
            return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>'
        case Dot(x, y, radius, _, filled):
            paint = f'fill="{colour}"' if filled else f'fill="none" stroke="{colour}" stroke-width="1.5"'
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {paint}/>'
        case Bar(x, y, width, height, _, text):
            box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            return f'<rect {box} fill="{colour}"><title>{escape(text)}</title></rect>'
        case Label(x, y, text, anchor, _, bold, size):
            ends = {0: "start", 0.5: "middle", 1: "end"}[anchor]
            weight = ' font-weight="600"' if bold else ""
            layout = f'x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{ends}" font-size="{size}"{weight}'
            return f'<text {layout} fill="{colour}">{escape(text)}</text>'


def _paint(draw: ImageDraw.ImageDraw, shape: Shape, colour: str) -> None:
    s = PNG_SCALE
    match shape:
        case Line(points, _, width):
            draw.line([(s * x, s * y) for x, y in points], colour, max(1, round(s * width)), joint="curve")
        case Dot(x, y, r, _, filled):
            box = (s * (x - r), s * (y - r), s * (x + r), s * (y + r))
            draw.ellipse(box, colour if filled else None, colour, width=s)
        case Bar(x, y, width, height):
            draw.rectangle((s * x, s * y, s * (x + width), s * (y + height)), colour)
        case Label(x, y, text, anchor, _, _, size):
            align = {0: "lm", 0.5: "mm", 1: "rm"}[anchor]
            draw.text((s * x, s * y), text, colour, ImageFont.load_default(s * size), align)
