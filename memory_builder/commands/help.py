"""Help texts: the list of subcommands, written without importing any, and readable flags of each."""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Build a memory": ("embed", "import", "index", "append", "delete", "compact"),
    "Search it": ("search", "serve", "info"),
    "Customise a model with it": ("retrieve", "train", "evaluate", "report"),
    "Look after it": ("verify", "merge", "export", "submit", "demo"),
}
SUMMARIES: Mapping[str, str] = {
    "embed": "Embed image-text pairs into a memory.",
    "import": "Import embeddings, and optionally their index, published elsewhere.",
    "index": "Train, fill and tune the indexes of a memory.",
    "append": "Add newly embedded shards to the indexes, without training them anew.",
    "delete": "Delete rows from search.",
    "compact": "Rewrite index parts without deleted rows, and merge small parts.",
    "search": "Search a memory with texts, pictures or vectors.",
    "serve": "Serve a memory over HTTP, with a page to search with.",
    "info": "Show the state of a memory, also while it is built.",
    "retrieve": "Retrieve the pairs most relevant to class names, as a training subset.",
    "train": "Train gated blocks on a subset (REACT), or a fusion on a memory (RECO).",
    "evaluate": "Evaluate a model on image sets, with intervals over classes.",
    "report": "Write the results of runs as one HTML page.",
    "verify": "Check the files of a memory against their records, and repair them.",
    "merge": "Merge the parts of an index into one on-disk faiss index.",
    "export": "Write a memory in the format of another program.",
    "submit": "Run a command as a job on a Ray cluster.",
    "demo": "Build and search a memory of 2,385 bundled icons.",
}
EXAMPLES: Mapping[str, str] = {
    "embed": "embed 'shards/{00000..00099}.tar' --memory memory --model ViT-B-32 --pretrained laion2b_s34b_b79k",
    "import": "import laion400m --memory memory --model ViT-B-32 --pretrained laion400m_e32",
    "index": "index memory --max-memory 16G --target-recall 0.95",
    "append": "append memory",
    "delete": "delete memory --where \"caption LIKE '%gun%'\"",
    "compact": "compact memory --purge",
    "search": 'search memory --text "a red panda in the snow" -k 10',
    "serve": "serve memory --port 8000",
    "info": "info memory",
    "retrieve": "retrieve memory --classes classnames.txt --templates imagenet --out subset",
    "train": "train react subset --out run --model ViT-B-32 --pretrained laion2b_s34b_b79k",
    "evaluate": "evaluate zero-shot --run run --dataset cub",
    "report": "report run --out report.html",
    "verify": "verify memory --repair",
    "merge": "merge memory --modality image",
    "export": "export memory rows --as parquet",
    "submit": "submit --address http://HEAD:8265 -- index s3://bucket/memory",
    "demo": "demo",
}
METAVARS: Mapping[Any, str] = {str: "TEXT", int: "N", float: "NUMBER", Path: "FILE"}


def overview() -> str:
    """Return the help of ``memory-builder`` itself."""
    purpose = "Build a searchable memory of image-text pairs, search it, and customise a frozen CLIP with it."
    lines = ["usage: memory-builder COMMAND …", "", purpose, ""]
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:<10}{SUMMARIES[name]}" for name in names), ""]
    lines += [
        "  memory-builder COMMAND --help    flags of a command, with an example",
        "  memory-builder --version         version",
        "  --debug                          show the traceback of an error",
    ]
    return "\n".join(lines)


def with_readable_flags(kind: Any) -> Any:
    """Set plain metavars for the flags of a command's dataclass, and hide empty defaults.

    tyro shows ``{None}|STR`` and ``(default: None)`` otherwise. The annotations of the class are extended in place.
    """
    from tyro.conf import arg

    def hint(label: str) -> str:
        return "" if label in ("None", "") else f"(default: {label})"

    for field in fields(kind):
        owner = next(base for base in kind.__mro__ if field.name in get_annotations(base))
        inner, extras = _stripped(owner.__annotations__[field.name])
        for nested in (inner, *get_args(inner)):
            if is_dataclass(_stripped(nested)[0]):
                with_readable_flags(_stripped(nested)[0])
        metavar = _metavar(inner)
        is_set = any(getattr(extra, "metavar", None) for extra in extras)
        if metavar or is_set:
            plain = arg(help_behavior_hint=hint) if is_set else arg(metavar=metavar, help_behavior_hint=hint)
            owner.__annotations__[field.name] = Annotated[owner.__annotations__[field.name], plain]
    return kind


def _stripped(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split an annotation into its type and its metadata."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        return inner, tuple(extras)
    return annotation, ()


def _metavar(inner: Any) -> str | None:
    """Return a word for values of a type; None where tyro's own is plain."""
    if get_origin(inner) in (Union, types.UnionType):
        (inner, *others) = [member for member in get_args(inner) if member is not type(None)]
        if others:
            return None
        if inner is bool or get_origin(inner) is Literal:
            return "{" + ",".join(map(str, get_args(inner) or (True, False))) + "}"
    if get_origin(inner) is tuple:
        word = METAVARS.get(get_args(inner)[0])
        return f"{word} …" if word else None
    return METAVARS.get(inner)
