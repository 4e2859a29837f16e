"""Where a row came from, as its user named it: the path of its picture, or of the shard that holds it."""

import posixpath

from memory_builder.readers.file_kinds import kind_of
from memory_builder.readers.shard_uri import split_uri


def path_of(uri: str, member: str | None) -> str | None:
    """The path or URI of a row's file; None of a row that only has an address, which is its ``url``.

    Args:
        uri: the row's shard.
        member: the row's, in the metadata.

    A picture in a tar is its path below the tar's; one inside a table has the table's path.
    """
    path, piece = split_uri(uri)
    if member is None or piece.is_published:  # of vectors that were embedded elsewhere nobody knows the files
        return None
    if piece.folder is not None:
        return posixpath.join(path, piece.folder, member)
    if kind_of(path) == "parquet" and member.startswith("row "):
        return path
    if kind_of(path) in ("parquet", "listing"):
        return None if "://" in member else posixpath.normpath(posixpath.join(posixpath.dirname(path), member))
    return f"{path}/{member}"
