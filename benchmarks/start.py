"""CPU seconds of cold processes: help, a search by vector, a search by text. Beside each, the imports that it needs.

    uv run memory-builder demo --output /tmp/demo
    uv run python benchmarks/start.py /tmp/demo/memory

The least of several rounds counts: a loaded machine adds seconds, it takes none away.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from memory_builder import Memory

PYTHON = (sys.executable, "-c")
COMMAND = (sys.executable, "-m", "memory_builder.cli")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is measured, and how often."""

    memory: tyro.conf.Positional[Path]
    rounds: int = 5


def cpu_s(command: Sequence[str]) -> float:
    """Return the user and system seconds of a process that runs to its end."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main(config: Start) -> None:
    """Print a table of CPU seconds."""
    root = str(config.memory)
    with tempfile.TemporaryDirectory() as folder:
        vector = f"{folder}/query.npy"
        np.save(vector, np.eye(1, Memory.open(root).description.d, dtype=np.float32))
        search = (*COMMAND, "search", root)
        rows = [
            ("--help", (*COMMAND, "--help"), "pass"),
            ("search --vector", (*search, "--vector", vector), "import numpy, faiss, pyarrow.parquet"),
            ("search --text", (*search, "--text", "a cat"), "import numpy, faiss, pyarrow.parquet, torch"),
        ]
        print("| command | CPU seconds | the imports that it needs |\n|---|---|---|")
        for name, command, imports in rows:
            ours, least = (
                min(cpu_s(process) for _ in range(config.rounds)) for process in (command, (*PYTHON, imports))
            )
            print(f"| `{name}` | {ours:.2f} | {least:.2f} (`{imports}`) |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Start))
