"""The pictures of some rows of a shard, as it holds them: in one pass, whatever the kind of shard."""

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
NOT_THERE = "not in its shard any more"
NOWHERE = "no address known"


@dataclass(frozen=True, slots=True)
class PictureRef:
    """Where a row's picture is: ``member`` and ``url`` of its metadata."""

    member: str | None
    url: str | None = None
    sha256: str | None = None
    """Of the picture that was embedded, if that is known."""

    @staticmethod
    def of(row: Mapping[str, Any]) -> "PictureRef":
        """Of a row of the metadata; the member of one without a picture is its caption."""
        return PictureRef(row["member"] if row["has_image"] else None, row["url"], row["sha256"])

    def is_other(self, picture: bytes) -> bool:
        """Whether a file of the source is another than the one that was embedded. A web server may pack anew."""
        if self.sha256 is None or self.member is None or "://" in self.member:
            return False
        return sha256(picture) != self.sha256


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture that cannot be had any more."""

    reason: str


def read_pictures(
    uri: str, places: Sequence[PictureRef], policy: LinkPolicy, image_key: str | None = None
) -> Iterator[tuple[int, bytes | Missing]]:
    """(which of ``places``, the picture) for each place once, those that are missing among or after the others.

    A tar is walked once, from header to header, and only the wanted members are read; links are fetched some ahead.

    Args:
        uri: the shard.
        places: of the pictures.
        policy: what may be read for them; what it refuses is missing.
        image_key: ``Memory.image_key``.

    Raises:
        SourceError: the shard is there and reading it fails.
    """
    left = set(range(len(places)))
    try:
        for which, picture in _read(uri, places, policy, image_key):
            left.discard(which)
            is_other = isinstance(picture, bytes) and places[which].is_other(picture)
            yield which, Missing(CHANGED) if is_other else picture
        reason = NOT_THERE
    except FileNotFoundError:
        reason = GONE
    except OSError as error:
        raise SourceError(f"reading shard {uri} failed: {error}") from error
    for which in sorted(left):
        yield which, Missing(reason)


def _read(
    uri: str, places: Sequence[PictureRef], policy: LinkPolicy, image_key: str | None
) -> Iterator[tuple[int, bytes | Missing]]:
    path, piece = split_uri(uri)
    inside = {place.member: i for i, place in enumerate(places) if _is_inside(path, piece, place)}
    linked = sorted(set(range(len(places))).difference(inside.values()))
    if linked:
        fetch = partial(_fetch, path=path, piece=piece, places=places, policy=policy)
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


def _is_inside(path: str, piece: Piece, place: PictureRef) -> bool:
    """Whether the shard's own file holds the picture."""
    if place.member is None or piece.folder is not None or piece.is_published:
        return False
    if kind_of(path) == "parquet":
        return place.member.startswith("row ")
    return kind_of(path) != "listing"


def _fetch(
    which: int, *, path: str, piece: Piece, places: Sequence[PictureRef], policy: LinkPolicy
) -> tuple[int, bytes | Missing]:
    place = places[which]
    try:
        if piece.folder is not None and place.member is not None:
            target = policy.member(path, posixpath.join(piece.folder, place.member))
        else:
            link = place.member or place.url
            if link is None:
                return which, Missing(NOWHERE)
            target = policy.link(link, posixpath.join(path, "") if piece.is_published else path)
        return which, linked_pictures.fetch_target(target)
    except BadPairError as error:
        return which, Missing(str(error))
