"""``memory-builder compact``: remove deleted rows from the indexes, and with ``--purge`` from the files."""

from dataclasses import dataclass, field
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_state
from memory_builder.commands.options import RunnerOptions
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Compact:
    """Rewrite index parts without deleted rows, and merge the parts of appends into larger ones."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    purge: bool = False
    """Also blank the vectors, captions and URLs of deleted rows, and remove every file that holds one of them."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.maintenance.compact import compact

        compact(Store(self.memory), purge=self.purge, runner=self.runner.start())
        print_state(self.memory)
        return 0
