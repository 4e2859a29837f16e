"""``memory-builder append``: index the shards that were embedded since."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_state
from memory_builder.commands.options import RunnerOptions
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Append:
    """Add the rows of newly embedded shards to the indexes, without training them anew."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    modality: Annotated[Literal["image", "text", "both"], arg(name="modality", aliases=["--keys"])] = "both"
    """Indexes to extend; both: all existing indexes."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.maintenance.append import append

        modalities = () if self.modality == "both" else (self.modality,)
        append(Store(self.memory), modalities=modalities, runner=self.runner.start())
        print_state(self.memory)
        return 0
