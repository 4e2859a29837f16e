"""Pairs and rejects, and the rules that make them from files or table rows.

One bad pair never fails a shard: it becomes a Reject with its reason.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from memory_builder.readers.file_kinds import IMAGE_SUFFIXES

MAX_CAPTION_BYTES = 1 << 20

UNCHANGED = "in the memory already"
"""Reason of a pair that need not be embedded again; it is counted, but not as a reject."""
UNCHANGED_NOTE = "pairs are in the memory already and were not embedded again"

CAPTION = "caption"
CAPTION_SPELLINGS = (CAPTION, "text", "txt", "captions", "alt", "alt_text", "title")
"""Names of fields and columns with captions, ignoring case; the first that exists is used."""
URL_SPELLINGS = ("url", "image_url", "uri", "img_url")
"""Names of fields and columns with URLs, ignoring case."""

Require = Literal["both", "image", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One image and its caption, as stored in a shard."""

    key: str
    image: bytes | None = None
    """The encoded file, not decoded yet."""
    caption: str | None = None
    member: str | None = None
    """Name of the image (or else of the caption) in its shard."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the pair's ``.json`` or table row."""
    is_numbered: bool = False
    """The key is the row number in a table, so another row may have it after the table changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A pair that cannot be used, with the reason."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncated:
    """Reading a shard stopped here; the content after this point is unknown."""

    reason: str
    offset: int
    """Byte or row where reading stopped; 0 if nothing was read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRules:
    """Rules for making pairs from the files or rows of a shard."""

    require: Require = "both"
    caption_key: str = CAPTION
    image_key: str | None = None
    url_key: str | None = None
    only: frozenset[str] | None = None
    """Keys of the wanted pairs; None for all."""
    pictures_only: bool = False
    """Take every picture, ignoring faults of its key, and do not read captions and fields."""
    known: Callable[[Any, "PairRules"], bool] | None = None
    """Whether a ``columns.Row`` with a link is in the memory already, so that its picture is not fetched."""
    notes: Counter[str] = field(default_factory=Counter, compare=False)
    """Remarks about the shard, with the number of pairs each concerns; readers add to them."""
    allow_hosts: tuple[str, ...] = ()
    """See ``LinkPolicy.hosts``."""

    def wants(self, key: str) -> bool:
        """Whether the pair of this key is wanted."""
        return self.only is None or key in self.only


class BadPairError(Exception):
    """A pair cannot be used; the message is the reason of its Reject."""


@dataclass(slots=True)
class Files:
    """The files of one stem in a tar or folder. Each picture among them is a pair."""

    key: str
    pictures: list[tuple[str, bytes]] = field(default_factory=list)  # member name, content
    members: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # suffix → the same, of all else
    fault: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the pair in the table beside the shard; the pair's own json overrides them."""

    def add(self, suffix: str, name: str, data: bytes) -> None:
        """Add a file with its name in the shard."""
        if suffix in IMAGE_SUFFIXES:
            self.pictures.append((name, data))
        else:
            self.members[suffix] = (name, data)


def pairs_of_files(files: Files, rules: PairRules) -> list[Pair | Reject]:
    """Make a Pair or Reject for each picture of a stem, or one for a stem without pictures.

    If there are several pictures, their keys include the file's suffix.
    """
    if len(files.pictures) < 2:
        return [_pair_of(files, files.key, files.pictures[0] if files.pictures else None, rules)]
    n_stem = len(posixpath.basename(files.key))
    tails = [posixpath.basename(name)[n_stem:] for name, _ in files.pictures]
    return [
        _pair_of(files, files.key + tail, picture, rules) for tail, picture in zip(tails, files.pictures, strict=True)
    ]


