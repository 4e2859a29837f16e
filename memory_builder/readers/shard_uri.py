"""The names of shards. A shard is a file, or a piece of something larger: ``pictures#folder=cats&items=0-10000``.

The piece stands behind a ``#``: ``items`` (first and behind the last pair of a table or folder), ``bytes`` (of a
listing), ``folder`` (below a folder of pictures), ``embeddings`` (one number of a folder of published vectors),
``vectors`` and ``keys`` (a file of such, and its modality), ``rejects`` (the pairs that an earlier shard rejected).
"""

import re
from dataclasses import dataclass, fields
from urllib.parse import quote, unquote

PAIRS_A_SHARD = 10_000
"""What is larger and has no shards of its own is cut into shards of about this many pairs."""

_ITEM = r"(?:(?:folder|embeddings|vectors)=[^&#]*|(?:items|bytes)=\d+-\d+|rejects=\d+|keys=(?:image|text))"
_PART = re.compile(rf"#({_ITEM}(?:&{_ITEM})*)$")
_WHOLE = "#"
"""Behind a path that itself ends like a piece, and is meant as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What of a path is meant; everything, unless something is given."""

    folder: str | None = None
    """Path below the folder that was named; empty for the folder itself."""
    items: tuple[int, int] | None = None
    bytes: tuple[int, int] | None = None
    embeddings: str | None = None
    """What stands behind ``img_emb_`` in the file's name."""
    vectors: str | None = None
    """A file of vectors, an array or a table, in that folder."""
    modality: str | None = None
    """The modality of such vectors."""
    rejects: int | None = None
    """Ordinal of the shard whose rejects are tried again."""

    @property
    def is_published(self) -> bool:
        """Whether it is of vectors that were embedded elsewhere."""
        return self.embeddings is not None or self.vectors is not None


def join_uri(path: str, piece: Piece) -> str:
    """The name of a piece of what lies at ``path``."""
    named = []
    for field in fields(piece):
        value = getattr(piece, field.name)
        if value is not None:
            text = "-".join(map(str, value)) if isinstance(value, tuple) else quote(str(value))
            name = "keys" if field.name == "modality" else field.name  # names of shards are on disk
            named.append(f"{name}={text}")
    if named:
        return f"{path}#{'&'.join(named)}"
    return f"{path}{_WHOLE}" if _PART.search(path.rstrip(_WHOLE)) else path


def split_uri(uri: str) -> tuple[str, Piece]:
    """The reverse of ``join_uri``."""
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
