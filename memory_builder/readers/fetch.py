"""Read the encoded pictures of some rows of a shard, in one pass, for every kind of shard."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from memory_builder.errors import SourceError
from memory_builder.readers import linked_pictures, parquet, webdataset
from memory_builder.readers.file_kinds import kind_of
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.pairs import BadPairError
from memory_builder.readers.shard_uri import Piece, split_uri
from memory_builder.storage.store import sha256

GONE = "shard is gone"
CHANGED = "changed since it was embedded"
NOT_IN_SHARD = "not in its shard any more"
NO_LINK = "no address known"


@dataclass(frozen=True, slots=True)
class PictureRef:
    """Reference to a row's picture: ``member`` and ``url`` of its metadata."""

    member: str | None
    url: str | None = None
    sha256: str | None = None
    """Digest of the embedded picture, if known."""

    @staticmethod
    def of(row: Mapping[str, Any]) -> "PictureRef":
        """Make the reference of a metadata row; the ``member`` of a row without a picture is its caption."""
        return PictureRef(row["member"] if row["has_image"] else None, row["url"], row["sha256"])

    def is_other(self, picture: bytes) -> bool:
        """Whether a file differs from the embedded one. Web servers may re-encode, so links are not compared."""
        if self.sha256 is None or self.member is None or "://" in self.member:
            return False
        return sha256(picture) != self.sha256


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture that is no longer available, with the reason."""

    reason: str


def read_pictures(
    uri: str, refs: Sequence[PictureRef], policy: LinkPolicy, image_key: str | None = None
) -> Iterator[tuple[int, bytes | Missing]]:
    """Yield (index in ``refs``, its picture or Missing) once for each reference, in any order.

    A tar is read once, header by header, and only the wanted members' data; links are fetched ahead.

    Args:
        uri: the shard.
        refs: references to the pictures.
        policy: decides which links are followed; refused ones are Missing.
        image_key: ``Memory.image_key``.

    Raises:
        SourceError: the shard exists and reading it fails.
    """
    left = set(range(len(refs)))
    try:
        for index, picture in _read(uri, refs, policy, image_key):
            left.discard(index)
            is_other = isinstance(picture, bytes) and refs[index].is_other(picture)
            yield index, Missing(CHANGED) if is_other else picture
        reason = NOT_IN_SHARD
    except FileNotFoundError:
        reason = GONE
    except OSError as error:
        raise SourceError(f"reading shard {uri} failed: {error}") from error
    for index in sorted(left):
        yield index, Missing(reason)


def _read(
    uri: str, refs: Sequence[PictureRef], policy: LinkPolicy, image_key: str | None
) -> Iterator[tuple[int, bytes | Missing]]:
    path, piece = split_uri(uri)
    inside = {ref.member: i for i, ref in enumerate(refs) if _is_inside(path, piece, ref)}
    linked = sorted(set(range(len(refs))).difference(inside.values()))
    if linked:
        fetch = partial(_fetch, path=path, piece=piece, refs=refs, policy=policy)
        yield from linked_pictures.read_ahead(fetch, linked)
    if not inside:
        return
    try:
        policy.shard(path)
    except BadPairError as error:
        yield from ((i, Missing(str(error))) for i in inside.values())
        return
    if kind_of(path) == "parquet":
        rows = {number: i for member, i in inside.items() if (number := _row_number(member)) is not None}
        yield from ((rows[number], image) for number, image in parquet.read_rows(path, sorted(rows), image_key))
    else:
        wanted = {str(member): i for member, i in inside.items()}
        yield from ((wanted[name], data) for name, data in webdataset.read_wanted(path, wanted))


def _row_number(member: str | None) -> int | None:
    number = str(member).removeprefix("row ")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 19 else None


def _is_inside(path: str, piece: Piece, ref: PictureRef) -> bool:
    """Whether the shard's own file holds the picture."""
    if ref.member is None or piece.folder is not None or piece.is_published:
        return False
    if kind_of(path) == "parquet":
        return ref.member.startswith("row ")
    return kind_of(path) != "listing"


def _fetch(
    index: int, *, path: str, piece: Piece, refs: Sequence[PictureRef], policy: LinkPolicy
) -> tuple[int, bytes | Missing]:
    ref = refs[index]
    try:
        if piece.folder is not None and ref.member is not None:
            target = policy.member(path, posixpath.join(piece.folder, ref.member))
        else:
            link = ref.member or ref.url
            if link is None:
                return index, Missing(NO_LINK)
            target = policy.link(link, posixpath.join(path, "") if piece.is_published else path)
        return index, linked_pictures.fetch_target(target)
    except BadPairError as error:
        return index, Missing(str(error))
