"""Deal the bundled sample into a memory and sets to ask about: the benchmark's small sister, made without a download.

    uv run python examples/icons/sample_benchmark.py --out ~/icons/sample

Of every name that three sets or more draw, one picture is asked about; the others, and all other names, are the memory.
A fifth of the names are dev, the others test. Artwork is not compared, so copies may stand on both sides: this shows
that everything runs, and that it still finds what it found; it is no measure of a method.
"""

import gzip
import io
import json
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro
from benchmark import write_set
from bundle_sample import SAMPLE
from deal import draw
from prepare import add, put_json

LEAST_SETS = 3
DEV_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleBenchmark:
    """Deal the bundled sample into a memory and sets to ask about."""

    out: Path
    """Folder of the results."""
    seed: int = 0
    """Seed of the draws."""


class Icon(NamedTuple):
    """One pair of the sample."""

    key: str
    set: str
    name: str
    caption: bytes
    png: bytes
    about: bytes


def read_sample() -> Iterator[Icon]:
    """Read the bundled pairs."""
    for packed in sorted(SAMPLE.glob("*.tar.gz")):
        with gzip.open(packed) as plain, tarfile.open(fileobj=io.BytesIO(plain.read())) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        for name in members:
            key, _, suffix = name.rpartition(".")
            if suffix == "json":
                about = json.loads(members[name])
                texts = members[f"{key}.txt"], members[f"{key}.png"], members[name]
                yield Icon(key, about["set"], about["name"], *texts)


def deal_sample(config: SampleBenchmark) -> str:
    """Do the whole of it and return the summary line."""
    by_name: dict[str, list[Icon]] = defaultdict(list)
    for icon in read_sample():
        by_name[icon.name].append(icon)
    asked: dict[str, list[Icon]] = {"dev": [], "test": []}
    for name, icons in by_name.items():
        if len({icon.set for icon in icons}) >= LEAST_SETS:
            split = "dev" if draw(config.seed, "dev", name) < DEV_SHARE else "test"
            asked[split].append(min(icons, key=lambda icon: draw(config.seed, "asked", icon.key)))
    out = {icon.key for icons in asked.values() for icon in icons}
    rows = [icon for icons in by_name.values() for icon in icons if icon.key not in out]
    (config.out / "memory").mkdir(parents=True, exist_ok=True)
    with tarfile.open(config.out / "memory" / "00000.tar", "w") as archive:
        for icon in sorted(rows, key=lambda icon: draw(config.seed, "order", icon.key)):
            for suffix, data in (("png", icon.png), ("txt", icon.caption), ("json", icon.about)):
                add(archive, f"{icon.key}.{suffix}", data)
    counts = {"memory": len(rows)}
    for split, icons in asked.items():
        names = sorted(icon.name for icon in icons)
        content = [(icon.key, icon.png, names.index(icon.name)) for icon in icons]
        spoken = [name.replace("-", " ") for name in names]
        counts[split] = write_set(config.out / f"{split}-common", spoken, {"test": content})["test"]
    put_json(config.out / "benchmark.json", counts)
    return f"{config.out}: {json.dumps(counts)}"


def main() -> int:
    """Run the command."""
    print(deal_sample(tyro.cli(SampleBenchmark, description=__doc__)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
