"""``memory-builder retrieve``: write a training subset."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from memory_builder.commands.console import print_table
from memory_builder.commands.options import LinkOptions, ModelOptions, RunnerOptions
from memory_builder.errors import UsageError
from memory_builder.retrieval.config import MAX_MISSING, RetrieveConfig

if TYPE_CHECKING:
    from memory_builder.retrieval.summary import Summary

NAMES_SHOWN = 10
"""Number of classes without a pair to list."""


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Retrieve the pairs most relevant to class names, as a training subset. Run it again to resume."""

    memory: Annotated[str, Positional, arg(metavar="MEMORY")]
    """Folder of the memory."""
    out: str
    """Folder of the subset: a local path or an fsspec URL."""
    classes: Path | None = None
    """Class names: a text file with one a line (CLIP_benchmark's classnames.txt), or JSON with synonyms and example
    pictures."""
    captions: Path | None = None
    """File of queries to use instead of --classes and --templates, one a line; each is a class of its own."""
    templates: str = "{c}"
    """Prompt templates for the class names: a built-in set of CLIP's (imagenet, caltech101, …), a file, or one
    prompt."""
    exclude: tuple[str, ...] = ()
    """Evaluation sets whose pictures and near duplicates are excluded: folders as for evaluate (all splits but train),
    or any source as for embed."""
    subset: OmitArgPrefixes[RetrieveConfig] = field(default_factory=RetrieveConfig)
    max_missing: float = MAX_MISSING
    """Share of the chosen pairs whose pictures may be missing; more fails the run."""
    model: OmitArgPrefixes[ModelOptions] = field(default_factory=ModelOptions)
    links: OmitArgPrefixes[LinkOptions] = field(default_factory=LinkOptions)
    json: bool = False
    """Print one JSON object."""
    runner: OmitArgPrefixes[RunnerOptions] = field(default_factory=RunnerOptions)

    def run(self) -> int:
        from memory_builder.model.templates import read_templates
        from memory_builder.retrieval.classes import read_captions, read_classes
        from memory_builder.retrieval.driver import Request, write_subset

        if (self.classes is None) == (self.captions is None):
            raise UsageError("give either --classes or --captions")
        classes = read_classes(self.classes) if self.classes else read_captions(self.captions or Path())
        request = Request(
            memory=self.memory,
            out=self.out,
            classes=tuple(classes),
            templates=read_templates(self.templates) if self.classes else ("{c}",),
            exclude=self.exclude,
            config=self.subset,
            encoder=self.model.encoder(),
            max_missing=self.max_missing,
            local_roots=self.links.local_root,
            allow_hosts=self.links.allow_host,
        )
        summary = write_subset(request, self.runner.start())
        if self.json:
            print(json.dumps(summary.line(), ensure_ascii=False))
        else:
            _print_summary(summary, self.out)
        return 0


def _print_summary(summary: "Summary", out: str) -> None:
    print(f"{summary.pairs:,} pairs of {summary.classes:,} classes in {out}")
    columns = ("what", "number", "of which")
    print_table("", columns, [dict(zip(columns, fact, strict=True)) for fact in summary.facts()])
    if summary.empty_classes:
        names = [str(c["class"]) for c in summary.empty_classes[:NAMES_SHOWN]]
        names += ["…"] if len(summary.empty_classes) > NAMES_SHOWN else []
        print(f"{len(summary.empty_classes):,} classes without a pair: {', '.join(names)}")
    print(f"page: {out.rstrip('/')}/subset.html")
