"""``memory-builder info``: the state of a memory, from its commit records."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from memory_builder.base.progress import duration
from memory_builder.commands.console import print_curves, print_indexes
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show the state of a memory, also while it is built."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    json: bool = False
    """Print one JSON object."""
    plot: Path | None = None
    """File to draw the curves of recall against work in: .png, .svg or .html."""

    def run(self) -> int:
        from memory_builder.maintenance.info import read_info

        store = Store(self.memory)
        if self.plot is not None:
            _plot_curves(store, self.plot)
        info = read_info(store)
        if self.json:
            print(json.dumps(asdict(info)))
            return 0
        shards = ", ".join(f"{n} {state}" for state, n in info.shards.items())
        print(f"{self.memory}: {info.rows:,} rows of width {info.d}, {info.model} ({info.fingerprint[:12]})")
        print(f"shards: {shards}; {info.input_bytes / 1e6:,.1f} MB read")
        print(f"deleted: {info.deleted:,} rows")
        print(f"rejects: {', '.join(f'{n} {reason}' for reason, n in info.rejects.items()) or 'none'}")
        for note, n in info.notes.items():
            print(f"note: {n:,} {note}")
        if info.retries:
            print(f"storage: {info.retries:,} requests were retried")
        if info.pairs_per_s:
            left = f", {duration(info.time_left_s)} left" if info.time_left_s else ""
            print(f"speed: {info.pairs_per_s:,.0f} pairs/s over the latest shards{left}")
        print_indexes(info.indexes)
        print_curves(store)
        if self.plot is not None:
            print(f"curves drawn in {self.plot}")
        return 0


def _plot_curves(store: Store, path: Path) -> None:
    from memory_builder.indexing.curve import read_curves
    from memory_builder.indexing.plot import check_suffix, plot

    check_suffix(path)
    picture = plot(read_curves(store), store.root, path.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
