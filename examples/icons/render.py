"""Draw one icon: its colours, its picture and the picture's PNG. Pure functions of their arguments."""

import io
import random
import xml.etree.ElementTree as ET

import numpy as np
import resvg_py
from iconify import Icon
from PIL import Image

LIGHT, DARK = "#ffffff", "#20242c"  # grounds of icons that bring their own colours
LEAST_CONTRAST = 4.5  # between the two colours of a mono icon; the AA ratio for text, https://www.w3.org/TR/WCAG21/
LEAST_RANGE = 32  # of 255 levels, between the darkest and the lightest pixel of a channel, for a picture to be seen
SVG = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


class RenderError(Exception):
    """An icon has no picture; the two arguments are a countable reason and what the renderer said."""


def colours_of(icon_set: str, name: str, seed: int) -> tuple[str, str]:
    """Draw a foreground and a background, as #rrggbb, that depend on nothing but the arguments."""
    draw = random.Random(f"{seed}/{icon_set}/{name}")  # seeding with a string is the same in every process
    while True:
        front, back = draw.randbytes(3), draw.randbytes(3)
        if contrast(front, back) >= LEAST_CONTRAST:
            return f"#{front.hex()}", f"#{back.hex()}"


def contrast(a: bytes, b: bytes) -> float:
    """Return WCAG's contrast ratio of two sRGB colours of three bytes, from 1 (none) to 21."""

    def luminance(colour: bytes) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def last_frame(body: str) -> str:
    """Return an animated body as it looks once drawn: its first frame, which resvg shows, is often empty."""
    if "<animate" not in body and "<set" not in body:
        return body
    root = ET.fromstring(f"<svg {SVG}>{body}</svg>")
    for element in root.iter():
        for child in element:
            if child.get("fill") == "freeze" and (attribute := child.get("attributeName")) not in (None, "transform"):
                element.set(attribute, child.get("to") or child.get("values", "").split(";")[-1])
    return ET.tostring(root, encoding="unicode")


def render_icon(icon: Icon, *, size: int, seed: int) -> Image.Image:
    """Return the icon as an opaque RGB picture of `size` px square, or raise `RenderError`."""
    # An icon with its own colours that cannot be seen on the light ground was drawn for a dark one.
    grounds = [colours_of(icon.set, icon.name, seed)] if icon.mono else [("black", LIGHT), ("black", DARK)]
    for front, back in grounds:
        picture = _rasterise(icon, size, front, back)
        if np.ptp(np.asarray(picture), axis=(0, 1)).max() >= LEAST_RANGE:
            return picture
    raise RenderError("blank", "nothing can be seen")


def _rasterise(icon: Icon, size: int, front: str, back: str) -> Image.Image:
    box = f"{icon.left} {icon.top} {icon.width} {icon.height}"
    try:
        body = last_frame(icon.body)
        svg = f'<svg {SVG} width="{size}" height="{size}" viewBox="{box}" color="{front}">{body}</svg>'
        # Fonts of the machine would make the bytes differ between machines; no icon holds text.
        png = resvg_py.svg_to_bytes(svg_string=svg, background=back, skip_system_fonts=True)
    except (ValueError, ET.ParseError) as error:
        raise RenderError("unreadable", str(error)) from error
    return Image.open(io.BytesIO(png)).convert("RGB")


def encode_png(picture: Image.Image) -> bytes:
    """Return an RGB picture as PNG, with a palette if it has at most 256 colours (smaller, and lossless too)."""
    channels = np.asarray(picture, dtype=np.uint32)  # [size, size, 3]
    packed = channels[..., 0] << 16 | channels[..., 1] << 8 | channels[..., 2]
    colours, index = np.unique(packed, return_inverse=True)
    if len(colours) <= 256:
        picture = Image.fromarray(index.reshape(packed.shape).astype(np.uint8))
        picture.putpalette(b"".join(int(colour).to_bytes(3, "big") for colour in colours))
    stream = io.BytesIO()
    picture.save(stream, "png", optimize=True)
    return stream.getvalue()
