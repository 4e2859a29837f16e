"""One picture of an evaluation set with its ground truth."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "multilabel", "retrieval"]
KINDS: tuple[Kind, ...] = ("classification", "multilabel", "retrieval")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A picture with its label, labels or captions."""

    key: str
    """Unique within the split."""
    image: bytes
    """The encoded picture."""
    labels: tuple[int, ...] = ()
    """One for classification, any number for multilabel."""
    captions: tuple[str, ...] = ()
    """At least one for retrieval."""
