"""Small evaluation sets, written as CLIP_benchmark and torchvision lay them out."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

TURN = np.linspace(0, 2 * np.pi, 60)


def star(n: int = 5) -> list[tuple[float, float]]:
    angles = np.pi * np.arange(2 * n) / n - np.pi / 2
    radii = np.where(np.arange(2 * n) % 2, 0.32, 0.8)
    return list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


def heart() -> list[tuple[float, float]]:
    height = 13 * np.cos(TURN) - 5 * np.cos(2 * TURN) - 2 * np.cos(3 * TURN) - np.cos(4 * TURN)
    return list(zip(0.8 * np.sin(TURN) ** 3, -0.05 * height, strict=True))


def moon() -> list[tuple[float, float]]:
    outer, inner = np.linspace(-0.2, 4.7, 40), np.linspace(4.2, 0, 40)
    x, y = np.append(0.8 * np.cos(outer), 0.35 + 0.62 * np.cos(inner)), 0.8 * np.sin(outer)
    return list(zip(x, np.append(y, -0.25 + 0.62 * np.sin(inner)), strict=True))


SYMBOLS = {  # polygons within (-1, 1), x to the right and y down
    "heart": [heart()],
    "star": [star()],
    "moon": [moon()],
    "pause": [[(x, -0.7), (x + 0.4, -0.7), (x + 0.4, 0.7), (x, 0.7)] for x in (-0.6, 0.2)],
    "bolt": [[(0.2, -0.9), (-0.6, 0.2), (-0.05, 0.2), (-0.2, 0.9), (0.6, -0.25), (0.05, -0.25)]],
    "download": [
        [(-0.2, -0.9), (0.2, -0.9), (0.2, -0.2), (0.55, -0.2), (0, 0.4), (-0.55, -0.2), (-0.2, -0.2)],
        [(-0.8, 0.6), (0.8, 0.6), (0.8, 0.8), (-0.8, 0.8)],
    ],
    "home": [[(0, -0.8), (0.85, 0), (0.6, 0), (0.6, 0.75), (-0.6, 0.75), (-0.6, 0), (-0.85, 0)]],
    "folder": [[(-0.85, -0.6), (-0.2, -0.6), (0, -0.4), (0.85, -0.4), (0.85, 0.65), (-0.85, 0.65)]],
    "rhombus": [[(0, -0.85), (0.85, 0), (0, 0.85), (-0.85, 0)]],
    "stop": [[(-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7)]],
    "play": [[(-0.5, -0.8), (0.75, 0), (-0.5, 0.8)]],
    "arrow up": [[(0, -0.85), (0.7, -0.1), (0.2, -0.1), (0.2, 0.85), (-0.2, 0.85), (-0.2, -0.1), (-0.7, -0.1)]],
}
CLASSES = tuple(SYMBOLS)
TEMPLATES = ("a photo of a {c}.", "an icon of a {c}.", "{c}")


def picture(label: int, seed: int, size: int = 48) -> Image.Image:
    """A class's symbol, dark and somewhere on a light ground; no two seeds give the same.

    The bundled model knows some of the symbols by name and takes others for them.
    """
    rng = np.random.default_rng((label, seed))
    ground, ink = (tuple(int(grey) for grey in rng.integers(low, high, 3)) for low, high in ((225, 256), (0, 60)))
    drawn = Image.new("RGB", (4 * size, 4 * size), ground)
    centre, radius = rng.uniform(1.75, 2.25, 2) * size, rng.uniform(1.5, 1.8) * size
    for polygon in SYMBOLS[CLASSES[label]]:
        ImageDraw.Draw(drawn).polygon([tuple(centre + radius * np.array(point)) for point in polygon], fill=ink)
    return drawn.resize((size, size), Image.Resampling.LANCZOS)


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
    """Symbols, some pictures of each class in every split."""
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
    """Each picture shows two symbols side by side."""
    write_texts(root, dataset_type="multilabel", classnames=CLASSES, zeroshot_classification_templates=TEMPLATES)
    samples = []
    for i in range(n):
        present, shown = [0] * len(CLASSES), Image.new("RGB", (96, 48))
        for place, label in enumerate((i % 12, (i + 1 + i // 12) % 12)):
            present[label] = 1
            shown.paste(picture(label, i), (48 * place, 0))
        samples.append({"webp": encoded(shown, "WEBP"), "npy": npy(present)})
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
