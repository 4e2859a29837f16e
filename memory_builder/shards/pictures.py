"""The pictures of some rows of a shard, as it holds them: in one pass, whatever the kind of shard."""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from memory_builder.errors import SourceError
from memory_builder.shards import links, parquet, webdataset
from memory_builder.shards.kinds import kind_of
from memory_builder.shards.pairs import BadPairError
from memory_builder.uris import Piece, split_uri

GONE = "shard is gone"
NOT_THERE = "not in its shard any more"
NOWHERE = "no address known"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's picture is: ``member`` and ``url`` of its metadata."""

    member: str | None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Missing:
    """A picture that cannot be had any more."""

    reason: str


def read_pictures(
    uri: str, places: Sequence[Place], image_key: str | None = None
) -> Iterator[tuple[int, bytes | Missing]]:
    """(which of ``places``, the picture) for each place once, those that are missing among or after the others.

    A tar is walked once, from header to header, and only the wanted members are read; links are fetched some ahead.

    Args:
        uri: the shard.
        places: of the pictures.
        image_key: ``Memory.image_key``.

    Raises:
        SourceError: the shard is there and reading it fails.
    """
    left = set(range(len(places)))
    try:
        for which, picture in _read(uri, places, image_key):
            left.discard(which)
            yield which, picture
        reason = NOT_THERE
    except FileNotFoundError:
        reason = GONE
    except OSError as error:
        raise SourceError(f"reading shard {uri} failed: {error}") from error
    for which in sorted(left):
        yield which, Missing(reason)


def _read(uri: str, places: Sequence[Place], image_key: str | None) -> Iterator[tuple[int, bytes | Missing]]:
    path, piece = split_uri(uri)
    inside = {place.member: i for i, place in enumerate(places) if _is_inside(path, piece, place)}
    linked = sorted(set(range(len(places))).difference(inside.values()))
    if linked:
        yield from links.read_ahead(partial(_fetch, path=path, piece=piece, places=places), linked)
    if not inside:
        return
    if kind_of(path) == "parquet":
        rows = {int(str(member).removeprefix("row ")): i for member, i in inside.items()}
        yield from ((rows[number], image) for number, image in parquet.read_rows(path, sorted(rows), image_key))
    else:
        wanted = {str(member): i for member, i in inside.items()}
        yield from ((wanted[name], data) for name, data in webdataset.read_wanted(path, wanted))


def _is_inside(path: str, piece: Piece, place: Place) -> bool:
    """Whether the shard's own file holds the picture."""
    if place.member is None or piece.folder is not None or piece.embeddings is not None:
        return False
    if kind_of(path) == "parquet":
        return place.member.startswith("row ")
    return kind_of(path) != "listing"


def _fetch(which: int, *, path: str, piece: Piece, places: Sequence[Place]) -> tuple[int, bytes | Missing]:
    place = places[which]
    try:
        if piece.folder is not None and place.member is not None:
            return which, links.fetch_link(posixpath.join(path, piece.folder, place.member))
        link = place.member or place.url
        if link is None:
            return which, Missing(NOWHERE)
        return which, links.fetch_link(links.resolve(link, path))
    except BadPairError as error:
        return which, Missing(str(error))
