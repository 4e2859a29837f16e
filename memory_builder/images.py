"""Encoded bytes → an upright RGB picture.

Policy: EXIF orientation is applied (a phone photo is embedded as people see it; open_clip's own loader ignores the
tag), transparency is laid on white, the first frame of an animation counts. A picture that is damaged or larger than
``max_pixels`` is refused before its pixels are allocated.
"""

import io
import struct
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Image.init()  # all formats, once: threads that decode would race for it

# Pillow's own warning level for decompression bombs; a legitimate web picture is far below.
MAX_PIXELS = 89_478_485
ORIENTATION = 0x0112
MAX_ASPECT = 100  # models scale the short side up: a line of 1 × 60,000 pixels would take gigabytes
# What browsers show under these suffixes. Pillow knows more, some of it by starting other programs.
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF") if name in Image.OPEN)

# What Pillow's decoders raise on broken files.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, RuntimeError)


class BadImageError(ValueError):
    """The bytes are no usable picture; the message is the reason kept in the rejects table."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, draft_size: int | None = None) -> Image.Image:
    """An RGB picture, upright, opaque.

    Args:
        draft_size: let the JPEG decoder leave out detail that a picture of this many pixels a side does not show.

    Raises:
        BadImageError: with a reason from a short, fixed list, so that rejects can be counted by it.
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
    """(width, height) of an encoded picture that can be decoded, upright, without decoding it."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        try:
            turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
            turned = False
        return (image.height, image.width) if turned else image.size


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error, ZeroDivisionError):
        return image  # the tags are damaged; the picture is not


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture as RGB, upright, opaque."""
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        grey = np.asarray(image).astype(np.int64)
        depth = 255 if grey.max(initial=0) < 256 and image.mode == "I" else 65535
        image = Image.fromarray((np.clip(grey, 0, depth) * 255 // depth).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def thumbnail(image: Image.Image, side: int) -> bytes:
    """A WebP of a picture, at most ``side`` pixels wide and high."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


# Worker threads decode pictures from strangers: Pillow's remarks about odd metadata are not news to anyone.
warnings.filterwarnings("ignore", module=r"PIL\.")
