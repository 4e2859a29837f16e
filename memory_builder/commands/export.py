"""``memory-builder export``: write rows, URLs or indexes in other programs' formats."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.options import RunnerOptions
from memory_builder.errors import UsageError
from memory_builder.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the rows, URLs or indexes of a memory in the format of another program."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    out: Annotated[str, Positional, arg(metavar="OUT")]
    """Folder to write."""
    format: Annotated[Literal["img2dataset", "clip-retrieval", "parquet", "lance"], arg(name="as")]
    """img2dataset: parquet of URLs and captions to fetch. clip-retrieval: files that its back end serves. parquet,
    lance: a table of every row with its metadata and vectors."""
    hits: Path | None = None
    """Output of search --json: export only its rows. Not for clip-retrieval."""
    max_file: str = "4G"
    """Largest index to write as one file; a larger one becomes a folder with on-disk inverted lists. For
    clip-retrieval."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

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
        remarks = [f"; {n:,} rows {why} and were left out" for why, n in left_out.items() if n]
        print(f"{listed.n_written:,} URLs in {self.out}{''.join(remarks)}")
        return 0

    def _for_clip_retrieval(self) -> int:
        from memory_builder.export.clip_retrieval import export_clip_retrieval
        from memory_builder.memory import Memory

        if self.hits is not None:
            raise UsageError("--hits is not for --as clip-retrieval: a back end serves whole indexes")
        memory, runner = Memory.open(self.memory), self.runner.start()
        served = export_clip_retrieval(memory, self.out, max_file=self.max_file, runner=runner)
        vectors = ", ".join(f"{n:,} {keys} vectors" for keys, n in served.indexes.items())
        print(f"{served.n_rows:,} rows, {vectors} in {self.out}")
        print(f"clip-retrieval back --indices_paths {Store(self.out).root}/indices_paths.json")
        return 0
