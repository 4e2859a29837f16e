"""Write the pictures that are asked about with their captions: CLIP_benchmark folders for image-text retrieval.

    uv run python examples/icons/captioned.py --benchmark ~/icons/benchmark --splits ~/icons/splits

Writes dev-captioned and test-captioned beside the sets by class, the pictures of all tiers together. A caption is what
the grammar gave the picture, so some do not name what it shows, and some are those of several pictures.
"""

import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from deal import TIERS
from iconify import IconsError
from prepare import add


@dataclass(frozen=True, kw_only=True, slots=True)
class Captioned:
    """Write the pictures that are asked about with their captions."""

    benchmark: Path
    """Folder that benchmark.py wrote."""
    splits: Path
    """Folder of splits.parquet."""


def captions_of(splits: Path, side: str) -> dict[str, str]:
    """Return key → caption of the pictures of dev or test."""
    table = pq.ParquetFile(splits / "splits.parquet").read(["key", "split", "caption"])
    asked = table.filter(pc.equal(table["split"], side))
    return dict(zip(asked["key"].to_pylist(), asked["caption"].to_pylist(), strict=True))


def pictures_of(benchmark: Path, side: str) -> dict[str, bytes]:
    """Return key → picture, of all tiers."""
    pictures = {}
    for tier in TIERS:
        with tarfile.open(benchmark / f"{side}-{tier}" / "test" / "0.tar") as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    pictures[member.name.removesuffix(".png")] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return pictures


def write_set(folder: Path, pictures: dict[str, bytes], captions: dict[str, str]) -> None:
    """Write one set."""
    if missing := pictures.keys() - captions.keys():
        raise IconsError(f"{len(missing)} pictures have no caption, such as {min(missing)}: the splits are other ones")
    (folder / "test").mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for key in sorted(pictures):
            for suffix, data in (("png", pictures[key]), ("txt", captions[key].encode())):
                add(tar, f"{key}.{suffix}", data)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "dataset_type.txt").write_text("retrieval\n")


def main() -> int:
    """Run the command; 0 is success, 2 wrong usage."""
    config = tyro.cli(Captioned, description=__doc__)
    try:
        for side in ("dev", "test"):
            pictures = pictures_of(config.benchmark, side)
            write_set(config.benchmark / f"{side}-captioned", pictures, captions_of(config.splits, side))
            print(f"{len(pictures):,} captioned pictures: {config.benchmark / f'{side}-captioned'}")
    except (IconsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
