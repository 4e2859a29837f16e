"""Webdataset tars → pairs, streamed, never unpacked to disk.

The key is the member's path up to the first dot of its file name. A pair is what stands together under one key. Where
the files of a key lie apart, nothing of the shard is taken as it is read: it is gathered by key first, or refused.
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
"""Of a remote tar; a local one is gathered whatever its size."""
GATHERED = "pairs whose files are apart in their tar were put together"


class MembersApartError(SourceError):
    """The files of a pair are not neighbours in their tar."""

    def __init__(self, uri: str, key: str) -> None:
        super().__init__(
            f"{uri}: the files of pair {key} are apart, other pairs lie between them. Sort the tar by name: "
            "mkdir sorted && tar -xf SHARD -C sorted && tar --sort=name -cf SHARD -C sorted ."
        )


def table_beside(uri: str) -> str:
    """Where img2dataset's table of a tar would be."""
    return next((uri.removesuffix(suffix) for suffix in SUFFIXES["tar"] if uri.endswith(suffix)), uri) + ".parquet"


def read(uri: str, rules: PairRules, *, gather: bool = False) -> Iterator[Pair | Reject | Truncated]:
    """A Pair or Reject for every picture met, and for every key without one; at most one Truncated, last.

    Args:
        uri: the tar.
        rules: what makes a pair.
        gather: put the files of each key together before any pair is made, on disk.

    Raises:
        MembersApartError: the files of a pair are apart, and are not gathered.
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
    """One member's content; reads the tar's headers up to it."""
    for _, data in read_wanted(uri, {member}):
        return data
    raise FileNotFoundError(member)


def read_wanted(uri: str, members: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of those of these members that are there, in the tar's order, each once, in one pass.

    Of a tar that is not compressed only headers and these members are read.
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
    """As ``split_name``; tars packed with ``tar -C folder .`` have ``./`` before every name."""
    key, suffix = split_name(name)
    while key.startswith("./"):
        key = key[2:].lstrip("/")
    return key, suffix


def _wants(rules: PairRules) -> Callable[[str], bool] | None:
    """Whether a member belongs to a pair that is wanted; None where all do."""
    if rules.only is None:
        return None
    stems = {key.removeprefix("./") for key in rules.only} | {_key_and_suffix(key)[0] for key in rules.only}
    return lambda name: printable(_key_and_suffix(name)[0]) in stems


def _neighbours(uri: str, file: BinaryIO, rules: PairRules) -> Iterator[Files | Truncated]:
    """The files of each key as long as they stand together; a key that comes again with other files raises."""
    group: Files | None = None
    suffixes: set[str] = set()
    met: dict[str, set[str]] = {}
    for member in read_members(file, _wants(rules)):
        key, suffix = ("", "") if isinstance(member, Cut) else _key_and_suffix(member.name)
        if isinstance(member, Cut):
            # A group that may go on past the break is part of what is unknown.
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
    """Whether a group has this file already; a.jpg and a.JPG are two pictures."""
    return suffix in suffixes and (suffix not in IMAGE_SUFFIXES or name in dict(group.pictures))


def _makes_pair(key: str, suffix: str, rules: PairRules) -> bool:
    """Whether a pair would lack something without this file; .DS_Store and the like may lie anywhere."""
    is_used = suffix in IMAGE_SUFFIXES or suffix in ("txt", "json", rules.caption_key)
    return is_used and not rules.pictures_only and not key.endswith("/") and key != ""


@dataclass(slots=True)
class _Kept:
    """The members of one key, in a file on disk: name → where, and why it must not be used."""

    members: list[tuple[str, int, int, str | None]] = field(default_factory=list)
    runs: int = 1
    """How many times the key came again."""


def _gathered(uri: str, file: BinaryIO, rules: PairRules) -> Iterator[Files | Truncated]:
    """The files of each key, wherever they stand; of two files of one name and suffix the first."""
    fs, _ = open_filesystem(uri)
    limit = None if is_local(fs) else MAX_GATHERED_BYTES
    keys: dict[str, _Kept] = {}
    last, cut = "", None
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for member in read_members(file, _wants(rules)):
            if isinstance(member, Cut):
                cut = Truncated(reason=member.reason, offset=member.offset)
                break
            key, _ = _key_and_suffix(member.name)
            kept = keys.setdefault(key, _Kept())
            kept.runs += bool(kept.members) and key != last
            kept.members.append((member.name, spool.tell(), len(member.data), member.fault))
            spool.write(member.data)
            last = key
            if limit is not None and spool.tell() > limit:
                raise MembersApartError(uri, printable(key))
        rules.notes[GATHERED] += sum(kept.runs > 1 for kept in keys.values())
        for key, kept in keys.items():
            yield from _files_of(key, kept, spool)
    if cut is not None:
        yield cut


def _files_of(key: str, kept: _Kept, spool: IO[bytes]) -> Iterator[Files]:
    """The files of a key; what comes a second time is of a pair of its own, a duplicate."""
    groups: list[tuple[Files, set[str]]] = []
    for name, start, size, fault in kept.members:
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
