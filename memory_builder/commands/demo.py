"""``memory-builder demo``: the main job over the bundled sample."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Build and ask a memory of 2,385 bundled icons with a small bundled model; write a report of it."""

    out: Path = Path("demo")
    """Folder for the sample, the memory and report.html."""

    def run(self) -> int:
        from memory_builder.demo.driver import run_demo

        print(f"report: {run_demo(self.out)}")
        return 0
