"""Arguments as callers give them: one or several, a modality under either name, numbers within a range."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from memory_builder.base.types import MODALITIES, Modality
from memory_builder.errors import UsageError

Name = TypeVar("Name", bound=str)


def several(names: Name | Iterable[Name]) -> tuple[Name, ...]:
    """Return one name or several as a tuple; a string is one name."""
    return (names,) if isinstance(names, str) else tuple(names)


def one_modality(modality: Modality | None, keys: Modality | None) -> Modality:
    """Return the modality given under either name (``keys`` is the former one); image by default.

    Raises:
        UsageError: the modality is neither image nor text, or the two arguments differ.
    """
    if modality is not None and keys is not None and modality != keys:
        raise UsageError(f"modality={modality!r} and keys={keys!r}: keys is the former name of modality, give one")
    chosen = modality or keys or "image"
    if chosen not in MODALITIES:
        raise UsageError(f"modality {chosen!r}: expected image or text")
    return chosen


def check(config: Any, wanted: str, fits: Callable[[Any], bool], *names: str) -> None:
    """Refuse values out of range; None passes. ``fits`` is false for NaN.

    Raises:
        UsageError: names the flag, its value, and the range.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not fits(value):
            raise UsageError(f"--{name.replace('_', '-')} {value}: {wanted}")


def shortened(names: Sequence[object]) -> str:
    """Join the first five names and count the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(str, names[:5])) + more
