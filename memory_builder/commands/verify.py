"""``memory-builder verify``: check every file against its record, and repair what can be repaired."""

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_table
from memory_builder.commands.options import FAILED, MovedModel, RunnerOptions
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Recompute a memory's checksums; name what is missing, changed or foreign, and repair what can be."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    repair: bool = False
    """Mend what is damaged: records from others that say the same, shards and parts by making them again, which are put
    if every byte is as recorded. What cannot be mended is said, with what is lost and what helps."""
    model: OmitArgPrefixes[MovedModel] = field(default_factory=MovedModel)
    """For --repair."""
    json: bool = False
    """One JSON object."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.maintenance.verify import verify

        store, runner = Store(self.memory), self.on.start()
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
        for what in result.get("lost", ()):
            print(f"lost: {what}")
        if problems:
            print_table(f"{self.memory}: {len(problems)} problems", ("shard", "file", "problem"), problems)
        else:
            print(f"{self.memory}: every file is what its record says")
        return FAILED if problems or "lost" in result else 0
