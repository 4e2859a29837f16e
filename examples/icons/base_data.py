"""The pairs of base training: decoded once, and drawn into batches that depend on the seed and the step alone."""

import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from glyphs import pixels_of
from torch import Tensor
from torch.nn import functional

SIDE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """All pairs of base training."""

    pictures: np.ndarray
    """u8[n, 64, 64, 3]."""
    tokens: np.ndarray
    """i32[n, 2, context]: the thing's name, and its caption."""
    recolour: np.ndarray
    """bool[n]: the picture has no colours of its own."""


def decode(folder: Path, cache: Path) -> None:
    """Decode the tars of a folder into arrays beside each other in `cache`, once."""
    if (cache / "texts.json").exists():
        return
    cache.mkdir(parents=True, exist_ok=True)
    tars = sorted(folder.glob("*.tar"))
    count = sum(map(pictures_in, tars))
    large = np.lib.format.open_memmap(cache / "64.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    texts: list[tuple[str, str, bool]] = []
    for tar in tars:
        with tarfile.open(tar) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        for name in [name.removesuffix(".png") for name in members if name.endswith(".png")]:
            large[len(texts)] = pixels_of(members[f"{name}.png"])
            about = json.loads(members[f"{name}.json"])
            texts.append((about["words"], members[f"{name}.txt"].decode(), not about["palette"]))
    large.flush()
    scratch = cache / "texts.tmp"
    scratch.write_text(json.dumps(texts))
    scratch.replace(cache / "texts.json")


def pictures_in(tar: Path) -> int:
    """Return how many pictures a tar holds."""
    with tarfile.open(tar) as archive:
        return sum(name.endswith(".png") for name in archive.getnames())


def load_pairs(cache: Path, tokenize: Callable[[list[str]], Tensor]) -> Pairs:
    """Open what `decode` wrote."""
    texts = json.loads((cache / "texts.json").read_text())
    columns = [tokenize([row[column] for row in texts]).to(torch.int32).numpy() for column in (0, 1)]
    return Pairs(
        pictures=np.load(cache / "64.npy", mmap_mode="r"),
        tokens=np.stack(columns, axis=1),
        recolour=np.array([row[2] for row in texts]),
    )


def order_of(count: int, epoch: int, seed: int) -> np.ndarray:
    """Return i64[count], the order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def rows_of_step(count: int, step: int, batch: int, seed: int) -> np.ndarray:
    """Return i64[batch], the rows of a step; what does not fill a batch at the end of an epoch is left out."""
    per_epoch = count // batch
    place = step % per_epoch * batch
    return np.sort(order_of(count, step // per_epoch, seed)[place : place + batch])


def batch_of(pairs: Pairs, step: int, *, batch: int, seed: int, easy: float = 0) -> tuple[Tensor, Tensor]:
    """Return a step's pictures, f32[batch, 3, 64, 64] in -1..1, and its texts, i64[batch, context].

    `easy` is the share of pairs shown the easy way: without the colours that mean nothing, and by their bare name. Of
    the others half have their caption.
    """
    rows = rows_of_step(len(pairs.recolour), step, batch, seed)
    draw = np.random.default_rng([seed, step, 1])
    pictures, free = torch.from_numpy(pairs.pictures[rows]).permute(0, 3, 1, 2), pairs.recolour[rows]
    captioned, is_easy = draw.random(batch) < 0.5, draw.random(batch) < easy
    texts = torch.from_numpy(pairs.tokens[rows, (captioned & ~is_easy).astype(np.int64)]).long()
    coloured = recolour(pictures.float() / 127.5 - 1, free, draw)
    bare = torch.from_numpy(free & is_easy)[:, None, None, None]
    return jitter(torch.where(bare, black_on_white(coloured), coloured), draw), texts


def black_on_white(pictures: Tensor) -> Tensor:
    """Draw each picture the darker, the more it differs from its corner: f32[b, 3, h, w], -1 is black."""
    ink = (pictures - pictures[:, :, :1, :1]).abs().mean(1, keepdim=True)
    return (1 - 2 * ink / ink.amax((1, 2, 3), keepdim=True).clamp(min=1e-3)).expand_as(pictures)


def recolour(pictures: Tensor, free: np.ndarray, draw: np.random.Generator) -> Tensor:
    """Swap the channels of pictures whose colours mean nothing, and invert half of them."""
    channels = torch.from_numpy(draw.permuted(np.tile(np.arange(3), (len(free), 1)), axis=1))
    sign = torch.from_numpy(draw.choice(np.array([-1, 1], dtype=np.float32), len(free)))
    mixed = torch.gather(pictures, 1, channels[:, :, None, None].expand_as(pictures)) * sign[:, None, None, None]
    return torch.where(torch.from_numpy(free)[:, None, None, None], mixed, pictures)


def jitter(pictures: Tensor, draw: np.random.Generator) -> Tensor:
    """Scale, turn and move each picture a little; what comes in from outside repeats its edge."""
    count = len(pictures)
    angle, scale = draw.normal(0, 0.06, count), np.exp(draw.normal(0.02, 0.08, count))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    shift = draw.normal(0, 0.04, (2, count))
    affine = np.stack([np.stack([cos, -sin, shift[0]], 1), np.stack([sin, cos, shift[1]], 1)], axis=1).astype(
        np.float32
    )
    grid = functional.affine_grid(torch.from_numpy(affine), list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def read_set(folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """Read an evaluation set of benchmark.py: class names, pictures f32[n, 3, 64, 64] in -1..1, labels i64[n]."""
    names = (folder / "classnames.txt").read_text(encoding="utf-8").splitlines()
    with tarfile.open(folder / "test" / "0.tar") as archive:
        members: Sequence[tuple[str, bytes]] = [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
    pixels = np.stack([pixels_of(data) for name, data in members if name.endswith(".png")])
    labels = torch.tensor([int(data) for name, data in members if name.endswith(".cls")])
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return names, pictures, labels
