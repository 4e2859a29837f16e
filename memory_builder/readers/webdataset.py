"""Stream pairs from webdataset tars, without unpacking them.

The key is the member's path up to the first dot of its file name. A pair is the adjacent files of one key. If the files
of a key are not adjacent, the shard is gathered by key on disk first, or refused.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, BinaryIO

from memory_builder.errors import SourceError
from memory_builder.readers.file_kinds import IMAGE_SUFFIXES, SUFFIXES
from memory_builder.readers.pairs import Files, Pair, PairRules, Reject, Truncated, pairs_of_files, printable
from memory_builder.readers.sidecar_table import read_table_beside
from memory_builder.readers.tar_stream import Cut, Member, read_members, split_name
from memory_builder.readers.transport import SPOOL_BYTES, open_stream
from memory_builder.storage.filesystem import is_local, open_filesystem

MAX_GATHERED_BYTES = 1 << 30
"""Largest remote tar that is gathered; a local one may have any size."""
GATHERED = "pairs whose files are apart in their tar were put together"


class MembersApartError(SourceError):
    """The files of a pair are not neighbours in their tar."""

    def __init__(self, uri: str, key: str) -> None:
        super().__init__(
            f"{uri}: the files of pair {key} are apart, with other pairs between them. Sort the tar by name: "
            "mkdir sorted && tar -xf SHARD -C sorted && tar --sort=name -cf SHARD -C sorted ."
        )


def table_beside(uri: str) -> str:
    """URI of img2dataset's table of a tar."""
    return next((uri.removesuffix(suffix) for suffix in SUFFIXES["tar"] if uri.endswith(suffix)), uri) + ".parquet"


def read(uri: str, rules: PairRules, *, gather: bool = False) -> Iterator[Pair | Reject | Truncated]:
    """Yield a Pair or Reject for every picture, and for every key without one; last, at most one Truncated.

    Args:
        uri: the tar.
        rules: rules for making pairs.
        gather: first group all files by key, on disk.

    Raises:
        MembersApartError: the files of a pair are not adjacent, and are not gathered.
    """
    table = read_table_beside(table_beside(uri), rules.notes)
    with open_stream(uri) as file:
        for group in _gathered(uri, file, rules) if gather else _neighbours(uri, file, rules):
            if isinstance(group, Truncated):
                table.note(rules.notes, is_whole=False)
                yield group if group.offset else replace(group, reason=f"not a tar ({group.reason})")
                return
            group.fields, fault = table.describe(printable(group.key))
            group.fault = group.fault or fault
            yield from pairs_of_files(group, rules)
    table.note(rules.notes, is_whole=rules.only is None)


def read_member(uri: str, member: str) -> bytes:
    """Read one member, and the tar's headers up to it."""
    for _, data in read_wanted(uri, {member}):
        return data
    raise FileNotFoundError(member)


def read_wanted(uri: str, members: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the existing ones of these members, each once, in the tar's order, in one pass.

    In an uncompressed tar only the headers and these members are read.
    """
    left = set(members)
    with open_stream(uri) as file:
        for member in read_members(file, lambda name: printable(name) in left):
            if isinstance(member, Member) and not member.fault:
                name = printable(member.name)
                left.discard(name)
                yield name, member.data
            if not left:
                return


def _key_and_suffix(name: str) -> tuple[str, str]:
    """Split a member's name as ``split_name`` does, without the ``./`` of tars packed with ``tar -C folder .``."""
    key, suffix = split_name(name)
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key, suffix


def _wants(rules: PairRules) -> Callable[[str], bool] | None:
    """Return a test whether a member belongs to a wanted pair; None if all pairs are wanted."""
    if rules.only is None:
        return None
    stems = {key.removeprefix("./") for key in rules.only} | {_key_and_suffix(key)[0] for key in rules.only}
    return lambda name: printable(_key_and_suffix(name)[0]) in stems


def _neighbours(uri: str, file: BinaryIO, rules: PairRules) -> Iterator[Files | Truncated]:
    """Group the adjacent files of each key; raise if a key comes again with other files."""
    group: Files | None = None
    suffixes: set[str] = set()
    met: dict[str, set[str]] = {}
    for member in read_members(file, _wants(rules)):
        key, suffix = ("", "") if isinstance(member, Cut) else _key_and_suffix(member.name)
        if isinstance(member, Cut):
            # A group that may continue after the damage is incomplete.
            if group is not None and member.next_key not in (None, group.key):
                yield group
            yield Truncated(reason=member.reason, offset=member.offset)
            return
        if group is None or key != group.key or _is_again(group, suffix, suffixes, member.name):
            if group is not None:
                yield group
            group, suffixes = Files(key), set()
            earlier = met.setdefault(key, suffixes)
        if earlier is not suffixes and suffix not in earlier and _makes_pair(key, suffix, rules):
            raise MembersApartError(uri, printable(key))
        suffixes.add(suffix)
        group.fault = group.fault or member.fault
        group.add(suffix, member.name, member.data)
    if group is not None:
        yield group


def _is_again(group: Files, suffix: str, suffixes: set[str], name: str) -> bool:
    """Whether a group already has this file; a.jpg and a.JPG are two pictures."""
    return suffix in suffixes and (suffix not in IMAGE_SUFFIXES or name in dict(group.pictures))


def _makes_pair(key: str, suffix: str, rules: PairRules) -> bool:
    """Whether a pair needs this file; files such as .DS_Store may be anywhere."""
    is_used = suffix in IMAGE_SUFFIXES or suffix in ("txt", "json", rules.caption_key)
    return is_used and not rules.pictures_only and not key.endswith("/") and key != ""


@dataclass(slots=True)
class _Stored:
    """Members of one key in a file on disk: (name, offset, size, fault)."""

    members: list[tuple[str, int, int, str | None]] = field(default_factory=list)
    runs: int = 1
    """Number of adjacent groups of the key."""


def _gathered(uri: str, file: BinaryIO, rules: PairRules) -> Iterator[Files | Truncated]:
    """Group all files by key, on disk."""
    fs, _ = open_filesystem(uri)
    limit = None if is_local(fs) else MAX_GATHERED_BYTES
    keys: dict[str, _Stored] = {}
    last, cut = "", None
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for member in read_members(file, _wants(rules)):
            if isinstance(member, Cut):
                cut = Truncated(reason=member.reason, offset=member.offset)
                break
            key, _ = _key_and_suffix(member.name)
            stored = keys.setdefault(key, _Stored())
            stored.runs += bool(stored.members) and key != last
            stored.members.append((member.name, spool.tell(), len(member.data), member.fault))
            spool.write(member.data)
            last = key
            if limit is not None and spool.tell() > limit:
                raise MembersApartError(uri, printable(key))
        rules.notes[GATHERED] += sum(stored.runs > 1 for stored in keys.values())
        for key, stored in keys.items():
            yield from _files_of(key, stored, spool)
    if cut is not None:
        yield cut


def _files_of(key: str, stored: _Stored, spool: IO[bytes]) -> Iterator[Files]:
    """Read the files of a key; a file that comes twice starts a group of its own, which is a duplicate."""
    groups: list[tuple[Files, set[str]]] = []
    for name, start, size, fault in stored.members:
        suffix = _key_and_suffix(name)[1]
        free = (pair for pair in groups if not _is_again(pair[0], suffix, pair[1], name))
        group, suffixes = next(free, (Files(key), set[str]()))
        if not suffixes:
            groups.append((group, suffixes))
        spool.seek(start)
        suffixes.add(suffix)
        group.fault = group.fault or fault
        group.add(suffix, name, spool.read(size))
    yield from (group for group, _ in groups)
