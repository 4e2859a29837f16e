"""Commands that keep a memory sound and hand it on: verify, merge, export."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.base.types import (
    Modality,
)
from memory_builder.commands.console import print_table
from memory_builder.commands.options import FAILED, MovedModel, RunnerOptions
from memory_builder.errors import UsageError
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
        found: dict[str, Any] = {}
        if self.repair:
            from memory_builder.maintenance.repair import repair

            repaired = repair(store, runner, encoder=self.model.encoder())
            problems, found["repaired"] = [asdict(problem) for problem in repaired.problems], repaired.files
            found |= {"lost": repaired.lost} if repaired.lost else {}
        else:
            problems = [asdict(problem) for problem in verify(store, runner)]
        if self.json:
            print(json.dumps({"ok": not problems, "problems": problems} | found))
            return FAILED if problems or "lost" in found else 0
        for file in found.get("repaired", ()):
            print(f"repaired: {file}")
        for what in found.get("lost", ()):
            print(f"lost: {what}")
        if problems:
            print_table(f"{self.memory}: {len(problems)} problems", ("shard", "file", "problem"), problems)
        else:
            print(f"{self.memory}: every file is what its record says")
        return FAILED if problems or "lost" in found else 0


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge the parts of an index into one on-disk index that plain faiss opens. Run it again to go on."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    keys: Annotated[Literal["image", "text", "both"], arg(name="modality", aliases=["--keys"])] = "both"
    """Which indexes; both: those there are."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.catalog.snapshots import read_snapshot
        from memory_builder.export.faiss_ondisk import merge

        store, runner = Store(self.memory), self.on.start()
        snapshot = read_snapshot(store)
        asked: tuple[Modality, ...] = (snapshot.modalities or ("image",)) if self.keys == "both" else (self.keys,)
        for keys in asked:
            merged = merge(store, keys, runner=runner)
            place = f"{store.root}/{snapshot.view(keys, store.root).index}/merged"
            print(f"{keys}: {merged.n_rows:,} rows, {merged.bytes / 1e6:,.1f} MB of inverted lists in {place}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Export:
    """Hand a memory, or what was found in it, to other tools."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    out: Annotated[str, Positional, arg(metavar="OUT")]
    """Folder to write."""
    format: Annotated[Literal["img2dataset", "clip-retrieval", "parquet", "lance"], arg(name="as")]
    """img2dataset: the URLs and captions to fetch, as parquet. clip-retrieval: what its back end serves. parquet,
    lance: every row with its metadata and vectors."""
    hits: Path | None = None
    """What search --json printed: only these rows. Not for clip-retrieval."""
    max_file: str = "4G"
    """An index larger than this becomes a folder with its lists on disk. For clip-retrieval."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.export.tables import export_table, export_urls, read_hits
        from memory_builder.memory import Memory

        if self.format == "clip-retrieval":
            return self._for_clip_retrieval()
        ids = read_hits(self.hits) if self.hits else None
        if self.format != "img2dataset":
            print(f"{export_table(Memory.open(self.memory), self.out, self.format, ids):,} rows in {self.out}")
            return 0
        listed = export_urls(Memory.open(self.memory), self.out, ids)
        left_out = {"have no URL": listed.n_without_url, "are deleted": listed.n_deleted}
        told = [f"; {n:,} rows {why} and were left out" for why, n in left_out.items() if n]
        print(f"{listed.n_written:,} URLs in {self.out}{''.join(told)}")
        return 0

    def _for_clip_retrieval(self) -> int:
        from memory_builder.export.clip_retrieval import export_clip_retrieval
        from memory_builder.memory import Memory

        if self.hits is not None:
            raise UsageError("--hits is not for --as clip-retrieval: a back end serves whole indexes")
        memory, runner = Memory.open(self.memory), self.on.start()
        served = export_clip_retrieval(memory, self.out, max_file=self.max_file, runner=runner)
        vectors = ", ".join(f"{n:,} {keys} vectors" for keys, n in served.indexes.items())
        print(f"{served.n_rows:,} rows, {vectors} in {self.out}")
        print(f"clip-retrieval back --indices_paths {Store(self.out).root}/indices_paths.json")
        return 0
