"""Webdataset tars → pairs, streamed, never unpacked to disk.

The key is the member's path up to the first dot of its file name. Beside a tar of img2dataset lies a table of all that
it tried to fetch: what that says of a pair is joined to it by key, because the table has other rows in another order.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from memory_builder.errors import SourceError
from memory_builder.retry import open_filesystem
from memory_builder.shards.pairs import Break, Files, Pair, PairRules, Reject, pair_of_files, printable
from memory_builder.shards.tables import python_rows
from memory_builder.shards.tars import Cut, Member, open_tar, read_members, split_name

SUFFIXES = (".tar", ".tar.gz", ".tgz")


def table_beside(uri: str) -> str:
    """Where img2dataset's table of a tar would be."""
    return re.sub(r"\.(tar|tar\.gz|tgz)$", "", uri) + ".parquet"


def read(uri: str, rules: PairRules) -> Iterator[Pair | Reject | Break]:
    """One Pair or Reject for every key met, at most one Break, last."""
    described = _read_table(table_beside(uri))
    with open_tar(uri) as file:
        for group in _groups(file, rules):
            if isinstance(group, Break):
                yield group if group.offset else replace(group, reason=f"not a tar ({group.reason})")
                return
            group.fields, fault = described.get(printable(group.key), ({}, None))
            group.fault = group.fault or fault
            yield pair_of_files(group, rules)


def read_member(uri: str, member: str) -> bytes:
    """One member's content; reads the tar's headers up to it."""
    for _, data in read_wanted(uri, {member}):
        return data
    raise FileNotFoundError(member)


def read_wanted(uri: str, members: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of those of these members that are there, in the tar's order, each once, in one pass.

    Of a tar that is not zipped only headers and these members are read.
    """
    left = set(members)
    with open_tar(uri) as file:
        for found in read_members(file, lambda name: printable(name) in left):
            if isinstance(found, Member) and not found.fault:
                name = printable(found.name)
                left.discard(name)
                yield name, found.data
            if not left:
                return


def _read_table(uri: str) -> dict[str, tuple[dict[str, Any], str | None]]:
    """Key → row and its fault; empty where there is no table, or one without keys, which is not img2dataset's."""
    if uri.startswith(("http://", "https://")):  # a web server may answer anything to a name it does not know
        return {}
    fs, path = open_filesystem(uri)
    if not fs.exists(path):
        return {}
    try:
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file, pre_buffer=False)
            if "key" not in table.schema_arrow.names:
                return {}
            rows = python_rows(table.read(use_threads=False))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{uri}, the table beside its tar, cannot be read ({error}): mend it or move it") from error
    return {
        str(row.pop("key", None)): ({name: value for name, value in row.items() if value is not None}, fault)
        for row, fault in rows
    }


def _groups(file: BinaryIO, rules: PairRules) -> Iterator[Files | Break]:
    group: Files | None = None
    wants = None if rules.only is None else lambda name: rules.wants(printable(split_name(name)[0]))
    for member in read_members(file, wants):
        if isinstance(member, Cut):
            # A group that may go on past the break is part of what is unknown.
            if group is not None and member.next_key not in (None, group.key):
                yield group
            yield Break(reason=member.reason, offset=member.offset)
            return
        key, suffix = split_name(member.name)
        if group is None or key != group.key or suffix in group.members:
            if group is not None:
                yield group
            group = Files(key)
        group.fault = group.fault or member.fault
        group.members[suffix] = (member.name, member.data)
    if group is not None:
        yield group
