"""``memory-builder append``: index the shards that were embedded since."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_state
from memory_builder.commands.options import RunnerOptions
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Append:
    """Index the rows of shards embedded since, without training anew."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    modality: Annotated[Literal["image", "text", "both"], arg(name="modality", aliases=["--keys"])] = "both"
    """Which indexes; both: those there are."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.maintenance.append import append

        append(
            Store(self.memory), modalities=() if self.modality == "both" else (self.modality,), runner=self.on.start()
        )
        print_state(self.memory)
        return 0
