"""Write the class names of several evaluation sets as one list, each name once: what a subset is retrieved for.

uv run python examples/icons/class_names.py ~/icons/benchmark/test-rare ~/icons/benchmark/dev-rare --out classes.txt
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassNames:
    """Write the class names of several evaluation sets as one list."""

    sets: Annotated[tuple[Path, ...], Positional]
    """Folders in CLIP_benchmark's layout."""
    out: Path
    """File to write, a name a line."""


def main() -> int:
    """Run the command."""
    config = tyro.cli(ClassNames, description=__doc__)
    lines = [line for folder in config.sets for line in (folder / "classnames.txt").read_text().splitlines()]
    names = list(dict.fromkeys(lines))
    config.out.write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{len(names)} names of {len(config.sets)} sets: {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
