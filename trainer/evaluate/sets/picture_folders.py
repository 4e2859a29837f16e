"""Class folders of pictures, labels in order of the folder names, as torchvision's ImageFolder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from memory_builder.errors import SourceError
from memory_builder.readers.file_kinds import IMAGE_SUFFIXES
from memory_builder.readers.splits import is_named_as_split
from trainer.evaluate.sets.examples import Example, Kind


def class_folders(folder: Path) -> tuple[Path, ...]:
    """The class folders of a split in order, or none if it has no such layout.

    Raises:
        SourceError: a class folder has no picture (left out, it would shift the labels), or pictures lie outside of
            class folders.
    """
    if not folder.is_dir():
        return ()
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    filled = [path for path in below if _pictures(path)]
    if filled and len(filled) != len(below):
        empty = next(path for path in below if path not in filled)
        raise SourceError(f"{empty} holds no picture: add some or remove the class")
    if not filled and _holds_pictures(folder):
        raise SourceError(
            f"{folder} holds pictures outside of class folders: move them into a folder for each class, or name "
            "another split with --split"
        )
    return tuple(filled)


def unsplit_class_folders(root: Path) -> tuple[Path, ...]:
    """The class folders of a set without splits, or none if the folders may be splits."""
    if any(path.is_dir() and is_named_as_split(path.name) for path in root.iterdir()):
        return ()
    folders = class_folders(root)
    return folders if all(_holds_pictures(path) for path in folders) else ()


def read(folders: Sequence[Path], kind: Kind, n_classes: int) -> Iterator[Example]:
    """Read the pictures class by class; the key is the path from the class folder on."""
    if kind != "classification" or len(folders) != n_classes:
        raise SourceError(f"{folders[0].parent}: {len(folders)} folders cannot be a {kind} set of {n_classes} classes")
    for label, folder in enumerate(folders):
        for path in _pictures(folder):
            yield Example(key=str(path.relative_to(folder.parent)), image=path.read_bytes(), labels=(label,))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_picture(path))


def _holds_pictures(folder: Path) -> bool:
    """Whether pictures lie directly in the folder."""
    return any(_is_picture(path) for path in folder.iterdir())


def _is_picture(path: Path) -> bool:
    is_file = path.is_file() and not path.name.startswith(".")
    return is_file and path.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES
