"""URIs of shards: a file, or a piece of a table or folder, such as ``pictures#folder=cats&items=0-10000``.

The piece follows a ``#``: ``items`` (start and stop among the pairs of a table or folder), ``bytes`` (the same in a
listing), ``folder`` (below a folder of pictures), ``embeddings`` (one number of a folder of published vectors),
``vectors`` and ``keys`` (one file of vectors, and its modality), ``rejects`` (the pairs that an earlier shard
rejected).
"""

import re
from dataclasses import dataclass, fields
from urllib.parse import quote, unquote

PAIRS_A_SHARD = 10_000
"""Approximate number of pairs in a piece of a larger table or folder."""

_ITEM = r"(?:(?:folder|embeddings|vectors)=[^&#]*|(?:items|bytes)=\d+-\d+|rejects=\d+|keys=(?:image|text))"
_PART = re.compile(rf"#({_ITEM}(?:&{_ITEM})*)$")
_WHOLE = "#"
"""Suffix of a path that itself ends like a piece but is a whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The piece of a path that is a shard; without any field, all of it."""

    folder: str | None = None
    """Path below the given folder; empty for the folder itself."""
    items: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None
    embeddings: str | None = None
    """Part of the files' names after ``img_emb_``."""
    vectors: str | None = None
    """File of vectors, an array or a table, in the folder."""
    modality: str | None = None
    """Modality of ``vectors``."""
    rejects: int | None = None
    """Ordinal of the shard whose rejects are retried."""

    @property
    def is_published(self) -> bool:
        """Whether the piece is of published embeddings."""
        return self.embeddings is not None or self.vectors is not None


def join_uri(path: str, piece: Piece) -> str:
    """Join a path and a piece into a shard's URI."""
    items = []
    for field in fields(piece):
        value = getattr(piece, field.name)
        if value is not None:
            text = "-".join(map(str, value)) if isinstance(value, tuple) else quote(str(value))
            name = "keys" if field.name == "modality" else field.name  # URIs of shards are stored on disk
            items.append(f"{name}={text}")
    if items:
        return f"{path}#{'&'.join(items)}"
    return f"{path}{_WHOLE}" if _PART.search(path.rstrip(_WHOLE)) else path


def split_uri(uri: str) -> tuple[str, Piece]:
    """Split a shard's URI into path and piece."""
    match = _PART.search(uri)
    if match is None:
        return uri.removesuffix(_WHOLE) if _PART.search(uri.rstrip(_WHOLE)) else uri, Piece()
    given = dict(item.split("=", 1) for item in match[1].split("&"))
    piece = Piece(
        folder=unquote(given["folder"]) if "folder" in given else None,
        items=_range(given["items"]) if "items" in given else None,
        bytes=_range(given["bytes"]) if "bytes" in given else None,
        embeddings=unquote(given["embeddings"]) if "embeddings" in given else None,
        vectors=unquote(given["vectors"]) if "vectors" in given else None,
        modality=given.get("keys"),
        rejects=int(given["rejects"]) if "rejects" in given else None,
    )
    return uri[: match.start()], piece


def _range(text: str) -> tuple[int, int]:
    start, _, stop = text.partition("-")
    return int(start), int(stop)
