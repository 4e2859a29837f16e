"""One picture of an evaluation set with what is true of it."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "multilabel", "retrieval"]
KINDS: tuple[Kind, ...] = ("classification", "multilabel", "retrieval")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A picture, and its label, labels or captions."""

    key: str
    """Distinct within its split."""
    image: bytes
    """The encoded file."""
    labels: tuple[int, ...] = ()
    """One for classification, any number for multilabel."""
    captions: tuple[str, ...] = ()
    """At least one for retrieval."""
