"""What a pair is, and what makes one of the files or the table row that a reader found.

The readers never give up on a shard because of one bad pair: what cannot be used becomes a Reject with its reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
MAX_CAPTION_BYTES = 1 << 20

CAPTION = "caption"

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
    """Byte or row of what cannot be read; 0 when nothing can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRules:
    """Which of what is found makes a pair."""

    require: Require = "both"
    caption_key: str = CAPTION
    image_key: str | None = None
    only: frozenset[str] | None = None
    """Keys of the pairs that are wanted; None for all."""
    pictures_only: bool = False
    """Take every picture, whatever is wrong with its key or with what is said of it, which is not read."""
    allow_hosts: tuple[str, ...] = ()
    """See ``LinkPolicy.hosts``."""

    def wants(self, key: str) -> bool:
        """Whether a pair of this key is to be read."""
        return self.only is None or key in self.only


class BadPairError(Exception):
    """Carries the reason of a Reject."""


@dataclass(slots=True)
class Files:
    """The files of one pair: neighbours in a tar, or of one name in a folder."""

    key: str
    members: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # suffix → member name, content
    fault: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    """What a table beside the shard says of the pair; its own json comes first."""


def pair_of_files(files: Files, rules: PairRules) -> Pair | Reject:
    """A pair, or why there is none."""
    try:
        if files.fault and not rules.pictures_only:  # a picture with a fault is empty
            raise BadPairError(files.fault)
        image_name, image = _image(files)
        fields = {} if rules.pictures_only else files.fields | _json_fields(files)
        caption = caption_of({suffix: data for suffix, (_, data) in files.members.items()}, fields, rules)
        check_sides(image is not None, caption is not None, rules)
    except BadPairError as bad:
        return Reject(key=printable(files.key), reason=str(bad))
    member = image_name or next(name for name, _ in files.members.values())
    return Pair(key=printable(files.key), image=image, caption=caption, member=printable(member), fields=fields)


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
        text = _first_text(fields.get(name), name)
    text = printable(text).strip()
    if len(text.encode()) > MAX_CAPTION_BYTES:
        raise BadPairError(f"caption larger than {MAX_CAPTION_BYTES >> 20} MiB")
    return text or None


def _first_text(value: Any, name: str) -> str:
    if value is None:
        return ""
    texts = value if isinstance(value, list) else [value]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise BadPairError(f"field {name} is not a text")
    return next((text for text in texts if text and text.strip()), "")


def _image(files: Files) -> tuple[str | None, bytes | None]:
    for suffix, (name, data) in files.members.items():
        if suffix in IMAGE_SUFFIXES:
            if not data:
                raise BadPairError("empty image file")
            return name, data
    return None, None


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
