"""Stream the pairs of a shard: a tar, parquet file, listing or folder of pictures.

One bad pair never fails a shard: ``read_pairs`` yields it as a Reject with its reason, and a Truncated where a shard
breaks off.
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
    """Yield a Pair or Reject for each pair of a shard, with distinct keys but for rejects; last, at most one Truncated.

    Args:
        uri: a tar, parquet file, listing or folder, or a piece of one (``readers.shard_uri``).
        require: the modalities that a pair must have.
        caption_key, image_key, url_key: see ``EmbedConfig``.
        only: keys of the wanted pairs, each once; None for all.
        pictures_only: see ``PairRules``; keys may then repeat.
        known: see ``PairRules``; such a pair is a Reject with reason ``UNCHANGED``.
        gather: copy a tar to disk to group files of one key that are not adjacent.
        notes: counts the remarks about the shard.
        allow_hosts: see ``LinkPolicy.hosts``.

    Raises:
        MembersApartError: the files of a pair are not adjacent in a tar, and are not gathered.
        TransportFailedError: the storage fails.
        SourceError: the shard cannot be opened, or its content does not fit its suffix.
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
        raise SourceError(f"shard {uri} is missing since it was planned: restore it, or embed without it") from None
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
    """Read a pair's encoded picture by the ``member`` of its metadata.

    Args:
        uri, member: the shard, and the picture's name in it.
        policy: decides which links are followed.
        image_key: ``Memory.image_key``.

    Raises:
        SourceError: the shard or member is missing, may not be read, or needs a package that is not installed.
    """
    ((_, picture),) = read_pictures(uri, [PictureRef(member)], policy, image_key)
    if isinstance(picture, Missing):
        raise SourceError(f"{member} of {uri} is not available: {picture.reason}")
    return picture
