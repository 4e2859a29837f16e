"""Hide transformed evaluation pictures, and see which evidence finds them and what it costs in clean pairs.

    uv run python examples/icons/leaks.py --memory ~/icons/memory --benchmark ~/icons/benchmark \
        --splits ~/icons/splits --out ~/icons/leaks

Evaluation pictures are transformed one way at a time. The thresholds are those that find most of the dev pictures while
at most --lost of the clean pairs are taken for copies; then test pictures are counted at these thresholds. A pair of
the memory is clean where it is compared with pictures of another thing (they are of other clusters anyway).
"""

import io
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from PIL import Image, ImageOps

from memory_builder import Memory
from memory_builder.encoder import Encoder, EncoderConfig
from memory_builder.images import decode_image
from memory_builder.retrieve.aligned import glyph_of
from memory_builder.retrieve.evidence import KINDS, Compared, Evidence, Signs
from memory_builder.shards import Pair, read_pairs

TIERS = ("absent", "rare", "common")
BATCH = 1_024
LEAST = 0.75  # correlation from which the operating curve is right


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaks:
    """Plant leaks and look for them."""

    memory: Path
    """A memory of the benchmark's `memory` folder."""
    benchmark: Path
    """Folder that benchmark.py wrote."""
    splits: Path
    """Folder that splits.py wrote."""
    out: Path
    """Folder of the results, and of what is kept for the next run."""
    model: str | None = None
    """Where the memory's model is now, if not where it was."""
    planted: int = 2_000
    """Test pictures that are transformed; of the dev sets all are."""
    lost: float = 0.002
    """Share of clean pairs that may be taken for copies."""
    seed: int = 0


def jpeg(picture: Image.Image, _: random.Random) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def resized(picture: Image.Image, rng: random.Random) -> Image.Image:
    scale = rng.choice((0.7, 1.3))
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


def cropped(picture: Image.Image, rng: random.Random, kept: float = 0.95) -> Image.Image:
    w, h = round(picture.width * kept), round(picture.height * kept)
    left, top = rng.randint(0, picture.width - w), rng.randint(0, picture.height - h)
    return picture.crop((left, top, left + w, top + h))


def trimmed(picture: Image.Image, _: random.Random) -> Image.Image:
    x, y = round(picture.width * 0.05), round(picture.height * 0.05)
    return picture.crop((x, y, picture.width - x, picture.height - y))


def padded(colour: str) -> Callable[[Image.Image, random.Random], Image.Image]:
    return lambda picture, _: ImageOps.expand(picture, border=round(picture.width * 0.15), fill=colour)


TRANSFORMS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "identical": lambda picture, _: picture,
    "JPEG 60": jpeg,
    "resize ±30 %": resized,
    "grey": lambda picture, _: picture.convert("L").convert("RGB"),
    "white pad": padded("white"),
    "flip": lambda picture, _: ImageOps.mirror(picture),
    "crop 5 %": cropped,
    "crop 5 % of every edge": trimmed,
    "black pad": padded("black"),
}


def signs_of(pictures: list[Image.Image], encoder: Encoder) -> Signs:
    """Embeddings and glyphs of RGB pictures."""
    vectors = []
    for start in range(0, len(pictures), 256):
        pixels = np.stack([encoder.preprocess(picture) for picture in pictures[start : start + 256]])
        vectors.append(encoder.encode_images(pixels))
    return Signs(np.concatenate(vectors), np.stack([glyph_of(picture) for picture in pictures]))


def asked_about(benchmark: Path, side: str) -> dict[str, Image.Image]:
    """Key → picture of the evaluation sets of a side."""
    found = {}
    for tier in TIERS:
        for tar in sorted((benchmark / f"{side}-{tier}" / "test").glob("*.tar")):
            for pair in read_pairs(str(tar), require="image"):
                if isinstance(pair, Pair) and pair.image:
                    found[pair.key] = decode_image(pair.image)
    return found


def memory_glyphs(memory: Memory, file: Path) -> np.ndarray:
    """u8[n, 32, 32] of all rows in order, kept in a file."""
    if not file.exists():
        with ThreadPoolExecutor(2) as threads:
            glyphs = list(threads.map(glyph_of, memory_pictures(memory)))
        np.save(file, np.stack(glyphs))
    return np.load(file)


