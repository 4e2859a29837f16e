"""Read shards: webdataset tars → pairs.

The reader streams, never unpacks to disk, and never gives up on a shard because of one bad pair: what cannot be
used is yielded as a Reject with its reason, and where a tar breaks off a Break says so. Naming follows webdataset
(the key is the member's path up to the first dot of its file name) and img2dataset (``.jpg`` + ``.txt`` + ``.json``).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

from memory_builder.errors import SourceError
from memory_builder.tars import Cut, Member, open_tar, read_members, split_name

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})

Require = Literal["both", "image", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One image and its caption, as they lie in a shard."""

    key: str
    image: bytes | None = None
    """The encoded file; not looked into yet."""
    caption: str | None = None
    member: str | None = None
    """Name of the image (or else the caption) inside its shard."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What the pair's ``.json`` holds, caption aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A pair that cannot be used."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """The shard cannot be read any further; what lies past this point is unknown."""

    reason: str
    offset: int
    """Byte of the member that cannot be read; 0 when nothing can."""


def read_pairs(uri: str, *, require: Require = "both", caption_key: str = "caption") -> Iterator[Pair | Reject | Break]:
    """Stream a tar shard; exactly one Pair or Reject for every key met, at most one Break, last.

    Raises:
        SourceError: the shard cannot be opened, or reading it fails for another reason than its content.
    """
    try:
        with open_tar(uri) as file:
            seen: set[str] = set()
            for group in _groups(file):
                if isinstance(group, Break):
                    yield group
                    return
                if group.key in seen:
                    yield Reject(key=_printable(group.key), reason="duplicate key")
                    continue
                seen.add(group.key)
                yield _pair(group, require, caption_key)
    except FileNotFoundError:
        raise SourceError(f"shard {uri} is gone since it was planned: put it back, or embed without it") from None
    except OSError as error:
        raise SourceError(f"reading shard {uri} failed: {error}") from error


@dataclass(slots=True)
class _Group:
    """Neighbouring tar members that share a key."""

    key: str
    members: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # suffix → member name, content
    fault: str | None = None


def _groups(file: BinaryIO) -> Iterator[_Group | Break]:
    group: _Group | None = None
    for member in read_members(file):
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
            group = _Group(key)
        group.fault = group.fault or member.fault
        group.members[suffix] = (member.name, member.data)
    if group is not None:
        yield group


def _pair(group: _Group, require: Require, caption_key: str) -> Pair | Reject:
    try:
        if group.fault:
            raise _BadPairError(group.fault)
        image_name, image = _image(group)
        fields = _fields(group)
        caption = _caption(group, fields, caption_key)
        if image is None and caption is None:
            raise _BadPairError("neither image nor caption")
        if image is None and require != "text":
            raise _BadPairError("no image")
        if caption is None and require != "image":
            raise _BadPairError("no caption")
    except _BadPairError as bad:
        return Reject(key=_printable(group.key), reason=str(bad))
    member = image_name or next(name for name, _ in group.members.values())
    return Pair(key=_printable(group.key), image=image, caption=caption, member=_printable(member), fields=fields)


class _BadPairError(Exception):
    """Carries the reason of a Reject."""


def _image(group: _Group) -> tuple[str | None, bytes | None]:
    for suffix, (name, data) in group.members.items():
        if suffix in IMAGE_SUFFIXES:
            if not data:
                raise _BadPairError("empty image file")
            return name, data
    return None, None


def _fields(group: _Group) -> dict[str, Any]:
    if "json" not in group.members:
        return {}
    try:
        fields = json.loads(group.members["json"][1].decode("utf-8-sig"))
    except ValueError:
        raise _BadPairError("json cannot be parsed") from None
    except RecursionError:
        raise _BadPairError("json nested too deeply") from None
    if not isinstance(fields, dict):
        raise _BadPairError("json is not an object")
    return fields


def _caption(group: _Group, fields: dict[str, Any], caption_key: str) -> str | None:
    if "txt" in group.members:
        try:
            text = group.members["txt"][1].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _BadPairError("caption is not UTF-8") from None
    else:
        value = fields.get(caption_key)
        if value is not None and not isinstance(value, str):
            raise _BadPairError(f"json field {caption_key} is not a text")
        text = value or ""
    return _printable(text).strip() or None


def _printable(text: str) -> str:
    """Without the lone surrogates that json and tar names may carry and no later file could hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_member(uri: str, member: str) -> bytes:
    """One member's content, for showing a picture of the memory again. Reads the shard up to it.

    Raises:
        SourceError: the shard or the member is gone.
    """
    try:
        with open_tar(uri) as file:
            for found in read_members(file):
                if isinstance(found, Member) and _printable(found.name) == member:
                    return found.data
    except FileNotFoundError:
        pass
    raise SourceError(f"{member} is not in {uri} any more")