def _pair_of(files: Files, key: str, picture: tuple[str, bytes] | None, rules: PairRules) -> Pair | Reject:
    key = printable(key)
    try:
        if files.fault and not rules.pictures_only:  # a picture with a fault is empty
            raise BadPairError(files.fault)
        name, image = picture or (next((name for name, _ in files.members.values()), ""), None)
        if image is not None and not image:
            raise BadPairError("empty image file")
        fields = {} if rules.pictures_only else _with_url(files.fields | _json_fields(files), rules)
        caption = caption_of({suffix: data for suffix, (_, data) in files.members.items()}, fields, rules)
        check_sides(image is not None, caption is not None, rules)
    except BadPairError as bad:
        return Reject(key=key, reason=str(bad))
    return Pair(key=key, image=image, caption=caption, member=printable(name), fields=fields)


def check_sides(has_image: bool, has_text: bool, rules: PairRules) -> None:
    """Raise BadPairError if a required modality is missing."""
    if not has_image and not has_text:
        raise BadPairError("neither image nor caption")
    if not has_image and rules.require != "text":
        raise BadPairError("no image")
    if not has_text and rules.require != "image":
        raise BadPairError("no caption")


def caption_of(files: Mapping[str, bytes], fields: Mapping[str, Any], rules: PairRules) -> str | None:
    """Return the caption from the file or field ``caption_key``; if that is ``caption``, a ``.txt`` comes first.

    Of a list of captions, the first that is not blank is used; the field keeps them all.
    """
    if rules.pictures_only:
        return None
    name = "txt" if rules.caption_key == CAPTION and "txt" in files else rules.caption_key
    if name in files and name != "json":
        try:
            text = files[name].decode("utf-8-sig")
        except UnicodeDecodeError:
            raise BadPairError("caption is not UTF-8") from None
    else:
        if name == CAPTION and fields.get(name) is None:
            name = _spelled(CAPTION_SPELLINGS, fields) or name
        text = _first_text(fields.get(name), name)
    text = printable(text).strip()
    if len(text.encode()) > MAX_CAPTION_BYTES:
        raise BadPairError(f"caption larger than {MAX_CAPTION_BYTES >> 20} MiB")
    return text or None


def _spelled(spellings: Sequence[str], fields: Mapping[str, Any]) -> str | None:
    """Return the name of the field that has a value and matches the earliest spelling."""
    names = {name.lower(): name for name, value in fields.items() if value is not None}
    return next((names[spelling] for spelling in spellings if spelling in names), None)


def _with_url(fields: dict[str, Any], rules: PairRules) -> dict[str, Any]:
    """Rename the field with the URL to ``url``."""
    return rename_url(fields, rules.url_key or ("url" if fields.get("url") else _spelled(URL_SPELLINGS, fields)))


def rename_url(fields: dict[str, Any], name: str | None) -> dict[str, Any]:
    """Rename the field ``name`` to ``url``; another field of that name becomes ``url.1``."""
    value = fields.get(name) if name else None
    if isinstance(value, bytes):  # as TensorFlow's tools write texts
        value = value.decode("utf-8", "replace")
    if name == "url" and value is not None:
        return fields | {"url": value}
    if name in (None, "url") or not isinstance(value, str):
        return fields
    others = {"url.1" if other == "url" else other: value for other, value in fields.items() if other != name}
    return {"url": value} | others


def _first_text(value: Any, name: str) -> str:
    if value is None:
        return ""
    texts = [_decoded(text, name) for text in (value if isinstance(value, list) else [value])]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise BadPairError(f"field {name} is not a text")
    return next((text for text in texts if text and text.strip()), "")


def _decoded(value: Any, name: str) -> Any:
    """Decode a text that its table holds as bytes, as TensorFlow's tools write it."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise BadPairError(f"field {name} is not UTF-8") from None


def _json_fields(files: Files) -> dict[str, Any]:
    if "json" not in files.members:
        return {}
    try:
        fields = json.loads(files.members["json"][1].decode("utf-8-sig"))
    except ValueError:
        raise BadPairError("json cannot be parsed") from None
    except RecursionError:
        raise BadPairError("json nested too deeply") from None
    if not isinstance(fields, dict):
        raise BadPairError("json is not an object")
    return fields


def printable(text: str) -> str:
    """Replace lone surrogates, which json and tar names may hold and UTF-8 files cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
