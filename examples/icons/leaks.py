"""Hide transformed evaluation pictures, and see which evidence finds them and what it costs in clean pairs.

    uv run python examples/icons/leaks.py --memory ~/icons/memory --benchmark ~/icons/benchmark \
        --splits ~/icons/splits --out ~/icons/leaks

Evaluation pictures are transformed one way at a time. A pair of the memory is clean where it is compared with
pictures of another thing (they are of other clusters anyway). What finds enough is learnt from dev's pictures; what
it costs depends on the pictures that are asked about, and can be measured for these without knowing any copy: of the
thresholds that reach every bar on dev, those are set that lose fewest of one half of the clean pairs. Planted test
pictures, and the other half, are then counted. What was measured is kept in --out; with another memory take another
folder.
"""

import io
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from deal import TIERS
from leak_curves import judge
from PIL import Image, ImageOps
from prepare import put_json

from memory_builder import Memory
from memory_builder.catalog.trusted_sources import link_policy
from memory_builder.model.encoder import Encoder, EncoderConfig
from memory_builder.model.images import decode_image
from memory_builder.readers.fetch import PictureRef, read_pictures
from memory_builder.readers.read import Pair, read_pairs
from memory_builder.retrieval.copies.compare import KINDS, Evidence, Groups, ImageSignatures, ReferenceImages
from memory_builder.retrieval.copies.glyph import glyph_of
from memory_builder.retrieval.copies.miniature import miniature_of

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
    clean: int = 60_000
    """Rows of the memory that are compared as clean pairs, drawn at random; 0, or more than there are: all."""
    lost: float = 0.002
    """Share of clean pairs that each kind of evidence alone may take for copies."""
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


def signs_of(pictures: list[Image.Image], encoder: Encoder) -> ImageSignatures:
    """Embeddings and glyphs of RGB pictures."""
    vectors = []
    for start in range(0, len(pictures), 256):
        pixels = np.stack([encoder.preprocess(picture) for picture in pictures[start : start + 256]])
        vectors.append(encoder.encode_images(pixels))
    glyphs, miniatures = (np.stack(list(map(of, pictures))) for of in (glyph_of, miniature_of))
    return ImageSignatures(np.concatenate(vectors), glyphs, miniatures)


def asked_about(benchmark: Path, side: str) -> dict[str, Image.Image]:
    """Key → picture of the evaluation sets of a side."""
    found = {}
    for tier in TIERS:
        for tar in sorted((benchmark / f"{side}-{tier}" / "test").glob("*.tar")):
            for pair in read_pairs(str(tar), require="image"):
                if isinstance(pair, Pair) and pair.image:
                    found[pair.key] = decode_image(pair.image)
    return found


def drawn_rows(memory: Memory, count: int, seed: int) -> np.ndarray:
    """i64[n] row ids, ascending."""
    ids = np.concatenate([memory.row_ids(ordinal) for ordinal in memory.commits])
    if not 0 < count < len(ids):
        return ids
    return np.sort(np.random.default_rng(seed).choice(ids, count, replace=False))


def memory_signs(memory: Memory, ids: np.ndarray) -> ImageSignatures:
    """Of these rows, from the shards they were embedded from."""
    glyphs, miniatures = [], []
    policy = link_policy(memory.commits.values())
    for of_shard in np.split(ids, np.flatnonzero(np.diff(ids >> 32)) + 1):
        places = [PictureRef(member) for member in memory.metadata(of_shard, ["member"])["member"].to_pylist()]
        pictures: dict[int, Image.Image] = {}
        for which, picture in read_pictures(memory.source(int(of_shard[0])), places, policy):
            assert isinstance(picture, bytes), f"{places[which].member} is {picture.reason}"
            pictures[which] = decode_image(picture)
        glyphs += [glyph_of(pictures[which]) for which in range(len(of_shard))]
        miniatures += [miniature_of(pictures[which]) for which in range(len(of_shard))]
    return ImageSignatures(memory.vectors(ids).astype(np.float16), np.stack(glyphs), np.stack(miniatures))


