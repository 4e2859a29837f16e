"""Take the colours and the place off a picture, so that two copies of a drawing look the same.

A glyph is 32 px square: the drawing's own box, kept in proportion, centred and scaled to fill it. Its `ink` is how far
each pixel went from the ground towards the foreground (icons without colours) or its luminance (icons with); its `mask`
is what of the picture is not ground.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from render import DARK, LIGHT, colours_of

from memory_builder.retrieval.copies.glyph import boxed

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
LEAST_MASK = 0.25  # of full contrast, for a pixel to count as drawn


class Pair(NamedTuple):
    """One pair of a tar of `prepare.py`: its key, its picture as PNG and whether it brings its own colours."""

    key: str
    png: bytes
    palette: bool


def read_tar(tar: Path) -> Iterator[Pair]:
    """Read a tar's pairs."""
    with tarfile.open(tar) as archive:
        png = b""
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None
            if member.name.endswith(".png"):
                png = stream.read()
            elif member.name.endswith(".json"):
                yield Pair(member.name.removesuffix(".json"), png, json.loads(stream.read())["palette"])


def pixels_of(png: bytes) -> np.ndarray:
    """Decode a PNG to u8[h, w, 3]."""
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


def layers(pixels: np.ndarray, colours: tuple[str, str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return ink and mask, both f32[h, w] in 0..1, of a picture u8[h, w, 3]; `colours` are (foreground, ground)."""
    rgb = pixels.astype(np.float32)
    if colours is not None:
        front, back = (np.frombuffer(bytes.fromhex(c[1:]), np.uint8).astype(np.float32) for c in colours)
        ink = np.clip((rgb - back) @ (front - back) / np.sum((front - back) ** 2), 0, 1)
        return ink, ink
    corners = rgb[[0, 0, -1, -1], [0, -1, 0, -1]]
    dark = np.frombuffer(bytes.fromhex(DARK[1:]), np.uint8).astype(np.float32)
    light = np.frombuffer(bytes.fromhex(LIGHT[1:]), np.uint8).astype(np.float32)
    ground = dark if (corners == dark).all(axis=1).sum() >= 2 else light
    return rgb @ LUMA / 255, np.clip(np.abs(rgb - ground).max(axis=2) / 64, 0, 1)


def crop(layer: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the square around what the mask holds, scaled to u8[32, 32]; outside lies the value of the corner."""
    rows, columns = np.flatnonzero(mask.max(axis=1) > LEAST_MASK), np.flatnonzero(mask.max(axis=0) > LEAST_MASK)
    if not len(rows):
        rows = columns = np.array([0, len(mask) - 1])
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return boxed(layer, (top, bottom, left, right), float(layer[0, 0]))


def glyph_of(pair: Pair, seed: int) -> np.ndarray:
    """Return a pair's ink and mask, u8[2, 32, 32]."""
    icon_set, name = pair.key.split("--")
    ink, mask = layers(pixels_of(pair.png), None if pair.palette else colours_of(icon_set, name, seed))
    return np.stack([crop(ink, mask), crop(mask, mask)])


def glyphs_of_tar(tar: Path, *, seed: int) -> tuple[list[str], np.ndarray]:
    """Return the keys of a tar and their glyphs, u8[n, 2, 32, 32]."""
    pairs = list(read_tar(tar))
    return [pair.key for pair in pairs], np.stack([glyph_of(pair, seed) for pair in pairs])
