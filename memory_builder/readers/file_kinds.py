"""Kind of a file by its name: tar, parquet table, listing or picture."""

import posixpath
from collections.abc import Iterable
from typing import Literal

Kind = Literal["tar", "parquet", "listing", "picture"]
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff", "avif"})
LISTING_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson")
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "tar": (".tar", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz", ".tgz", ".tzst", ".tbz2", ".txz"),
    "parquet": (".parquet",),
    "listing": (
        *LISTING_KINDS,
        *(f"{kind}.{packed}" for kind in LISTING_KINDS for packed in ("gz", "zst", "bz2", "xz")),
    ),
}


def kind_of(name: str) -> Kind | None:
    """Return the kind of a file by its suffix, ignoring case; None for other files."""
    lower = name.lower()
    for kind, suffixes in SUFFIXES.items():
        if lower.endswith(suffixes):
            return kind
    return "picture" if split_file_name(name)[1] in IMAGE_SUFFIXES else None


def split_file_name(name: str) -> tuple[str, str]:
    """Split at the last dot, unlike in a tar: ``a/10.12.PNG`` → (``a/10.12``, ``png``)."""
    stem, suffix = posixpath.splitext(name)
    return stem, suffix[1:].lower()


def describe_passed_over(names: Iterable[str]) -> str:
    """Summarise unused files in a line: ``2 parquet files in data/, metadata.jsonl, 3 hidden files``."""
    names = list(names)
    hidden = [name for name in names if is_hidden(name)]
    shown = [name for name in names if not is_hidden(name)]
    by_kind: dict[str, list[str]] = {}
    for name in shown:
        suffix = split_file_name(name)[1]
        by_kind.setdefault("picture" if kind_of(name) == "picture" else f"{suffix or 'other'} file", []).append(name)
    parts = []
    for kind, group in sorted(by_kind.items()):
        folders = {posixpath.dirname(name) for name in group}
        where = f" in {folders.pop()}/" if len(folders) == 1 and folders != {""} else ""
        parts.append(group[0] if len(group) == 1 else f"{len(group):,} {kind}s{where}")
    if hidden:
        parts.append(f"{len(hidden):,} hidden file{'s' * (len(hidden) > 1)}")
    return ", ".join(parts)


def is_hidden(below: str) -> bool:
    """Whether a path is one that programs leave beside data: .name, __MACOSX, or _name unless it is a picture."""
    *folders, name = below.strip("/").split("/")
    if any(part.startswith(".") or part == "__MACOSX" for part in (*folders, name)):
        return True
    return kind_of(name) != "picture" and any(part.startswith("_") for part in (*folders, name))
