"""Decode bytes to an upright RGB picture.

EXIF orientation is applied (a phone photo is embedded as people see it; open_clip's own loader ignores the tag),
transparency becomes white, the first frame of an animation is used. A picture that is damaged or larger than
``max_pixels`` is refused before its pixels are allocated.
"""

import io
import struct
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()  # all formats, once: decoding threads would race for it

# Pillow's own warning level for decompression bombs; a legitimate web picture is far below.
MAX_PIXELS = 89_478_485
ORIENTATION = 0x0112
MAX_ASPECT = 100  # models scale the short side up: a line of 1 × 60,000 pixels would take gigabytes
# The formats that browsers show. Pillow knows more, some of them by starting other programs.
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN)

# Exceptions of Pillow's decoders on damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, RuntimeError)


class BadImageError(ValueError):
    """The bytes are not a usable picture; the message is the reason in the rejects table."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, draft_size: int | None = None) -> Image.Image:
    """Decode a picture as RGB, upright and opaque.

    Args:
        draft_size: let the JPEG decoder skip detail that a picture of this many pixels a side does not show.

    Raises:
        BadImageError: with a reason from a short, fixed list, so that rejects can be counted by reason.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadImageError(f"image larger than {max_pixels:,} pixels")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise BadImageError(f"image more than {MAX_ASPECT} times as long as wide")
            if draft_size is not None:
                image.draft("RGB", (draft_size, draft_size))
            image.load()
            return to_rgb(image)
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError("decompression bomb") from None
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except DAMAGE:
        raise BadImageError("image is damaged") from None
    except MemoryError:
        raise BadImageError("image does not fit in memory") from None


def picture_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a valid encoded picture, upright, without decoding it."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        try:
            is_rotated = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
            is_rotated = False
        return (image.height, image.width) if is_rotated else image.size


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error, ZeroDivisionError):
        return image  # the tags are damaged; the picture is not


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded picture to RGB, upright and opaque."""
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits to 8: Pillow's own conversion clips values above 255 to white.

    Raises:
        BadImageError: the range of the values leaves black and white unknown.
    """
    values = np.asarray(image).astype(np.float64)  # [h, w]
    white = _white_level(image.mode, values)
    grey = np.clip(values * 255 / white, 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # this grey level is transparent
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _white_level(mode: str, values: npt.NDArray[np.float64]) -> float:
    """Return the value of white: 65,535 for 16-bit grey, else by the range of the values."""
    if not np.isfinite(values).all() or values.min(initial=0) < 0:
        raise BadImageError("image has values below black or not finite")
    highest = values.max(initial=0)
    if mode.startswith("I;16"):
        return 65_535
    for white in (1, 255, 65_535) if mode == "F" else (255, 65_535):
        if highest <= white:
            return white
    raise BadImageError("image has values of more than 16 bits")


def thumbnail(image: Image.Image, side: int) -> bytes:
    """Encode a picture as WebP, at most ``side`` pixels wide and high."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


# Worker threads decode pictures from the web: Pillow warns of odd metadata in many of them.
warnings.filterwarnings("ignore", module=r"PIL\.")