def memory_pictures(memory: Memory) -> Iterator[Image.Image]:
    for ordinal in memory.commits:
        ids = memory.row_ids(ordinal)
        rows = {key: i for i, key in enumerate(memory.rows(ids)["key"].to_pylist())}
        found: list[Image.Image | None] = [None] * len(rows)
        for pair in read_pairs(memory.commits[ordinal].uri, only=frozenset(rows)):
            if isinstance(pair, Pair) and pair.image:
                found[rows[pair.key]] = decode_image(pair.image)
        assert all(found), f"pictures of shard {ordinal} are gone"
        yield from (picture for picture in found if picture)


@dataclass(frozen=True)
class Side:
    """What was measured of dev or test."""

    clean: Evidence
    """Of every row of the memory, against pictures of other things."""
    planted: dict[str, Evidence]
    """Of every planted picture, by transform."""


def measure(side: str, config: Leaks, memory: Memory, rows: Signs, entity: dict[str, str]) -> Side:
    """Evidence for planted and for clean pairs."""
    pictures = asked_about(config.benchmark, side)
    keys = list(pictures)
    plain = signs_of(list(pictures.values()), memory.encoder)
    mirrored = signs_of([ImageOps.mirror(picture) for picture in pictures.values()], memory.encoder)
    compared = Compared(plain, mirrored)
    chosen = random.Random(config.seed).sample(keys, min(len(keys), config.planted if side == "test" else len(keys)))
    planted = {}
    for name, transform in TRANSFORMS.items():
        rng = random.Random(f"{config.seed} {name}")
        changed = signs_of([transform(pictures[key], rng) for key in chosen], memory.encoder)
        planted[name] = compared.evidence(changed, least=LEAST)
        print(f"{side}: {name}", file=sys.stderr, flush=True)
    names = memory_keys(memory)
    groups: dict[str, int] = {}
    of_rows = [groups.setdefault(entity[key], len(groups)) for key in names]
    of_asked = [groups.setdefault(entity[key.split("/")[-1]], len(groups)) for key in keys]
    return Side(clean=clean_evidence(compared, rows, np.array(of_rows), np.array(of_asked)), planted=planted)


def clean_evidence(compared: Compared, rows: Signs, of_rows: np.ndarray, of_asked: np.ndarray) -> Evidence:
    parts = []
    for start in range(0, len(rows), BATCH):
        here = slice(start, start + BATCH)
        some = Signs(rows.vectors[here], rows.glyphs[here])
        parts.append(compared.evidence(some, least=LEAST, without=np.concatenate([of_rows[here], of_asked])))
    join = {kind: np.concatenate([part.values[kind] for part in parts]) for kind in KINDS}
    return Evidence(join, {kind: np.concatenate([part.others[kind] for part in parts]) for kind in KINDS})


def memory_keys(memory: Memory) -> list[str]:
    return [key for o in memory.commits for key in memory.rows(memory.row_ids(o))["key"].to_pylist()]


def main(config: Leaks) -> None:
    config.out.mkdir(parents=True, exist_ok=True)
    encoder = EncoderConfig(model=config.model) if config.model else None
    memory = Memory.open(config.memory, encoder=encoder)
    table = pq.read_table(config.splits / "splits.parquet", columns=["key", "entity"])
    entity = dict(zip(table["key"].to_pylist(), table["entity"].to_pylist(), strict=True))
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    rows = Signs(memory.vectors(ids).astype(np.float16), memory_glyphs(memory, config.out / "glyphs.npy"))
    for side in ("dev", "test"):
        found = measure(side, config, memory, rows, entity)
        save(config.out / f"{side}.parquet", found)


def save(path: Path, found: Side) -> None:
    """The values themselves, from which every operating curve follows."""
    tables = []
    for name, evidence in {"clean": found.clean, **found.planted}.items():
        columns = {kind: evidence.values[kind] for kind in KINDS}
        tables.append(pa.table({"what": [name] * len(columns["hash"]), **columns}))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


if __name__ == "__main__":
    main(tyro.cli(Leaks, description=__doc__))
