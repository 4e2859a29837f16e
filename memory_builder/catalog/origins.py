"""Path of a row's picture, or of the shard that holds it, as the user named its source."""

import posixpath

from memory_builder.readers.file_kinds import kind_of
from memory_builder.readers.shard_uri import split_uri


def path_of(uri: str, member: str | None) -> str | None:
    """Return the path or URI of a row's picture; None for a row that only has a ``url``.

    Args:
        uri: the row's shard.
        member: the row's ``member`` in the metadata.

    A picture in a tar has a path below the tar's; one inside a table has the table's path.
    """
    path, piece = split_uri(uri)
    if member is None or piece.is_published:  # the files of vectors that were embedded elsewhere are unknown
        return None
    if piece.folder is not None:
        return posixpath.join(path, piece.folder, member)
    if kind_of(path) == "parquet" and member.startswith("row "):
        return path
    if kind_of(path) in ("parquet", "listing"):
        return None if "://" in member else posixpath.normpath(posixpath.join(posixpath.dirname(path), member))
    return f"{path}/{member}"
