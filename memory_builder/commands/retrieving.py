"""The command that makes a training subset: retrieve."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.running import RunnerOptions
from memory_builder.console import print_table
from memory_builder.encoder import EncoderConfig
from memory_builder.errors import UsageError
from memory_builder.retrieve.config import MAX_MISSING, RetrieveConfig

if TYPE_CHECKING:
    from memory_builder.retrieve.summary import Summary


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Find the pairs that a task's classes need and write them as a training subset. Run it again to go on."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    out: str
    """Folder of the subset: a local path or an fsspec URL."""
    classes: Path | None = None
    """Class names: one a line (CLIP_benchmark's classnames.txt), or JSON with synonyms and example pictures."""
    captions: Path | None = None
    """Instead of --classes: texts to look for as they are, one a line; each is a class of its own."""
    templates: str = "{c}"
    """Prompts around the class names: a built-in set of CLIP's (imagenet, caltech101, …), a file, or one prompt."""
    exclude: tuple[str, ...] = ()
    """Evaluation sets whose pictures, and copies of them, stay out: CLIP_benchmark folders (all splits but train), or
    whatever embed reads."""
    config: OmitArgPrefixes[RetrieveConfig] = field(default_factory=RetrieveConfig)
    max_missing: float = MAX_MISSING
    """Share of the chosen pairs whose pictures may be gone; more is a failure."""
    model: str | None = None
    """Where the memory's model is now, if not where it was; weights must be the same."""
    pretrained: str | None = None
    """Pretrained tag or weights file of --model."""
    json: bool = False
    """One JSON object."""
    on: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.retrieve.classes import read_captions, read_classes
        from memory_builder.retrieve.run import Request, retrieve
        from memory_builder.retrieve.templates import read_templates

        if (self.classes is None) == (self.captions is None):
            raise UsageError("give either --classes or --captions")
        classes = read_classes(self.classes) if self.classes else read_captions(self.captions or Path())
        request = Request(
            memory=self.memory,
            out=self.out,
            classes=tuple(classes),
            templates=read_templates(self.templates) if self.classes else ("{c}",),
            exclude=self.exclude,
            config=self.config,
            encoder=EncoderConfig(model=self.model, pretrained=self.pretrained) if self.model else None,
            max_missing=self.max_missing,
        )
        summary = retrieve(request, self.on.start())
        print(json.dumps(summary.line(), ensure_ascii=False)) if self.json else _tell(summary, self.out)
        return 0


def _tell(summary: "Summary", out: str) -> None:
    chosen = summary.chosen
    print(f"{summary.pairs:,} pairs of {summary.classes:,} classes in {out}: {summary.tars} tars, "
          f"{summary.bytes / 1e6:,.1f} MB")  # fmt: skip
    leaks = ", ".join(f"{n:,} by {kind}" for kind, n in summary.evidence.items())
    rows = [
        ("queries", f"{summary.queries:,}", f"{summary.short_queries:,} found fewer rows than asked for"),
        ("hits", f"{chosen.n_hits:,}", f"{chosen.n_below:,} below --min-score"),
        ("rows claimed", f"{chosen.n_rows:,}", ""),
        ("same bytes", f"-{chosen.n_same_bytes:,}", "of another picture"),
        ("near duplicates", f"-{chosen.n_near_duplicates:,}", "of another picture"),
        ("incomplete", f"-{chosen.n_incomplete:,}", "without a picture or a caption"),
        ("chosen", f"{sum(chosen.pieces):,}", "within the caps"),
        ("leaks", f"-{summary.decontaminated:,}", leaks),
        ("missing", f"-{summary.missing:,}", ", ".join(f"{n:,} {r}" for r, n in summary.missing_by_reason.items())),
    ]  # fmt: skip
    columns = ("what", "pairs", "of which")
    print_table("", columns, [dict(zip(columns, row, strict=True)) for row in rows])
    if summary.empty_classes:
        names = ", ".join(str(c["class"]) for c in summary.empty_classes[:10])
        print(f"{len(summary.empty_classes):,} classes without a pair: {names}"
              f"{', …' if len(summary.empty_classes) > 10 else ''}")  # fmt: skip
    print(f"page: {out.rstrip('/')}/subset.html")
