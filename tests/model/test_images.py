"""Whatever a browser shows becomes an upright, opaque RGB picture; whatever else is refused for a known reason."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.tars import picture
from memory_builder.model.images import FORMATS, MAX_ASPECT, BadImageError, decode_image
from memory_builder.readers.discover import find_sources
from memory_builder.readers.read import Pair, read_pairs

# memory_builder.images silences Pillow's remarks, but pytest puts its own filters over that in every test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:::PIL.Image"),
    pytest.mark.filterwarnings("ignore:::PIL.TiffImagePlugin"),
]

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def encoded(image: Image.Image, kind: str = "PNG", **save: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **save)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def colour(data: bytes, at: tuple[int, int] = (5, 5)) -> tuple[int, ...]:
    """The colour of a pixel of the decoded picture, rounded to what lossy formats keep."""
    image = decode_image(data)
    assert image.mode == "RGB"
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return tuple(int(value) for value in found)


def near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 6


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_common_formats_are_read(kind: str) -> None:
    assert near(colour(encoded(Image.new("RGB", (20, 10), RED), kind)), RED)
    assert decode_image(encoded(Image.new("RGB", (20, 10), RED), kind)).size == (20, 10)


def test_a_plain_picture_keeps_its_pixels() -> None:
    data = picture(3)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(Image.open(io.BytesIO(data))))


def test_cmyk_and_progressive_jpegs_are_read() -> None:
    assert near(colour(encoded(Image.new("RGB", (32, 32), BLUE).convert("CMYK"), "JPEG")), BLUE)
    assert near(colour(encoded(Image.new("RGB", (32, 32), GREEN), "JPEG", progressive=True)), GREEN)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), BLUE)
    upright.paste(RED, (0, 0, 16, 8))  # red in the upper left quarter
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(upright))


@pytest.mark.parametrize("tags", [b"garbage", b"", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08"])
def test_damaged_exif_does_not_cost_the_picture(tags: bytes) -> None:
    exif = b"Exif\0\0" + tags
    plain = encoded(Image.new("RGB", (16, 16), GREEN), "JPEG")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert near(colour(data), GREEN)


def test_transparency_is_laid_on_white() -> None:
    half = Image.new("RGBA", (16, 16), (*RED, 0))
    half.paste((*RED, 255), (8, 0, 16, 16))
    for data in (encoded(half), encoded(half, "WEBP", lossless=True)):
        assert near(colour(data, (2, 2)), WHITE)
        assert near(colour(data, (12, 2)), RED)
    assert colour(encoded(Image.new("LA", (16, 16), (0, 0)))) == WHITE
    assert near(colour(encoded(Image.new("LA", (16, 16), (0, 128)))), (127, 127, 127))


def test_palettes_with_and_without_transparency_are_read() -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (8, 0, 16, 16))
    assert colour(encoded(image), (2, 2)) == RED
    for kind in ("PNG", "GIF"):
        data = encoded(image, kind, transparency=0)
        assert colour(data, (2, 2)) == WHITE
        assert colour(data, (12, 2)) == GREEN
    assert colour(encoded(image, transparency=bytes([0, 255, 255])), (2, 2)) == WHITE


def test_a_colour_named_transparent_is_laid_on_white() -> None:
    assert colour(encoded(Image.new("RGB", (16, 16), RED), transparency=RED)) == WHITE
    assert colour(encoded(Image.new("L", (16, 16), 7), transparency=7)) == WHITE


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 0x8000, 0xFFFF]] * 3, np.uint16)
    image = decode_image(encoded(Image.fromarray(levels)))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (127, 127, 127), WHITE]


def test_one_bit_and_eight_bit_grey_are_read() -> None:
    assert colour(encoded(Image.new("1", (16, 16), 1))) == WHITE
    assert colour(encoded(Image.new("L", (16, 16), 128))) == GREY


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), c) for c in (RED, GREEN, BLUE)]
    assert near(colour(encoded(frames[0], kind, save_all=True, append_images=frames[1:])), RED)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "not an image"),
        (b"\xff\xd8\xff\xe0", "not an image|image is damaged"),
        (picture()[:100], "image is damaged"),
        (picture(kind="JPEG")[:-100], "image is damaged"),
        (picture(kind="WEBP")[:-50], "image is damaged|not an image"),
        (png_claiming(50_000, 50_000), "decompression bomb"),
        (png_claiming(12_000, 12_000), "image larger than 89,478,485 pixels"),
        (png_claiming(0, 10), "not an image|image is damaged"),
        (png_claiming(30, 30), "image is damaged"),
        (png_claiming(80_000_000, 1), "image more than 100 times as long as wide"),
        (png_claiming(1, 101), "image more than 100 times as long as wide"),
    ],
)
def test_what_is_no_usable_picture_is_refused_for_a_known_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError) as error:
        decode_image(data)
    assert str(error.value) in reason.split("|")


def test_the_limits_are_the_callers() -> None:
    data = picture(size=(30, 30))
    assert decode_image(data, max_pixels=900).size == (30, 30)
    with pytest.raises(BadImageError, match="image larger than 899 pixels"):
        decode_image(data, max_pixels=899)
    assert decode_image(picture(size=(MAX_ASPECT, 1))).size == (MAX_ASPECT, 1)


REASONS = {
    "not an image",
    "image is damaged",
    "decompression bomb",
    "image larger than 10,000 pixels",
    "image more than 100 times as long as wide",
}


def test_a_picture_with_any_byte_changed_is_decoded_or_refused() -> None:
    rng = np.random.default_rng(0)
    refused = []
    for kind in FORMATS:
        whole = picture(1, (16, 16), kind)
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(0, len(data), 3):
                data[at] = rng.integers(256)
            try:
                assert decode_image(bytes(data), max_pixels=10_000).mode == "RGB"
            except BadImageError as error:
                refused.append(str(error))
    assert 0 < len(refused) < 60 * len(FORMATS)
    assert set(refused) <= REASONS


def file_of(pixels: np.ndarray, kind: str, **save: Any) -> bytes:
    return encoded(Image.fromarray(pixels), kind, **save)


RAMP = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
DEEP: dict[str, tuple[bytes, np.ndarray]] = {
    # file → the grey it shows
    "16 bits": (file_of((RAMP * 65_535).astype(np.uint16), "PNG"), RAMP),
    "16 bits, TIFF": (file_of((RAMP * 65_535).astype(np.uint16), "TIFF"), RAMP),
    "16 bits, dark": (file_of((RAMP * 200).astype(np.uint16), "PNG"), RAMP * 200 / 65_535),
    "float from 0 to 1": (file_of(RAMP, "TIFF"), RAMP),
    "float from 0 to 255": (file_of(RAMP * 255, "TIFF"), RAMP),
    "float from 0 to 65,535": (file_of(RAMP * 65_535, "TIFF"), RAMP),
    "32 bits from 0 to 255": (file_of((RAMP * 255).astype(np.int32), "TIFF"), RAMP),
    "32 bits from 0 to 65,535": (file_of((RAMP * 65_535).astype(np.int32), "TIFF"), RAMP),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_grey_is_scaled(name: str) -> None:
    """Floats and 32 bits were clipped to black and white."""
    data, grey = DEEP[name]
    shown = np.asarray(decode_image(data)).astype(np.float32)
    assert shown.shape == (64, 64, 3)
    assert np.abs(shown - 255 * grey[..., None]).max() <= 1


@pytest.mark.parametrize(
    "pixels",
    [
        (RAMP * 2**20).astype(np.int32),
        (RAMP * 100 - 50).astype(np.int32),
        RAMP * 1e6,
        RAMP - 0.5,
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
        np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32),
    ],
    ids=["20 bits", "negative", "large floats", "negative floats", "NaN", "infinity"],
)
def test_deep_grey_of_no_known_range_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(BadImageError, match="image has values"):
        decode_image(file_of(pixels, "TIFF"))


def test_the_transparent_level_of_16_bit_grey_is_laid_on_white() -> None:
    """It was shown as it is."""
    pixels = np.full((8, 8), 1000, np.uint16)
    pixels[2:4] = 5
    shown = np.asarray(decode_image(file_of(pixels, "PNG", transparency=5)))
    assert (shown[2:4] == 255).all()
    assert (shown[:2] == 1000 * 255 // 65_535).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_is_known_by_its_bytes_whatever_its_name(tmp_path: Path, kind: str) -> None:
    data = file_of(np.full((20, 20, 3), 90, np.uint8), kind)
    for suffix in ("jpg", "PNG", "webp", "jfif"):
        (tmp_path / f"{suffix}.{suffix}").write_bytes(data)
        (tmp_path / f"{suffix}.txt").write_text(suffix)
    (source,) = find_sources([str(tmp_path)])
    pairs = [pair for pair in read_pairs(source.uri) if isinstance(pair, Pair)]
    assert len(pairs) == 4
    assert all(abs(int(np.asarray(decode_image(pair.image or b"")).mean()) - 90) < 3 for pair in pairs)
