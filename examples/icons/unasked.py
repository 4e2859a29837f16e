"""Make the memory that RECO is trained on: the benchmark's, without the things that its sets ask about.

    uv run python examples/icons/unasked.py --memory ~/icons/memory --splits ~/icons/splits --out ~/icons/memory-unasked

Its files are the memory's own, by hard links, and its rows of dev and test entities are deleted. The base model has
seen none of these pictures. Pairs that it was trained on teach a fusion little: what it knows by heart it need not
look up.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tyro

from memory_builder.cli import main as memory_builder

ASKED = ("dev", "test")
DONE = "unasked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unasked:
    """Make the memory that RECO is trained on."""

    memory: Path
    """A memory of the benchmark's `memory` folder, indexed."""
    splits: Path
    """Folder that splits.py wrote."""
    out: Path
    """Folder of the new memory; what lies there is replaced unless it is whole."""


def keys_of_asked(splits: Path) -> list[str]:
    """Return the keys of the memory's rows that show what a dev or a test set asks about."""
    table = pq.read_table(splits / "splits.parquet", columns=["key", "entity", "split"]).to_pylist()
    asked = {row["entity"] for row in table if row["split"] in ASKED}
    return [row["key"] for row in table if row["split"] == "memory" and row["entity"] in asked]


def main(config: Unasked) -> int:
    """Do it; return the exit code of the deletion."""
    if (config.out / DONE).exists():
        return 0
    shutil.rmtree(config.out, ignore_errors=True)
    shutil.copytree(config.memory, config.out, copy_function=os.link)
    keys = config.out.with_name(f"{config.out.name}-left-out.txt")
    keys.write_text("".join(f"{key}\n" for key in keys_of_asked(config.splits)), encoding="utf-8")
    code = memory_builder(["delete", str(config.out), "--keys", str(keys)])
    if code == 0:
        (config.out / DONE).touch()
    return code


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Unasked, description=__doc__)))
