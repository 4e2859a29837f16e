"""Shards → pairs: tars, parquet files, listings and folders of pictures, each read as a stream.

``read_pairs`` never gives up on a shard because of one bad pair: that is yielded as a Reject with its reason, and where
a shard breaks off a Break says so.
"""

from collections.abc import Generator, Iterator

from memory_builder.errors import SourceError
from memory_builder.shards import folder, listing, parquet, webdataset
from memory_builder.shards.pairs import CAPTION, Break, Pair, PairRules, Reject, Require
from memory_builder.shards.pictures import Missing, Place, read_pictures
from memory_builder.shards.policy import LinkPolicy
from memory_builder.uris import split_uri

DUPLICATE_KEY = "duplicate key"

__all__ = ["CAPTION", "Break", "Pair", "PairRules", "Reject", "Require", "read_member", "read_pairs"]


def read_pairs(
    uri: str,
    *,
    require: Require = "both",
    caption_key: str = CAPTION,
    image_key: str | None = None,
    only: frozenset[str] | None = None,
    pictures_only: bool = False,
    allow_hosts: tuple[str, ...] = (),
) -> Generator[Pair | Reject | Break, None, None]:
    """Stream a shard; one Pair or Reject for every pair met, keys distinct but for rejects, at most one Break, last.

    Args:
        uri: a tar, parquet file, listing or folder, or a piece of one (``memory_builder.uris``).
        require: the sides a pair must have.
        caption_key, image_key: see ``EmbedConfig``.
        only: the keys of the pairs that are wanted, each once; None for all.
        pictures_only: see ``PairRules``; then keys may come again.
        allow_hosts: see ``LinkPolicy.hosts``.

    Raises:
        SourceError: the shard cannot be opened, or reading it fails for another reason than its content.
    """
    rules = PairRules(
        require=require,
        caption_key=caption_key,
        image_key=image_key,
        only=only,
        pictures_only=pictures_only,
        allow_hosts=allow_hosts,
    )
    seen: set[str] = set()
    try:
        for item in _read(uri, rules):
            if isinstance(item, Break):
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
    except OSError as error:
        raise SourceError(f"reading shard {uri} failed: {error}") from error


def _read(uri: str, rules: PairRules) -> Iterator[Pair | Reject | Break]:
    path, piece = split_uri(uri)
    if piece.folder is not None:
        return folder.read(path, piece, rules)
    if path.endswith(parquet.SUFFIXES):
        return parquet.read(path, piece, rules)
    if path.endswith(listing.SUFFIXES):
        return listing.read(path, piece, rules)
    return webdataset.read(path, rules)


def read_member(uri: str, member: str, policy: LinkPolicy, image_key: str | None = None) -> bytes:
    """A pair's picture as its shard holds it, by the ``member`` of its metadata.

    Args:
        uri, member: the shard, and where in it.
        policy: what may be read for it.
        image_key: ``Memory.image_key``.

    Raises:
        SourceError: the shard or the member is gone, may not be read, or what is needed to fetch it is not installed.
    """
    ((_, picture),) = read_pictures(uri, [Place(member)], policy, image_key)
    if isinstance(picture, Missing):
        raise SourceError(f"{member} of {uri} cannot be had any more: {picture.reason}")
    return picture
