"""Miniatures: a picture with frame and colours in 64 pixels.

Compression and scaling change them by a level or so, and for simple drawings they separate more than glyphs: by
    position, size and colours.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 8

Miniatures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def miniature_of(image: Image.Image) -> Miniatures:
    """RGB picture → u8[8, 8, 3]."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8)


def levels_apart(ours: Miniatures, others: Miniatures) -> Floats:
    """u8[n, 8, 8, 3], u8[m, 8, 8, 3] → f32[n, m], root mean square difference in levels of 255."""
    one, other = (minis.reshape(len(minis), -1).astype(np.float32) for minis in (ours, others))
    squares = np.einsum("nd,nd->n", one, one)[:, None] + np.einsum("md,md->m", other, other)[None]
    squares -= 2 * (one @ other.T)
    apart: Floats = np.sqrt(np.maximum(squares, 0) / one.shape[1])
    return apart
