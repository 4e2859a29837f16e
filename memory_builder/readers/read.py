"""Shards → pairs: tars, parquet files, listings and folders of pictures, each read as a stream.

``read_pairs`` never gives up on a shard because of one bad pair: that is yielded as a Reject with its reason, and where
a shard breaks off a Truncated says so.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator

from memory_builder.errors import SourceError, TransportFailedError
from memory_builder.readers import folder, listing, parquet, webdataset
from memory_builder.readers.columns import Row
from memory_builder.readers.fetch import Missing, PictureRef, read_pictures
from memory_builder.readers.file_kinds import kind_of
from memory_builder.readers.link_policy import LinkPolicy
from memory_builder.readers.pairs import CAPTION, UNCHANGED, Pair, PairRules, Reject, Require, Truncated
from memory_builder.readers.shard_uri import split_uri
from memory_builder.readers.transport import TransportError
from memory_builder.readers.webdataset import MembersApartError

DUPLICATE_KEY = "duplicate key"

__all__ = [
    "CAPTION",
    "UNCHANGED",
    "MembersApartError",
    "Pair",
    "PairRules",
    "Reject",
    "Require",
    "Truncated",
    "read_member",
    "read_pairs",
]


def read_pairs(
    uri: str,
    *,
    require: Require = "both",
    caption_key: str = CAPTION,
    image_key: str | None = None,
    url_key: str | None = None,
    only: frozenset[str] | None = None,
    pictures_only: bool = False,
    known: Callable[[Row, PairRules], bool] | None = None,
    gather: bool = False,
    notes: Counter[str] | None = None,
    allow_hosts: tuple[str, ...] = (),
) -> Generator[Pair | Reject | Truncated, None, None]:
    """Stream a shard: one Pair or Reject for each pair; keys are distinct but for rejects; at most one Truncated, last.

    Args:
        uri: a tar, parquet file, listing or folder, or a piece of one (``memory_builder.uris``).
        require: the sides a pair must have.
        caption_key, image_key, url_key: see ``EmbedConfig``.
        only: the keys of the pairs that are wanted, each once; None for all.
        pictures_only: see ``PairRules``; then keys may come again.
        known: see ``PairRules``; such a pair is a Reject whose reason is ``UNCHANGED``.
        gather: put together what lies apart in a tar, on disk.
        notes: where remarks about the shard are counted.
        allow_hosts: see ``LinkPolicy.hosts``.

    Raises:
        MembersApartError: the files of a pair are apart in a tar, and are not gathered.
        TransportFailedError: the storage fails.
        SourceError: the shard cannot be opened, or is not what its name says.
    """
    rules = PairRules(
        require=require,
        caption_key=caption_key,
        image_key=image_key,
        url_key=url_key,
        only=only,
        pictures_only=pictures_only,
        allow_hosts=allow_hosts,
        known=known,
        notes=Counter() if notes is None else notes,
    )
    seen: set[str] = set()
    try:
        for item in _read(uri, rules, gather=gather):
            if isinstance(item, Truncated):
                yield item
                return
            is_again = item.key in seen and not pictures_only
            seen.add(item.key)
            if only is None:
                yield Reject(key=item.key, reason=DUPLICATE_KEY) if is_again else item
            elif item.key in only and not is_again:
                yield item
    except FileNotFoundError:
        raise SourceError(f"shard {uri} is gone since it was planned: put it back, or embed without it") from None
    except TransportError as error:
        raise TransportFailedError(f"reading shard {uri} failed: {error}") from error
    except OSError as error:
        raise SourceError(f"reading shard {uri} failed: {error}") from error


def _read(uri: str, rules: PairRules, *, gather: bool) -> Iterator[Pair | Reject | Truncated]:
    path, piece = split_uri(uri)
    if piece.folder is not None:
        return folder.read(path, piece, rules)
    kind = kind_of(path)
    if kind == "parquet":
        return parquet.read(path, piece, rules)
    if kind == "listing":
        return listing.read(path, piece, rules)
    return webdataset.read(path, rules, gather=gather)


def read_member(uri: str, member: str, policy: LinkPolicy, image_key: str | None = None) -> bytes:
    """A pair's picture as its shard holds it, by the ``member`` of its metadata.

    Args:
        uri, member: the shard, and where in it.
        policy: what may be read for it.
        image_key: ``Memory.image_key``.

    Raises:
        SourceError: the shard or the member is gone, may not be read, or what is needed to fetch it is not installed.
    """
    ((_, picture),) = read_pictures(uri, [PictureRef(member)], policy, image_key)
    if isinstance(picture, Missing):
        raise SourceError(f"{member} of {uri} cannot be had any more: {picture.reason}")
    return picture
