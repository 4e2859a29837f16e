"""``memory-builder merge``: write an index as one on-disk faiss index."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.base.types import Modality
from memory_builder.commands.options import RunnerOptions
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge the parts of an index into one on-disk index that plain faiss opens. Run it again to resume."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    modality: Annotated[Literal["image", "text", "both"], arg(name="modality", aliases=["--keys"])] = "both"
    """Indexes to merge; both: all existing indexes."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.catalog.snapshots import read_snapshot
        from memory_builder.export.faiss_ondisk import merge

        store, runner = Store(self.memory), self.runner.start()
        snapshot = read_snapshot(store)
        modalities: tuple[Modality, ...] = (
            (snapshot.modalities or ("image",)) if self.modality == "both" else (self.modality,)
        )
        for modality in modalities:
            merged = merge(store, modality, runner=runner)
            folder = f"{store.root}/{snapshot.view(modality, store.root).index}/merged"
            print(f"{modality}: {merged.n_rows:,} rows, {merged.bytes / 1e6:,.1f} MB of inverted lists in {folder}")
        return 0
