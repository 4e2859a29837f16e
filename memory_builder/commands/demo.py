"""``memory-builder demo``: embed, index and search the bundled sample."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Build and search a memory of 2,385 bundled icons with a small bundled model, and write a report."""

    out: Path = Path("demo")
    """Folder for the sample, the memory and report.html."""

    def run(self) -> int:
        from memory_builder.demo.driver import run_demo

        print(f"report: {run_demo(self.out)}")
        return 0
