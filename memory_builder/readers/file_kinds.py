"""What a file is by its name: a tar, a parquet table, a listing or a picture."""

from typing import Literal

from memory_builder.readers import listing, parquet, webdataset
from memory_builder.readers.folder import split_file_name
from memory_builder.readers.pairs import IMAGE_SUFFIXES

Kind = Literal["tar", "parquet", "listing", "picture"]
SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "tar": webdataset.SUFFIXES,
    "parquet": parquet.SUFFIXES,
    "listing": listing.SUFFIXES,
}


def kind_of(name: str) -> Kind | None:
    """The kind, in capitals or not; None for a file that is none of these."""
    lower = name.lower()
    for kind, suffixes in SUFFIXES.items():
        if lower.endswith(suffixes):
            return kind
    return "picture" if split_file_name(name)[1] in IMAGE_SUFFIXES else None
