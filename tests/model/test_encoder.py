"""The encoder gives unit float16 rows, prepares pictures as open_clip does, and knows itself by its fingerprint."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import Compose

from helpers.tars import picture
from memory_builder.errors import EncoderError
from memory_builder.model.encoder import Encoder, EncoderConfig, load_encoder
from memory_builder.model.images import decode_image
from memory_builder.model.unpadded_text import trimming
from memory_builder.readers.read import Pair, read_pairs


def pixels(encoder: Encoder, n: int) -> np.ndarray:
    return np.stack([encoder.preprocess(decode_image(picture(seed))) for seed in range(n)])


def test_rows_are_unit_float16(encoder: Encoder) -> None:
    for vectors in (encoder.encode_images(pixels(encoder, 3)), encoder.encode_texts(["a", "red panda", ""])):
        assert vectors.shape == (3, encoder.d)
        assert vectors.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-3)
        assert len(np.unique(vectors, axis=0)) == 3


def test_nothing_in_gives_nothing_out(encoder: Encoder) -> None:
    assert encoder.encode_texts([]).shape == (0, encoder.d)
    none = encoder.encode_images(np.zeros((0, 64, 64, 3), np.uint8))
    assert none.shape == (0, encoder.d)
    assert none.dtype == np.float16


def test_vectors_are_those_of_open_clip(encoder: Encoder, model_dir: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model_dir}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{model_dir}")(["red panda"])
    image = decode_image(picture(1))
    with torch.inference_mode():
        by_image = model.encode_image(preprocess(image)[None].to(torch.float32), normalize=True).numpy()
        by_text = model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_images(np.stack([encoder.preprocess(image)])), by_image, atol=2e-3)
    np.testing.assert_allclose(encoder.encode_texts(["red panda"]), by_text, atol=2e-3)


@pytest.fixture(scope="module")
def before_normalising(model_dir: Path) -> Compose:
    """open_clip's own evaluation transform but for its last step: picture → f32[3, h, w] in [0, 1]."""
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model_dir}")
    return Compose(preprocess.transforms[:-1])


@pytest.mark.parametrize("size", [(64, 64), (24, 20), (200, 50), (50, 200), (333, 127), (1, 1), (65, 64), (1024, 768)])
def test_pictures_are_prepared_bit_for_bit_as_open_clip_does(
    encoder: Encoder, before_normalising: Compose, size: tuple[int, int]
) -> None:
    image = decode_image(picture(2, size))
    ours = encoder.preprocess(image)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(
        torch.from_numpy(ours.copy()).permute(2, 0, 1).float().div(255), before_normalising(image)
    )


def test_repeated_texts_give_repeated_rows(encoder: Encoder) -> None:
    vectors = encoder.encode_texts(["b", "a", "b", "b"])
    np.testing.assert_array_equal(vectors[[0, 0]], vectors[2:])
    assert (vectors[0] != vectors[1]).any()
    np.testing.assert_array_equal(vectors[:2], encoder.encode_texts(["b", "a"]))


