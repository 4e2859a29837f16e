"""``memory-builder compact``: take deleted rows out of the indexes, and with ``--purge`` out of the files."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_state
from memory_builder.commands.options import RunnerOptions
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Take deleted rows out of the index, and merge what was appended into larger parts."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    purge: bool = False
    """Also blank the vectors, captions and urls of deleted rows, and remove every file that holds one of them."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.maintenance.compact import compact

        compact(Store(self.memory), purge=self.purge, runner=self.on.start())
        print_state(self.memory)
        return 0
