"""Write the captions: phrases as web pages put beside a picture, from a seeded grammar.

Most name the thing in its set's own spelling, among the set's name, its headings, styles and words that mean nothing; a
stated share names it otherwise, names another thing, or names nothing. Pure functions of their arguments.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHARES = {"name": 0.80, "alias": 0.06, "other": 0.06, "nothing": 0.08}  # what a caption says of the thing
PHRASES = (
    "{name}", "{name}", "{name} icon", "{name} icon", "{name} logo", "{name} symbol", "{name} {style}",
    "{style} {name} icon", "{name} - {set}", "{name} | {set}", "{set}: {name}", "{set} icon {name}",
    "{name} ({heading})", "{heading} icon, {name}", "{heading} / {name}", "{name} vector", "free {name} svg",
    "download {name} icon {style}", "{name}, {noise}", "{noise} {name}", "{name} {noise} {set}",
    "{name} png {noise}", "icon of {name}", "{name} {size}", "{name} for web and apps", "{name} from {set}",
    "picture of {name}, {noise}",
)  # fmt: skip
NAMELESS = (
    "{set} icon", "{heading} icon", "{style} icon {size}", "{noise}", "untitled {number}", "icon {number}",
    "{set} {number}", "image {number}.svg", "{noise} {heading}", "free svg {noise}", "{heading} {style}",
)  # fmt: skip
STYLES = ("flat", "line", "glyph", "minimal", "simple", "outline", "filled", "modern")
NOISE = (
    "vector", "clipart", "sticker", "stock image", "free download", "transparent background", "ui kit",
    "web design", "svg file", "high quality", "illustration", "graphic", "app design", "template", "pack",
    "collection", "button", "print ready",
)  # fmt: skip
SIZES = ("16px", "24px", "32px", "64px", "512x512", "hd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """What a caption may be written from."""

    key: str
    words: str
    """The thing in its set's own spelling."""
    set_name: str
    headings: tuple[str, ...]
    """What its set files it under, and the set's category."""
    logo: bool
    aliases: tuple[str, ...]
    """Other spellings of the thing."""


def caption_of(thing: Thing, others: Sequence[str], seed: int) -> tuple[str, str]:
    """Return a caption and what it says: `name`, `alias`, `other` (a name among `others`) or `nothing`."""
    draw = random.Random(f"{seed}/caption/{thing.key}")  # seeding with a string is the same in every process
    says = draw.choices(list(SHARES), weights=list(SHARES.values()))[0]
    name = thing.words
    if says == "alias" and not thing.aliases:
        says = "name"
    if says == "alias":
        name = draw.choice(thing.aliases)
    elif says == "other" and others:
        name = draw.choice(others)
    phrase = draw.choice(NAMELESS if says == "nothing" else PHRASES)
    if "logo" in phrase and not thing.logo:
        phrase = "{name} icon"
    return fill(phrase, name, thing, draw), says


def fill(phrase: str, name: str, thing: Thing, draw: random.Random) -> str:
    """Return a phrase with its places filled."""
    places: Mapping[str, str] = {
        "name": name,
        "set": thing.set_name,
        "heading": draw.choice(thing.headings) if thing.headings else "icons",
        "style": draw.choice(STYLES),
        "noise": draw.choice(NOISE),
        "size": draw.choice(SIZES),
        "number": str(draw.randrange(1, 10_000)),
    }
    return phrase.format_map(places)


def aliases_of(spellings: Sequence[str], words: str) -> tuple[str, ...]:
    """Return the spellings that others use for a thing, or else the ways to run its words together."""
    other = sorted(set(spellings) - {words})
    if not other and " " in words:
        other = [words.replace(" ", ""), words.replace(" ", "_")]
    return tuple(other)


def spoken_words() -> set[str]:
    """Return the words, run together, that the grammar may put beside any picture."""
    text = " ".join((*PHRASES, *NAMELESS, *STYLES, *NOISE, *SIZES))
    words = re.sub(r"\{\w+\}|[^a-z0-9 ]", " ", text.lower()).split()
    return set(words) | {phrase.replace(" ", "") for phrase in (*STYLES, *NOISE)}
