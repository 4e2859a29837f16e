"""A folder of pictures for each class, labels in order of the folders' names: torchvision's ImageFolder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from memory_builder.errors import SourceError
from memory_builder.shards.pairs import IMAGE_SUFFIXES
from trainer.evaluate.examples import Example, Kind


def class_folders(folder: Path) -> tuple[Path, ...]:
    """The folders directly below that hold pictures, in order; none if this is no such folder.

    Raises:
        SourceError: a class among others has no picture; left out, it would shift the labels.
    """
    if not folder.is_dir():
        return ()
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    filled = [path for path in below if _pictures(path)]
    if filled and len(filled) != len(below):
        empty = next(path for path in below if path not in filled)
        raise SourceError(f"{empty} holds no picture: put some there or remove the class")
    return tuple(filled)


def read(folders: Sequence[Path], kind: Kind, n_classes: int) -> Iterator[Example]:
    """The pictures, class by class; the key is the path from the class folder on."""
    if kind != "classification" or len(folders) != n_classes:
        raise SourceError(f"{folders[0].parent}: {len(folders)} folders cannot be a {kind} set of {n_classes} classes")
    for label, folder in enumerate(folders):
        for path in _pictures(folder):
            yield Example(key=str(path.relative_to(folder.parent)), image=path.read_bytes(), labels=(label,))


def _pictures(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES)
