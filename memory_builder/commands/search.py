"""``memory-builder search``: query a memory with text, pictures or vectors."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.ann.fastscan import ServeFormat
from memory_builder.base.types import Modality
from memory_builder.commands.console import print_table
from memory_builder.commands.options import MovedModel
from memory_builder.errors import UsageError
from memory_builder.storage.formats import read_npy


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the rows nearest to texts, pictures or vectors."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    text: tuple[str, ...] = ()
    """Query texts."""
    image: tuple[str, ...] = ()
    """Query pictures: files."""
    vector: Path | None = None
    """Query vectors: a .npy file, [q, d] or [d]."""
    modality: Annotated[Modality, arg(name="modality", aliases=["--keys"])] = "image"
    """Search among the rows' image or text vectors."""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    """Rows for each query."""
    columns: tuple[str, ...] = ()
    """Metadata columns to show for each row."""
    where: str | None = None
    """Only rows whose metadata fulfil this, such as "width >= 256 AND caption LIKE '%cat%'"."""
    nprobe: int | None = None
    """Inverted lists to scan, instead of the tuned number."""
    refine: int | None = None
    """Candidates to re-rank for each row asked for, instead of the tuned number."""
    model: OmitArgPrefixes[MovedModel] = field(default_factory=MovedModel)
    serve_format: ServeFormat = "plain"
    """fastscan: hold the codes in RAM in the form that SIMD scans; for 4-bit PQ and RaBitQ."""
    address: str | None = None
    """Spread the index's parts over actors of this Ray cluster: auto, HOST:PORT, or local for one on this machine."""
    json: bool = False
    """One JSON object a query."""

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
