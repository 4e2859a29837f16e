"""What a pair is, and what makes one of the files or the table row that a reader found.

The readers never give up on a shard because of one bad pair: what cannot be used becomes a Reject with its reason.
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
"""The reason of a pair that need not be embedded again; it is counted, and no reject."""
UNCHANGED_NOTE = "pairs are in the memory already and were not embedded again"

CAPTION = "caption"
CAPTION_SPELLINGS = (CAPTION, "text", "txt", "captions", "alt", "alt_text", "title")
"""What fields and columns with captions are called, in capitals or not; the first that is there is taken."""
URL_SPELLINGS = ("url", "image_url", "uri", "img_url")
"""The same of addresses."""

Require = Literal["both", "image", "text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One image and its caption, as they lie in a shard."""

    key: str
    image: bytes | None = None
    """The encoded file; not looked into yet."""
    caption: str | None = None
    member: str | None = None
    """Where the image (or else the caption) is inside its shard."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What the pair's ``.json`` or table row says."""
    is_numbered: bool = False
    """The key is the number of the row in its table: another row may have it once the table has changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A pair that cannot be used."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncated:
    """The shard cannot be read any further; what lies past this point is unknown."""

    reason: str
    offset: int
    """Byte or row of what cannot be read; 0 when nothing can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRules:
    """Which of what is found makes a pair."""

    require: Require = "both"
    caption_key: str = CAPTION
    image_key: str | None = None
    url_key: str | None = None
    only: frozenset[str] | None = None
    """Keys of the pairs that are wanted; None for all."""
    pictures_only: bool = False
    """Take every picture, whatever is wrong with its key or with what is said of it, which is not read."""
    known: Callable[[Any, "PairRules"], bool] | None = None
    """Whether a row (a ``links.Row``) that names its picture is in the memory already: then it is not fetched."""
    notes: Counter[str] = field(default_factory=Counter, compare=False)
    """Remarks about the shard, with the number of pairs each concerns; readers add to it."""
    allow_hosts: tuple[str, ...] = ()
    """See ``LinkPolicy.hosts``."""

    def wants(self, key: str) -> bool:
        """Whether a pair of this key is to be read."""
        return self.only is None or key in self.only


class BadPairError(Exception):
    """Carries the reason of a Reject."""


@dataclass(slots=True)
class Files:
    """The files of one stem: neighbours in a tar, or of one name in a folder. Each picture among them is a pair."""

    key: str
    pictures: list[tuple[str, bytes]] = field(default_factory=list)  # member name, content
    members: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # suffix → the same, of all else
    fault: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """What a table beside the shard says of the pair; its own json comes first."""

    def add(self, suffix: str, name: str, data: bytes) -> None:
        """One more file, as it is called in its shard."""
        if suffix in IMAGE_SUFFIXES:
            self.pictures.append((name, data))
        else:
            self.members[suffix] = (name, data)


def pairs_of_files(files: Files, rules: PairRules) -> list[Pair | Reject]:
    """A Pair or a Reject for each picture of a stem; for a stem without pictures one.

    Where there are several pictures, their keys keep the suffix of the file.
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
    """Raises BadPairError when a required side is missing."""
    if not has_image and not has_text:
        raise BadPairError("neither image nor caption")
    if not has_image and rules.require != "text":
        raise BadPairError("no image")
    if not has_text and rules.require != "image":
        raise BadPairError("no caption")


def caption_of(files: Mapping[str, bytes], fields: Mapping[str, Any], rules: PairRules) -> str | None:
    """The caption: the file or field that ``caption_key`` names; where that is ``caption``, a ``.txt`` comes first.

    Of a list of captions it is the first that says something; the field keeps them all.
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
    """The field with a value that is called like the earliest of these."""
    names = {name.lower(): name for name, value in fields.items() if value is not None}
    return next((names[spelling] for spelling in spellings if spelling in names), None)


def _with_url(fields: dict[str, Any], rules: PairRules) -> dict[str, Any]:
    """The fields, with the address called ``url``."""
    return call_url(fields, rules.url_key or ("url" if fields.get("url") else _spelled(URL_SPELLINGS, fields)))


def call_url(fields: dict[str, Any], name: str | None) -> dict[str, Any]:
    """The fields, the one of this name called ``url``; another one called so is ``url.1`` then."""
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
    """A text that its table holds as bytes, as TensorFlow's tools write it."""
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
    """Without the lone surrogates that json and tar names may carry and no later file could hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
