"""``memory-builder search``: search a memory with texts, pictures or vectors."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.ann.fastscan import ServeFormat
from memory_builder.base.types import Modality
from memory_builder.commands.console import print_table
from memory_builder.commands.options import ModelOptions
from memory_builder.errors import UsageError
from memory_builder.storage.formats import read_npy


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search a memory for the rows nearest to texts, pictures or vectors."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    text: tuple[str, ...] = ()
    """Query texts."""
    image: tuple[str, ...] = ()
    """Query pictures, as files."""
    vector: Path | None = None
    """Query vectors, as a .npy file, [q, d] or [d]."""
    modality: Annotated[Modality, arg(name="modality", aliases=["--keys"])] = "image"
    """Modality of the rows' vectors to search."""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    """Rows to retrieve for each query."""
    columns: tuple[str, ...] = ()
    """Metadata columns to show for each row."""
    where: str | None = None
    """Filter over metadata columns, such as "width >= 256 AND caption LIKE '%cat%'"."""
    nprobe: int | None = None
    """Inverted lists to scan (default: tuned for the target recall)."""
    refine: int | None = None
    """Candidates to re-rank for each retrieved row (default: tuned for the target recall)."""
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    serve_format: ServeFormat = "plain"
    """fastscan: hold codes of 4-bit PQ or RaBitQ in RAM in the layout that SIMD scans."""
    address: str | None = None
    """Ray cluster whose actors hold the index parts: auto, HOST:PORT, or local for one on this machine."""
    json: bool = False
    """Print one JSON object for each query."""

    def run(self) -> int:
        from memory_builder.memory import Memory
        from memory_builder.search.hits import COLUMNS

        memory = Memory.open(
            self.memory, encoder=self.model.encoder(), serve_format=self.serve_format, address=self.address
        )
        hits = memory.search(
            text=self.text or None,
            image=self.image or None,
            vectors=_read_vectors(self.vector) if self.vector else None,
            k=self.k,
            modality=self.modality,
            where=self.where,
            nprobe=self.nprobe,
            refine=self.refine,
        )
        names = self.text or self.image or tuple(f"vector {i}" for i in range(len(hits)))
        shown = ("score", "id", "key", "caption")
        for i, rows in enumerate(hits.to_list([*COLUMNS, *self.columns])):
            lines = [
                {name: row[name] for name in (*shown, "url", "path", *self.columns)} | {"score": round(row["score"], 6)}
                for row in rows
            ]
            if self.json:
                print(json.dumps({"query": i, "hits": lines}, ensure_ascii=False, default=str))
            else:
                table = [line | {"from": line["path"] or line["url"] or ""} for line in lines]
                print_table(names[i], (*shown, *self.columns, "from"), table)
        return 0


def _read_vectors(path: Path) -> Any:
    try:
        return read_npy(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--vector {path} is not a .npy file of numbers: {error}") from None
