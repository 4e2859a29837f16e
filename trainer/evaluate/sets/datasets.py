"""Evaluation sets on disk: opening a split, and streaming its pictures.

Two layouts are supported: CLIP_benchmark's webdataset folders (``tar_sets``), and a folder of pictures for each class
(``picture_folders``). Missing or contradictory descriptions are refused when a set is opened.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memory_builder.errors import SourceError
from memory_builder.storage.store import sha256
from trainer.evaluate.sets import picture_folders, tar_sets
from trainer.evaluate.sets.examples import KINDS, Example, Kind
from trainer.evaluate.sets.texts import read_text

DEFAULT_TEMPLATE = "a photo of a {c}."
CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
TIERS = "tiers.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One split of an evaluation set. Use ``open_dataset``."""

    root: Path
    split: str
    kind: Kind
    layout: Literal["tars", "folders"]
    files: tuple[Path, ...]
    """The tars, or the class folders in order of the labels."""
    classes: tuple[str, ...] = ()
    """Class names in order of the labels; none for retrieval."""
    templates: tuple[str, ...] = ()
    """Prompt templates with ``{c}`` for the class name; none for retrieval."""
    tiers: tuple[str, ...] = ()
    """A tier for each class, or no tiers."""

    def examples(self, only: frozenset[str] | None = None) -> Iterator[Example]:
        """Read the pictures in order, or those of the given keys.

        Raises:
            SourceError: a file is damaged, or a picture has no valid label.
        """
        read = tar_sets.read if self.layout == "tars" else picture_folders.read
        for example in read(self.files, self.kind, len(self.classes)):
            if only is None or example.key in only:
                yield example

    @property
    def labelled_by(self) -> tuple[str, ...]:
        """The meaning of each label: the class name, or the class folder, whose name classnames.txt may replace."""
        return self.classes if self.layout == "tars" else tuple(folder.name for folder in self.files)

    def digest(self) -> str:
        """SHA-256 (hex) of class names, templates, and sizes and times of all files. No picture is read."""
        files = [path for file in self.files for path in _below(file)]
        stats = [(str(path.relative_to(self.root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return sha256(repr((self.kind, self.split, self.classes, self.templates, stats)).encode())


def open_dataset(root: str | Path, split: str = "test") -> Dataset:
    """Open one split of an evaluation set.

    Args:
        root: folder of the set.
        split: folder of the split below it. A set of class folders without splits is its own ``test``.

    Raises:
        SourceError: the folder, the split, or a file that defines the labels is missing or invalid.
    """
    root = Path(root)
    if not root.is_dir():
        raise SourceError(f"{root} is no folder: name the folder of a set, which holds its splits")
    folder = root / split
    if tar_sets.is_one(folder):
        kind = _kind(root)
        if kind == "retrieval":
            return Dataset(root=root, split=split, kind=kind, layout="tars", files=tar_sets.shards(folder))
        classes = _required_lines(root / CLASSNAMES, "one class name a line, in order of the labels")
        return Dataset(
            root=root,
            split=split,
            kind=kind,
            layout="tars",
            files=tar_sets.shards(folder),
            classes=classes,
            templates=_templates(_required_lines(root / TEMPLATES, "one prompt a line, such as 'a photo of a {c}.'")),
            tiers=_tiers(root, len(classes)),
        )
    return _of_folders(root, split)


def _of_folders(root: Path, split: str) -> Dataset:
    folders = picture_folders.class_folders(root / split)
    if not folders and split == "test":
        folders = picture_folders.unsplit_class_folders(root)
    if not folders:
        splits = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise SourceError(
            f"{root} has no split {split!r}: expected {split}/nshards.txt with numbered tars, or {split}/CLASS/ "
            f"folders of pictures; its folders: {', '.join(splits) or 'none'}. Name another with --split"
        )
    classes = tuple(folder.name for folder in folders)
    if (root / CLASSNAMES).exists():
        classes = _lines(root / CLASSNAMES)
        if len(classes) != len(folders):
            raise SourceError(
                f"{root / CLASSNAMES} names {len(classes)} classes, {folders[0].parent} has {len(folders)} folders: "
                "one name a folder, in order of the folders' names"
            )
    templates = _templates(_lines(root / TEMPLATES)) if (root / TEMPLATES).exists() else (DEFAULT_TEMPLATE,)
    return Dataset(
        root=root,
        split=split,
        kind="classification",
        layout="folders",
        files=folders,
        classes=classes,
        templates=templates,
        tiers=_tiers(root, len(classes)),
    )


def _kind(root: Path) -> Kind:
    path = root / "dataset_type.txt"
    named = read_text(path).strip().lower() if path.exists() else "classification"
    for kind in KINDS:
        if named == kind:
            return kind
    raise SourceError(f"{path} says {named!r}: expected {', '.join(KINDS)}")


def _templates(lines: tuple[str, ...]) -> tuple[str, ...]:
    for line in lines:
        around = line.replace("{c}", "")
        if "{" in around or "}" in around:  # CLIP_benchmark fills them by str.format
            raise SourceError(f"{TEMPLATES}: prompt {line!r} cannot be filled: {{c}} is the only placeholder")
        if around == line:
            raise SourceError(f"{TEMPLATES}: prompt {line!r} has no {{c}} for the class name: add it")
    return lines


def _tiers(root: Path, n_classes: int) -> tuple[str, ...]:
    if not (root / TIERS).exists():
        return ()
    tiers = _lines(root / TIERS)
    if len(tiers) != n_classes:
        raise SourceError(f"{root / TIERS} has {len(tiers)} lines for {n_classes} classes: one tier a class, in order")
    return tiers


def _required_lines(path: Path, holds: str) -> tuple[str, ...]:
    if not path.exists():
        raise SourceError(f"{path} is missing: write {holds}")
    return _lines(path)


def _lines(path: Path) -> tuple[str, ...]:
    """The stripped lines of a file. A blank line would shift all labels after it, so it is refused."""
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    if not lines or not lines[0]:
        raise SourceError(f"{path} is empty: write a line for each class")
    if "" in lines:
        raise SourceError(f"{path}, line {lines.index('') + 1} is blank: every line belongs to one label")
    return tuple(lines)


def _below(file: Path) -> list[Path]:
    return sorted(path for path in file.rglob("*") if path.is_file()) if file.is_dir() else [file]