def test_texts_longer_than_the_context_are_cut(encoder: Encoder) -> None:
    long = "word " * 5_000
    vectors = encoder.encode_texts([long, long + "more", "word"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.isfinite(vectors).all()


def test_odd_texts_have_vectors(encoder: Encoder) -> None:
    odd = ["\0", "🐼" * 50, "<end_of_text>", "\u202e\ufeff", "&amp;amp;lt;", "\t\n"]
    assert np.isfinite(encoder.encode_texts(odd)).all()


@pytest.fixture
def copied(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


def fingerprint(folder: Path) -> str:
    return Encoder(EncoderConfig(model=f"local-dir:{folder}")).fingerprint


def test_the_fingerprint_is_of_the_content_not_of_the_place(encoder: Encoder, copied: Path) -> None:
    assert fingerprint(copied) == encoder.fingerprint
    assert len(encoder.fingerprint) == 64


def test_one_changed_weight_changes_the_fingerprint(encoder: Encoder, copied: Path) -> None:
    weights = load_file(copied / "open_clip_model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, copied / "open_clip_model.safetensors")
    assert fingerprint(copied) != encoder.fingerprint


@pytest.mark.parametrize(
    ("part", "name", "value"), [("preprocess_cfg", "mean", [0.4, 0.5, 0.5]), ("model_cfg", "quick_gelu", True)]
)
def test_other_preprocessing_or_activation_changes_the_fingerprint(
    encoder: Encoder, copied: Path, part: str, name: str, value: object
) -> None:
    path = copied / "open_clip_config.json"
    config = json.loads(path.read_text())
    config[part][name] = value
    path.write_text(json.dumps(config))
    assert fingerprint(copied) != encoder.fingerprint


def test_a_model_that_cannot_be_loaded_is_an_error_that_says_the_fix(tmp_path: Path, copied: Path) -> None:
    (copied / "open_clip_model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    for config in (
        EncoderConfig(model="no-such-model"),
        EncoderConfig(model="no-such-model", pretrained="openai"),
        EncoderConfig(model="ViT-B-32", pretrained="no-such-tag"),
        EncoderConfig(model=f"local-dir:{tmp_path}/nowhere"),
        EncoderConfig(model=f"local-dir:{tmp_path}/empty"),
        EncoderConfig(model=f"local-dir:{copied}"),
    ):
        with pytest.raises(EncoderError, match=r"cannot load model .*Name an open_clip model") as error:
            Encoder(config)
        assert config.model in str(error.value)


def test_a_model_without_named_weights_is_refused() -> None:
    with pytest.raises(EncoderError, match="ViT-B-32"):
        Encoder(EncoderConfig(model="ViT-B-32"))


def test_damaged_weights_are_refused(copied: Path) -> None:
    path = copied / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EncoderError, match="cannot load"):
        Encoder(EncoderConfig(model=f"local-dir:{copied}"))


def test_a_loaded_encoder_is_kept(encoder: Encoder, model_dir: Path) -> None:
    assert load_encoder(EncoderConfig(model=f"local-dir:{model_dir}")) is load_encoder(encoder.config)


def test_precision_is_fp32_without_a_gpu(encoder: Encoder) -> None:
    assert encoder.config.resolved_precision() == ("bf16" if torch.cuda.is_available() else "fp32")
    assert EncoderConfig(model="m", precision="bf16").resolved_precision() == "bf16"


def test_a_grey_image_is_prepared_as_rgb(encoder: Encoder) -> None:
    assert encoder.preprocess(Image.new("L", (70, 70), 9)).shape == (64, 64, 3)


def test_a_thousand_real_pictures_come_out_as_open_clip_prepares_them(encoder: Encoder, model_dir: Path) -> None:
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model_dir}")
    theirs_of = Compose(preprocess.transforms[:-1])
    shards = sorted((model_dir.parent / "sample").glob("*.tar.gz"))
    pictures = [item.image for shard in shards for item in read_pairs(str(shard)) if isinstance(item, Pair)][:1000]
    assert len(pictures) == 1000
    near = []
    for data in pictures:
        ours = encoder.preprocess(decode_image(data)).astype(np.float32) / 255
        theirs = theirs_of(Image.open(io.BytesIO(data))).permute(1, 2, 0).numpy()
        near.append(np.abs(ours - theirs) <= 1 / 255 + 1e-6)
    assert np.mean(near) >= 0.99


def test_captions_at_their_own_length_give_the_vectors_of_padded_ones(encoder: Encoder) -> None:
    texts = ["", "a", "red panda", "a long caption of many words " * 20, "naïve 熊猫 🐼"]
    tokens = encoder.tokenizer(texts)
    with torch.inference_mode():
        padded = encoder.model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(encoder.encode_texts(texts), padded, atol=1e-3)
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(alone, padded, atol=1e-3)


CAUSAL = {"layers": 2, "width": 64, "heads": 4, "context_length": 77}
TOWERS = {
    "clip": (open_clip.model.CLIP, CAUSAL, True),
    "custom text": (open_clip.model.CustomTextCLIP, CAUSAL, True),
    "siglip": (open_clip.model.CustomTextCLIP, {**CAUSAL, "no_causal_mask": True, "pool_type": "last"}, False),
    "coca": (open_clip.model.CustomTextCLIP, {**CAUSAL, "embed_cls": True}, False),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_only_towers_that_can_do_without_padding_lose_it(kind: str) -> None:
    make, text, trims = TOWERS[kind]
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    model = make(64, vision, text).eval()
    encode = trimming(model)
    assert (encode is not None) == trims
    if encode is not None:
        tokens = open_clip.get_tokenizer("ViT-B-32")(["a", "two words"])
        with torch.inference_mode():
            np.testing.assert_allclose(encode(tokens), model.encode_text(tokens), atol=1e-5)
