"""Copies of real icons are found whatever was done to them; other icons are not taken for copies."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import memory_builder
from memory_builder.errors import UsageError
from memory_builder.model.encoder import Encoder
from memory_builder.model.images import decode_image
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.retrieval.copies import compare
from memory_builder.retrieval.copies.compare import Groups, ImageSignatures, ReferenceImages
from memory_builder.retrieval.copies.glyph import bits_apart, correlation, glyph_of, hashes, inside_borders
from memory_builder.retrieval.copies.miniature import levels_apart, miniature_of
from memory_builder.retrieval.copies.thresholds import Thresholds

SAMPLE = Path(memory_builder.__file__).parent / "demo" / "sample"
Change = Callable[[Image.Image], Image.Image]


@pytest.fixture(scope="module")
def icons() -> list[Image.Image]:
    """The first hundred of the bundled icons."""
    pairs = (pair for pair in read_pairs(str(SAMPLE / "00000.tar.gz")) if isinstance(pair, Pair))
    return [decode_image(pair.image or b"") for pair, _ in zip(pairs, range(100), strict=False)]


def jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Change] = {
    "jpeg": jpeg,
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "smaller": lambda picture: picture.resize((45, 45), Image.Resampling.BICUBIC),
    "larger": lambda picture: picture.resize((83, 83), Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "framed": lambda picture: ImageOps.expand(ImageOps.expand(picture, 9, "white"), 5, "black"),
}


def signs(pictures: list[Image.Image], encoder: Encoder) -> ImageSignatures:
    vectors = encoder.encode_images(np.stack([encoder.preprocess(picture) for picture in pictures]))
    glyphs, miniatures = (np.stack(list(map(of, pictures))) for of in (glyph_of, miniature_of))
    return ImageSignatures(vectors, glyphs, miniatures)


@pytest.fixture(scope="module")
def compared(icons: list[Image.Image], encoder: Encoder) -> ReferenceImages:
    return ReferenceImages(signs(icons, encoder))


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_named(
    change: str, icons: list[Image.Image], encoder: Encoder, compared: ReferenceImages
) -> None:
    found = compared.evidence(signs([CHANGES[change](icon) for icon in icons], encoder), least=0.9)
    passed = found.passes(Thresholds())
    is_leak = np.any(list(passed.values()), axis=0)
    assert is_leak.mean() >= 0.95
    own = np.arange(len(icons))
    named = np.any([passed[kind] & (found.others[kind] == own) for kind in compare.KINDS], axis=0)
    assert (named == is_leak).mean() >= 0.95  # the others are copies of a picture that looks the same


def test_other_icons_are_no_copies(icons: list[Image.Image], encoder: Encoder) -> None:
    half = len(icons) // 2
    of_half = ReferenceImages(signs(icons[:half], encoder))
    found = of_half.evidence(signs(icons[half:], encoder), least=0.9)
    assert np.any(list(found.passes(Thresholds()).values()), axis=0).mean() <= 0.04


def test_blocks_do_not_matter_and_groups_are_not_compared(
    icons: list[Image.Image], encoder: Encoder, compared: ReferenceImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = signs(icons[:20], encoder)
    whole = compared.evidence(asked, least=0.9)
    monkeypatch.setattr(compare, "BLOCK", 7)
    parts = compared.evidence(asked, least=0.9)
    for kind in compare.KINDS:
        assert parts.values[kind] == pytest.approx(whole.values[kind], abs=1e-5)
        assert (parts.others[kind] == whole.others[kind]).mean() >= 0.9  # equals may change places
    groups = Groups(np.arange(20), np.arange(len(icons)))
    apart = compared.evidence(asked, least=0.9, without=groups)
    assert all((apart.others[kind] != np.arange(20)).all() for kind in compare.KINDS)
    assert (apart.values["embedding"] < whole.values["embedding"]).all()


@given(frame=st.integers(0, 20), shade=st.integers(0, 255), inner=st.integers(0, 10))
def test_frames_of_any_shade_are_taken_off(frame: int, shade: int, inner: int) -> None:
    drawing = np.array([[0, 255, 0], [255, 0, 255], [0, 255, 0]], np.uint8).repeat(4, 0).repeat(4, 1)
    framed = np.pad(np.pad(drawing, inner, constant_values=90), frame, constant_values=shade)
    top, bottom, left, right = inside_borders(framed)
    assert (framed[top:bottom, left:right] == drawing).all()


def test_frames_are_not_taken_off_a_speck_as_all_specks_are_alike() -> None:
    tile = np.full((64, 64), 250, np.uint8)
    tile[20:44, 16:48] = 10
    tile[30:34, 28:36] = 250
    assert inside_borders(tile) == (20, 44, 16, 48), "four lines of another shade"


def test_a_plain_picture_is_all_border_and_like_nothing() -> None:
    plain = glyph_of(Image.new("RGB", (40, 30), "teal"))
    assert inside_borders(np.full((30, 40), 7, np.uint8)) == (0, 30, 0, 40)
    assert correlation(plain[None], plain[None], least=0.9) == 0


def test_miniatures_differ_by_the_levels_that_were_added(icons: list[Image.Image]) -> None:
    minis = np.stack([miniature_of(icon) for icon in icons[:5]]).clip(0, 245)
    apart = levels_apart(minis, minis + np.uint8(10))
    assert np.diag(apart) == pytest.approx(10, abs=1e-3)
    plain = [((a.astype(float) - b - 10) ** 2).mean() ** 0.5 for a in minis for b in minis]
    np.testing.assert_allclose(apart.ravel(), plain, atol=1e-2)


def test_hashes_of_like_pictures_differ_in_few_bits(icons: list[Image.Image]) -> None:
    plain, changed = (hashes(np.stack([glyph_of(picture) for picture in some])) for some in (icons, map(jpeg, icons)))
    apart = bits_apart(plain, changed)
    assert np.median(np.diag(apart)) <= 2
    assert np.median(apart) > 16
    assert (np.diag(bits_apart(plain, plain)) == 0).all()


@pytest.mark.parametrize("wrong", [{"leak_hash": 65}, {"leak_embedding": 0.0}, {"leak_pixels": float("nan")}])
def test_thresholds_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--leak-"):
        Thresholds(**wrong)  # type: ignore[arg-type]