@dataclass(frozen=True)
class Side:
    """What was measured of dev or test."""

    clean: Evidence | None
    """Of rows of the memory, against pictures of other things; None for dev."""
    planted: dict[str, Evidence]
    """Of every planted picture, by transform."""


def measure(side: str, config: Leaks, memory: Memory, entity: dict[str, str]) -> Side:
    """Evidence for planted and for clean pairs."""
    pictures = asked_about(config.benchmark, side)
    keys = list(pictures)
    compared = ReferenceImages(signs_of(list(pictures.values()), memory.encoder))
    chosen = random.Random(config.seed).sample(keys, min(len(keys), config.planted if side == "test" else len(keys)))
    planted = {}
    for name, transform in TRANSFORMS.items():
        rng = random.Random(f"{config.seed} {name}")
        changed = signs_of([transform(pictures[key], rng) for key in chosen], memory.encoder)
        planted[name] = compared.evidence(changed, least=LEAST)
        print(f"{side}: {name}", file=sys.stderr, flush=True)
    if side == "dev":
        return Side(clean=None, planted=planted)
    ids = drawn_rows(memory, config.clean, config.seed)
    row_keys = memory.rows(ids, ["key"])["key"].to_pylist()
    numbers: dict[str, int] = {}
    of_rows, of_asked = (
        np.array([numbers.setdefault(entity[key], len(numbers)) for key in some]) for some in (row_keys, keys)
    )
    return Side(clean=clean_evidence(compared, memory_signs(memory, ids), Groups(of_rows, of_asked)), planted=planted)


def clean_evidence(compared: ReferenceImages, rows: ImageSignatures, groups: Groups) -> Evidence:
    parts = []
    for start in range(0, len(rows), BATCH):
        here = slice(start, start + BATCH)
        some = ImageSignatures(rows.vectors[here], rows.glyphs[here], rows.miniatures[here])
        apart = Groups(groups.of_pictures[here], groups.of_others)
        parts.append(compared.evidence(some, least=LEAST, without=apart))
    join = {kind: np.concatenate([part.values[kind] for part in parts]) for kind in KINDS}
    return Evidence(join, {kind: np.concatenate([part.others[kind] for part in parts]) for kind in KINDS})


def check_settings(config: Leaks) -> None:
    """Refuse a folder that holds what was measured with other settings; ``lost`` judges that and may differ."""
    path = config.out / "settings.json"
    settings = {name: str(value) for name, value in asdict(config).items() if name not in ("out", "lost")}
    if path.exists() and json.loads(path.read_bytes()) != settings:
        sys.exit(f"error: {path} has other settings than these: remove that folder, or name another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    put_json(path, settings)


def main(config: Leaks) -> None:
    check_settings(config)
    encoder = EncoderConfig(model=config.model) if config.model else None
    memory = Memory.open(config.memory, encoder=encoder)
    table = pq.read_table(config.splits / "splits.parquet", columns=["key", "entity"])
    entity = dict(zip(table["key"].to_pylist(), table["entity"].to_pylist(), strict=True))
    for side in ("dev", "test"):
        if not (config.out / f"{side}.parquet").exists():
            save(config.out / f"{side}.parquet", measure(side, config, memory, entity))
    report = judge(config.out, config.lost)
    put_json(config.out / "leaks.json", report | {"memory": str(config.memory), "model": memory.description.model})
    print(json.dumps(report["test"], indent=1, ensure_ascii=False))


def save(path: Path, found: Side) -> None:
    """The values themselves, from which every operating curve follows."""
    tables = []
    for name, evidence in {"clean": found.clean, **found.planted}.items():
        if evidence is None:
            continue
        columns = {kind: evidence.values[kind] for kind in KINDS}
        tables.append(pa.table({"what": [name] * len(columns["hash"]), **columns}))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


if __name__ == "__main__":
    main(tyro.cli(Leaks, description=__doc__))
