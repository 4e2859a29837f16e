"""Make the memory that RECO is trained on: the benchmark's, without the things that its sets ask about.

    uv run python examples/icons/unasked.py --memory ~/icons/memory --splits ~/icons/splits --out ~/icons/memory-unasked

Its files are the memory's own, by hard links, and its rows of dev and test entities are deleted. The base model has
seen none of these pictures. Pairs that it was trained on teach a fusion little: what it knows by heart it need not
look up. Nor do pairs of a thing that is drawn once, as all that they find shows something else: `--fewest 3` leaves
them out too.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
from command import run
from without import memory_without

ASKED = ("dev", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unasked:
    """Make the memory that RECO is trained on."""

    memory: Path
    """A memory of the benchmark's `memory` folder, indexed."""
    splits: Path
    """Folder that splits.py wrote."""
    out: Path
    """Folder of the new memory; what lies there is replaced unless it is this, whole."""
    fewest: int = 1
    """Drawings (clusters) that the memory has of each thing that is kept."""


def keys_left_out(splits: Path, fewest: int) -> list[str]:
    """Return the keys of the memory's rows that show what a set asks about, or what is too rarely drawn."""
    table = pq.read_table(splits / "splits.parquet", columns=["key", "entity", "cluster", "split"]).to_pylist()
    asked = {row["entity"] for row in table if row["split"] in ASKED}
    rows, drawings = [row for row in table if row["split"] == "memory"], defaultdict(set)
    for row in rows:
        drawings[row["entity"]].add(row["cluster"])
    return [row["key"] for row in rows if row["entity"] in asked or len(drawings[row["entity"]]) < fewest]


def make_unasked(config: Unasked) -> None:
    """Do it, unless it was done before. The keys lie beside it, in a file named by their hash."""
    lines = "".join(f"{key}\n" for key in keys_left_out(config.splits, config.fewest)).encode()
    keys = config.out.with_name(f"{config.out.name}-left-out-{sha256(lines).hexdigest()[:12]}.txt")
    keys.write_bytes(lines)
    memory_without(config.memory, config.out, "--keys", str(keys))


if __name__ == "__main__":
    sys.exit(run(make_unasked, Unasked, __doc__, failed=1))
