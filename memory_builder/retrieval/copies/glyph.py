"""Glyphs: small grey pictures that are equal for scaled, padded or shifted copies of a picture.

A glyph is 32 px square: the inside of a picture's plain borders, in proportion, centred, without colours.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 32
LONGEST = 128
"""Pixels to which a picture's longer side is reduced first."""
PLAIN = 64
"""Largest difference of levels (of 255) within a line of a plain border. JPEG ringing stays below."""
LEAST_INSIDE = 12
"""Smallest longer side of a drawing in pixels; a smaller box holds only an edge or a spot, which all look alike."""
LEAST_DEVIATION = 8.0
"""Smallest deviation in levels (of 255); a flatter glyph (a plain disc or tile) has nothing to compare."""
SHIFTS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]  # in pixels of a glyph
SHIFT_GAIN = 0.15
"""Largest gain of correlation by a shift of one pixel."""
ZOOM_GAIN = 0.3
"""Largest gain of correlation by removing lines from some sides."""
ENDS = ((0, 0), (1, 0), (0, 1), (1, 1))
"""Lines removed at the two ends of a side before a glyph is stretched back to its size."""
LOW = 8
"""Number of DCT frequencies of a hash in each direction."""

Glyphs = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint64]
Box = tuple[int, int, int, int]
"""Top, bottom, left, right."""


def glyph_of(image: Image.Image) -> Glyphs:
    """RGB picture → u8[32, 32]."""
    grey = image.convert("L")
    if max(grey.size) > LONGEST:
        scale = LONGEST / max(grey.size)
        size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
        grey = grey.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(grey)
    top, bottom, left, right = box = inside_borders(pixels)
    corners = pixels[[top, top, bottom - 1, bottom - 1], [left, right - 1, left, right - 1]]
    return boxed(pixels.astype(np.float32) / np.float32(255), box, float(np.median(corners)) / 255)


def inside_borders(grey: npt.NDArray[np.uint8]) -> Box:
    """Crop u8[h, w] by its plain border lines, repeatedly, until no line is plain or hardly anything is left.

    A frame around a tile is cropped, then the tile around the drawing: the result is the same without the frame.
    """
    top, bottom, left, right = 0, grey.shape[0], 0, grey.shape[1]
    while True:
        box = grey[top:bottom, left:right].astype(np.int16)
        rows = np.flatnonzero(box.max(axis=1) - box.min(axis=1) > PLAIN)
        columns = np.flatnonzero(box.max(axis=0) - box.min(axis=0) > PLAIN)
        if not len(rows) or not len(columns):
            return top, bottom, left, right
        inner = (top + int(rows[0]), top + int(rows[-1]) + 1, left + int(columns[0]), left + int(columns[-1]) + 1)
        if inner == (top, bottom, left, right) or max(inner[1] - inner[0], inner[3] - inner[2]) < LEAST_INSIDE:
            return top, bottom, left, right
        top, bottom, left, right = inner


def boxed(layer: Floats, box: Box, outside: float) -> Glyphs:
    """Scale the square around a box of f32[h, w] in 0..1 to u8[32, 32], padded with ``outside``."""
    top, bottom, left, right = box
    side = max(bottom - top, right - left)
    canvas = np.full((side, side), outside, dtype=np.float32)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    canvas[y : y + bottom - top, x : x + right - left] = layer[top:bottom, left:right]
    resampling = Image.Resampling.BOX if side > SIDE else Image.Resampling.BILINEAR
    scaled = np.asarray(Image.fromarray(canvas).resize((SIDE, SIDE), resampling))
    glyph: Glyphs = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return glyph


def unit(glyphs: npt.NDArray[np.uint8] | Floats) -> Floats:
    """Normalize glyphs [..., h, w] → f32[..., h * w] of mean 0 and length 1; flat ones become 0."""
    flat = glyphs.reshape(*glyphs.shape[:-2], glyphs.shape[-2] * glyphs.shape[-1]).astype(np.float32)
    flat -= flat.mean(axis=-1, keepdims=True)
    deviation = flat.std(axis=-1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)
    units: Floats = np.where(deviation < LEAST_DEVIATION, np.float32(0), flat / lengths)
    return units


