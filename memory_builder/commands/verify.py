"""``memory-builder verify``: check every file against its record, and repair damaged ones."""

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_table
from memory_builder.commands.options import FAILED, ModelOptions, RunnerOptions
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check the files of a memory against their records, and repair them."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    repair: bool = False
    """Rewrite damaged records from others with the same content, and rebuild damaged shards and parts if every byte is
    as recorded. Files that cannot be repaired are listed, with the loss and the fix."""
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    """Model for --repair."""
    json: bool = False
    """Print one JSON object."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.maintenance.verify import verify

        store, runner = Store(self.memory), self.runner.start()
        result: dict[str, Any] = {}
        if self.repair:
            from memory_builder.maintenance.repair import repair

            repaired = repair(store, runner, encoder=self.model.encoder())
            problems, result["repaired"] = [asdict(problem) for problem in repaired.problems], repaired.files
            result |= {"lost": repaired.lost} if repaired.lost else {}
        else:
            problems = [asdict(problem) for problem in verify(store, runner)]
        if self.json:
            print(json.dumps({"ok": not problems, "problems": problems} | result))
            return FAILED if problems or "lost" in result else 0
        for file in result.get("repaired", ()):
            print(f"repaired: {file}")
        for loss in result.get("lost", ()):
            print(f"lost: {loss}")
        if problems:
            print_table(f"{self.memory}: {len(problems)} problems", ("shard", "file", "problem"), problems)
        else:
            print(f"{self.memory}: every file matches its record")
        return FAILED if problems or "lost" in result else 0
