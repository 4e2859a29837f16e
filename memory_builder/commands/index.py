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
    """Index a memory's vectors and tune the search to a target recall. Run it again to go on."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    keys: Annotated[Literal["image", "text", "both"], arg(name="modality", aliases=["--keys"])] = "both"
    """Which vectors to index; both: those there are."""
    config: OmitArgPrefixes[IndexConfig] = field(default_factory=IndexConfig)
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.indexing.driver import index, present_modalities
        from memory_builder.maintenance.info import read_info

        started = time.monotonic()
        keys: tuple[Modality, ...] = present_modalities(Store(self.memory)) if self.keys == "both" else (self.keys,)
        index(self.memory, keys=keys, config=self.config, runner=self.on.start())
        print_indexes(read_info(Store(self.memory)).indexes)
        print(duration(time.monotonic() - started))
        return 0
