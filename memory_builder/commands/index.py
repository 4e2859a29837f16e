"""``memory-builder index``: train, fill and tune the indexes of a memory."""

import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.base.progress import duration
from memory_builder.base.types import Modality
from memory_builder.commands.console import print_indexes
from memory_builder.commands.options import RunnerOptions
from memory_builder.indexing.config import IndexConfig
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Index:
    """Train, fill and tune the indexes of a memory for a target recall. Run it again to resume."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    modality: Annotated[Literal["image", "text", "both"], arg(name="modality", aliases=["--keys"])] = "both"
    """Vectors to index; both: all that the memory has."""
    index: OmitArgPrefixes[IndexConfig] = field(default_factory=IndexConfig)
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.indexing.driver import index, present_modalities
        from memory_builder.maintenance.info import read_info

        started = time.monotonic()
        modality: tuple[Modality, ...] = (
            present_modalities(Store(self.memory)) if self.modality == "both" else (self.modality,)
        )
        index(self.memory, modality=modality, config=self.index, runner=self.runner.start())
        print_indexes(read_info(Store(self.memory)).indexes)
        print(duration(time.monotonic() - started))
        return 0
