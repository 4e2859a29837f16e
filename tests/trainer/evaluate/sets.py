"""Small evaluation sets, written as CLIP_benchmark and torchvision lay them out."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow", "black", "orange")
SHAPES = ("circle", "square")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
TEMPLATES = ("a photo of a {c}.", "an icon of a {c}.", "{c}")


def picture(label: int, seed: int, size: int = 48) -> Image.Image:
    """A shape in its class's colour, somewhere on a light ground; no two seeds give the same."""
    rng = np.random.default_rng((label, seed))
    ground = tuple(int(grey) for grey in rng.integers(200, 256, 3))
    image = Image.new("RGB", (size, size), ground)
    left, top = (int(place) for place in rng.integers(2, size // 3, 2))
    side = int(rng.integers(size // 3, size // 2))
    colour, shape = CLASSES[label].split()
    draw = ImageDraw.Draw(image)
    (draw.ellipse if shape == "circle" else draw.rectangle)((left, top, left + side, top + side), fill=colour)
    return image


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def npy(values: list[int]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, np.int64))
    return buffer.getvalue()


def write_tar(path: Path, samples: list[dict[str, bytes]], first: int = 0) -> None:
    """Samples as suffix → content, named s0000000 …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples, start=first):
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_split(root: Path, split: str, samples: list[dict[str, bytes]], n_tars: int = 2) -> None:
    """A split's folder of that many tars."""
    size = -(-len(samples) // n_tars)
    for i in range(n_tars):
        write_tar(root / split / f"{i}.tar", samples[i * size : (i + 1) * size], first=i * size)
    (root / split / "nshards.txt").write_text(f"{n_tars}\n")


def write_texts(root: Path, **files: Any) -> None:
    """Lines (or a text) for each ``name.txt``."""
    root.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = lines if isinstance(lines, str) else "\n".join(lines)
        (root / f"{name}.txt").write_text(f"{text}\n")


def classification_set(
    root: Path, *, splits: dict[str, int], first_seed: int = 0, kinds=("PNG", "WEBP", "JPEG")
) -> Path:
    """Shapes in colours, some pictures of each class in every split."""
    write_texts(root, classnames=CLASSES, zeroshot_classification_templates=TEMPLATES, tiers=["common", "rare"] * 6)
    seed = first_seed
    for split, per_class in splits.items():
        samples = []
        for _ in range(per_class):
            for label in range(len(CLASSES)):
                kind = kinds[len(samples) % len(kinds)]
                data = encoded(picture(label, seed), kind)
                samples.append({{"PNG": "png", "WEBP": "webp", "JPEG": "jpg"}[kind]: data, "cls": str(label).encode()})
            seed += 1
        write_split(root, split, samples)
    return root


def multilabel_set(root: Path, *, n: int = 24) -> Path:
    """Each picture shows a colour and a shape, of eight classes."""
    write_texts(
        root, dataset_type="multilabel", classnames=[*COLOURS, *SHAPES], zeroshot_classification_templates=TEMPLATES
    )
    samples = []
    for i in range(n):
        label = i % len(CLASSES)
        present = [0] * 8
        present[label // 2] = present[6 + label % 2] = 1
        samples.append({"webp": encoded(picture(label, i), "WEBP"), "npy": npy(present)})
    write_split(root, "test", samples)
    return root


def retrieval_set(root: Path, *, n: int = 24) -> Path:
    """Pictures with one to three captions each, no two of them equal."""
    write_texts(root, dataset_type="retrieval")
    samples = []
    for i in range(n):
        name = CLASSES[i % len(CLASSES)]
        captions = [f"a {name} {i}", f"number {i}: {name} on a light ground", f"{i} {name} icons"][: 1 + i % 3]
        samples.append({"png": encoded(picture(i % len(CLASSES), i)), "txt": "\n".join(captions).encode()})
    write_split(root, "test", samples)
    return root


def picture_folders(root: Path, *, per_class: int = 2, split: str = "test") -> Path:
    """A folder of pictures for each class."""
    for label, name in enumerate(sorted(CLASSES)):
        folder = root / split / name.replace(" ", "_")
        folder.mkdir(parents=True)
        for seed in range(per_class):
            picture(CLASSES.index(name), seed).save(folder / f"{seed}.png")
        assert sorted(CLASSES)[label] == name
    return root
