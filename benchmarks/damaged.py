"""Real shards with one pair in a hundred damaged: rows + rejects must be the pairs in the input, for each reason.

    uv run python benchmarks/damaged.py 'shards/*.tar' --model local-dir:memory_builder/demo/model

Damaged copies of the shards are written, embedded by the command's own code, and every reject is compared with what
was done to its pair; every other pair must be a row, under its own key and with its own caption.
"""

import io
import random
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tyro

from memory_builder.base.runner import LocalRunner
from memory_builder.embedding.config import EmbedConfig
from memory_builder.embedding.driver import embed
from memory_builder.model.encoder import EncoderConfig
from memory_builder.readers.discover import find_sources

Pair = dict[str, bytes]  # suffix → content

# what is done to a pair → the reason it must be rejected with
DAMAGE: dict[str, tuple[Callable[[Pair], Pair], str]] = {
    "no image": (lambda pair: {k: v for k, v in pair.items() if k != "png"}, "no image"),
    "no caption": (lambda pair: {k: v for k, v in pair.items() if k == "png"}, "no caption"),
    "empty image": (lambda pair: pair | {"png": b""}, "empty image file"),
    "text as image": (lambda pair: pair | {"png": b"<html>not found</html>"}, "not an image"),
    "truncated image": (lambda pair: pair | {"png": pair["png"][: len(pair["png"]) // 2]}, "image is damaged"),
    "blank caption": (lambda pair: pair | {"txt": b" \n"}, "no caption"),
    "latin-1 caption": (lambda pair: pair | {"txt": "café".encode("latin-1")}, "caption is not UTF-8"),
    "cut json": (lambda pair: pair | {"json": pair["json"][:-5]}, "json cannot be parsed"),
    "json list": (lambda pair: pair | {"json": b"[]"}, "json is not an object"),
}


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """What is damaged."""

    shards: tyro.conf.Positional[tuple[str, ...]]
    """Shards whose pairs have .png, .txt and .json, as examples/icons/prepare.py writes them."""
    encoder: tyro.conf.OmitArgPrefixes[EncoderConfig]
    one_in: int = 100
    """Every how manieth pair is damaged."""


def damage_shard(source: str, target: Path, one_in: int, rng: random.Random) -> dict[str, str | None]:
    """Copy a shard, damaging some pairs; key → reason it must be rejected with, or None."""
    pairs: dict[str, Pair] = {}
    with tarfile.open(source) as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None
            pairs.setdefault(key, {})[suffix] = content.read()
    expected: dict[str, str | None] = {}
    with tarfile.open(target, "w") as tar:
        for key, pair in pairs.items():
            expected[key] = None
            if rng.randrange(one_in) == 0:
                change, expected[key] = DAMAGE[rng.choice(sorted(DAMAGE))]
                pair = change(pair)
            for suffix, content in pair.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return expected


def main(config: Damaged) -> None:
    """Print the counts; fail on the first that is wrong."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        expected: dict[str, str | None] = {}
        for i, source in enumerate(find_sources(config.shards)):
            expected |= damage_shard(source.uri, work / f"{i:05d}.tar", config.one_in, rng)
        memory = work / "memory"
        embed([folder], str(memory), encoder=config.encoder, config=EmbedConfig(), runner=LocalRunner())
        rows = [key for file in memory.glob("metadata/*.parquet") for key in pq.read_table(file)["key"].to_pylist()]
        rejects = {r["key"]: r["reason"] for f in memory.glob("rejects/*") for r in pq.read_table(f).to_pylist()}
    wrong = [key for key, reason in expected.items() if rejects.get(key) != reason]
    missing = expected.keys() - set(rows) - rejects.keys()
    print(f"{len(expected):,} pairs in the input = {len(rows):,} rows + {len(rejects):,} rejects")
    for reason, n in Counter(rejects.values()).most_common():
        print(f"{n:6} {reason}")
    if wrong or missing or len(rows) + len(rejects) != len(expected) or len(set(rows)) != len(rows):
        raise SystemExit(f"not what was done to the shards: {wrong[:5]}, {sorted(missing)[:5]}")


if __name__ == "__main__":
    main(tyro.cli(Damaged))