def coarse(glyphs: Glyphs, side: int = 16) -> Floats:
    """Downsample u8[n, 32, 32] → f32[n, side²] unit rows, to select candidates."""
    step = SIDE // side
    return unit(glyphs.reshape(len(glyphs), side, step, side, step).mean(axis=(2, 4), dtype=np.float32))


def correlation(one: Glyphs, other: Glyphs, *, least: float) -> Floats:
    """f32[n] absolute correlation of glyphs u8[n, 32, 32]; near misses are also tried shifted."""
    fixed = unit(one)
    best: Floats = np.abs(np.einsum("nd,nd->n", fixed, unit(other)))
    retry = np.flatnonzero((best < least) & (best >= least - SHIFT_GAIN))
    pad = np.pad(other[retry], ((0, 0), (1, 1), (1, 1)), mode="edge")
    for y, x in SHIFTS:
        moved = unit(pad[:, 1 + y : 1 + y + SIDE, 1 + x : 1 + x + SIDE])
        best[retry] = np.maximum(best[retry], np.abs(np.einsum("nd,nd->n", fixed[retry], moved)))
    return best


def stretched_correlation(one: Glyphs, other: Glyphs, *, least: float) -> Floats:
    """f32[n] absolute correlation of glyphs u8[n, 32, 32], with either cut by a line at any sides and stretched.

    A cropped, scaled or compressed picture may end a line earlier or later. Only pairs within reach of ``least`` are
    tried.
    """
    best: Floats = np.abs(np.einsum("nd,nd->n", unit(one), unit(other)))
    retry = np.flatnonzero(best >= least - ZOOM_GAIN)
    for fixed, moving in ((one[retry], other[retry]), (other[retry], one[retry])):
        units = unit(fixed).reshape(fixed.shape)
        for rows in ENDS:
            tall = _stretch(*rows) @ moving.astype(np.float32)  # f32[n, 32, 32]
            for columns in ENDS:
                moved = tall @ _stretch(*columns).T
                deviation = np.einsum("nij,nij->n", moved, moved) - moved.sum(axis=(1, 2)) ** 2 / SIDE**2
                lengths = np.sqrt(np.maximum(deviation, (LEAST_DEVIATION * SIDE) ** 2))
                correlations = np.abs(np.einsum("nij,nij->n", units, moved)) / lengths
                best[retry] = np.maximum(best[retry], correlations)
    return best


def _stretch(first: int, last: int) -> Floats:
    """f32[32, 32] matrix that stretches a side without these lines to 32 pixels, by linear interpolation."""
    positions = np.linspace(first, SIDE - 1 - last, SIDE)
    below = np.minimum(positions.astype(np.int64), SIDE - 2)
    weights = np.zeros((SIDE, SIDE), np.float32)
    weights[np.arange(SIDE), below] = 1 - (positions - below)
    weights[np.arange(SIDE), below + 1] += (positions - below).astype(np.float32)
    return weights


def hashes(glyphs: Glyphs) -> Hashes:
    """u8[n, 32, 32] → u64[n] perceptual hashes: whether each of the 64 lowest DCT frequencies exceeds their median."""
    steps = (2 * np.arange(SIDE) + 1) * np.pi / (2 * SIDE)
    cosines = np.cos(np.arange(LOW)[:, None] * steps[None]).astype(np.float32)  # DCT-II, f32[8, 32]
    low = np.einsum("ai,nij,bj->nab", cosines, glyphs.astype(np.float32), cosines, optimize=True)
    low = low.reshape(len(glyphs), LOW * LOW)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)  # the first is the mean brightness
    packed: Hashes = np.packbits(bits, axis=1).view(np.uint64).ravel()
    return packed


def bits_apart(ours: Hashes, others: Hashes) -> npt.NDArray[np.uint8]:
    """u64[n], u64[m] → u8[n, m] Hamming distances."""
    apart: npt.NDArray[np.uint8] = np.bitwise_count(ours[:, None] ^ others[None])
    return apart
