"""``Class``: a class with its name, synonyms and example pictures; read from files."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory_builder.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Class:
    """A class, identified by its position in the list: names may repeat (ImageNet has two "missile")."""

    label: int
    name: str
    synonyms: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    """Example pictures: files (relative to the class file) or fsspec URLs."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name, followed by its synonyms."""
        return (self.name, *self.synonyms)


def read_classes(path: Path) -> list[Class]:
    """Read classes from a file: a name a line (``classnames.txt`` of CLIP_benchmark), or JSON.

    A JSON list holds for each class its name, a list of a name and its synonyms, or an object
    ``{"name": …, "synonyms": […], "images": […]}``; a JSON object maps names to synonyms.

    Raises:
        UsageError: the file cannot be read, is empty, or a class has no name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {path} cannot be read: {error}") from None
    given = _from_json(path, text) if path.suffix == ".json" else text.rstrip("\n").split("\n")
    classes = [_class(path, label, entry) for label, entry in enumerate(given)] if text.strip() else []
    if not classes:
        raise UsageError(f"--classes {path} names no class: expected a name a line, or a JSON list of names")
    return classes


def read_captions(path: Path) -> list[Class]:
    """Read texts, one a line, each a class of its own; blank lines are skipped.

    Raises:
        UsageError: the file cannot be read or is empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--captions {path} cannot be read: {error}") from None
    if not lines:
        raise UsageError(f"--captions {path} is empty: expected a text a line")
    return [Class(label=label, name=line) for label, line in enumerate(lines)]


def _from_json(path: Path, text: str) -> Iterable[Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--classes {path} is not valid JSON: {error}") from None
    if isinstance(given, dict):
        return [[name, *([more] if isinstance(more, str) else more or [])] for name, more in given.items()]
    if not isinstance(given, list):
        raise UsageError(f"--classes {path}: expected a JSON list of names, or an object of names and their synonyms")
    return given


def _class(path: Path, label: int, entry: Any) -> Class:
    fields = entry if isinstance(entry, dict) else {}
    names = entry if isinstance(entry, list) else [fields.get("name", "") if fields else entry]
    names = [*names, *fields.get("synonyms", ())]
    images = fields.get("images", ())
    unknown = set(fields) - {"name", "synonyms", "images"}
    is_text = all(isinstance(text, str) and text.strip() for text in (*names, *images))
    if not names or not is_text or unknown or not isinstance(images, list | tuple):
        raise UsageError(
            f"--classes {path}: class {label} is {json.dumps(entry)[:80]}: expected a name, a list of a name and its "
            'synonyms, or {"name": …, "synonyms": […], "images": […]}'
        )
    first, *others = (" ".join(name.split()) for name in names)
    synonyms = tuple(dict.fromkeys(name for name in others if name != first))
    beside = (str(path.parent / image) if "://" not in image else image for image in images)
    return Class(label=label, name=first, synonyms=synonyms, images=tuple(beside))
