"""Pictures whose answer the memory changed, right and wrong, with the rows that did it."""

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from memory_builder.errors import MemoryBuilderError
from memory_builder.images import BadImageError, decode_image
from memory_builder.memory import NO_ROW, Memory
from memory_builder.shards import read_member
from trainer.evaluate.datasets import open_dataset
from trainer.evaluate.report.entries import Entry, Group

SHOWN = 6
"""Pictures of each kind for each method."""
SIDE = 64
NO_ANSWER = "nothing"
"""Said where a method gives the right class no more than others."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A picture that zero-shot and a method answer differently."""

    key: str
    truth: str
    before: str
    after: str
    reasons: list[int]
    """Row ids."""


def gallery(group: Group) -> str:
    """For every method that keeps its reasons: answers put right, and answers spoilt."""
    entries = [entry for entry in group.entries if entry.has_reasons]
    if not entries or group.zero_shot is None:
        return ""
    pictures = _Pictures(group)
    parts = []
    for entry in entries:
        put_right, spoilt = _changes(entry, group.zero_shot)
        counted = f"{len(put_right):,} put right, {len(spoilt):,} spoilt"
        inside = _cards("Put right", put_right, entry, pictures) + _cards("Spoilt", spoilt, entry, pictures)
        parts.append(f"<details><summary>{escape(entry.label)}: {counted}</summary>{inside}</details>")
    parts[0] = parts[0].replace("<details>", "<details open>", 1)
    missing = "".join(f'<p class="note">{escape(text)}</p>' for text in sorted(pictures.missing))
    return f"<h3>Answers the memory changed</h3>{missing}{''.join(parts)}"


def _changes(entry: Entry, zero_shot: Entry) -> tuple[list[Change], list[Change]]:
    """(put right, spoilt)"""
    now, then = entry.predictions, zero_shot.predictions
    if now is None or then is None or now["key"] != then["key"]:
        return [], []
    classes: list[str] = entry.result["dataset"]["classes"]
    right_now, right_then = np.array(now["rank_0"]) == 0, np.array(then["rank_0"]) == 0

    def change(i: int) -> Change:
        answer = now["top_0"][i].as_py()[0]
        return Change(
            key=now["key"][i].as_py(),
            truth=classes[now["label"][i].as_py()],
            before=classes[then["top_0"][i].as_py()[0]],
            after=classes[answer] if right_now[i] or answer != now["label"][i].as_py() else NO_ANSWER,
            reasons=[row for row in now["reasons"][i].as_py() if row != NO_ROW],
        )

    put_right, spoilt = np.flatnonzero(right_now & ~right_then), np.flatnonzero(~right_now & right_then)
    return [change(int(i)) for i in put_right], [change(int(i)) for i in spoilt]


def _cards(title: str, changes: list[Change], entry: Entry, pictures: "_Pictures") -> str:
    if not changes:
        return ""
    return f"<h4>{title}</h4>" + "".join(_card(change, entry, pictures) for change in _shown(changes))


def _shown(changes: list[Change]) -> list[Change]:
    """Some of them, from all of the set and not from its first classes."""
    return changes[:: max(1, len(changes) // SHOWN)][:SHOWN]


def _card(change: Change, entry: Entry, pictures: "_Pictures") -> str:
    right = change.after == change.truth
    rows = "".join(_figure(*pictures.row(entry.result["memory"]["root"], row)) for row in change.reasons)
    return (
        f'<section class="card"><div class="asked">{_figure(pictures.asked(change.key), change.truth)}</div>'
        f'<div class="told"><p>names: <q>{escape(change.before)}</q> {"✗ wrong" if right else "✓ right"}<br>'
        f"{escape(entry.method)}: <q>{escape(change.after)}</q> {'✓ right' if right else '✗ wrong'}</p>"
        f'<div class="rows">{rows}</div></div></section>'
    )


def _figure(source: str | None, caption: str) -> str:
    image = f'<img alt="" src="{source}">' if source else '<span class="gone" aria-hidden="true"></span>'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


class _Pictures:
    """Thumbnails of a set and of the memories its results rest on, as far as they are still there."""

    def __init__(self, group: Group) -> None:
        self.missing: set[str] = set()
        """What could not be read, in words."""
        self._group = group
        self._asked = self._read_asked()
        self._memories: dict[str, Memory | None] = {}

    def asked(self, key: str) -> str | None:
        """A picture of the set."""
        return self._asked.get(key)

    def row(self, root: str, row_id: int) -> tuple[str | None, str]:
        """(picture, caption) of a row of a memory."""
        memory = self._memory(root)
        if memory is None:
            return None, ""
        found: dict[str, Any] = memory.metadata([row_id], ["caption", "member"]).to_pylist()[0]
        caption = found["caption"] or ""
        try:
            return thumbnail(read_member(memory.source(row_id), found["member"])), caption
        except MemoryBuilderError as error:
            self.missing.add(f"Some pictures of the memory are not shown: {error}")
        except BadImageError:
            pass
        return None, caption

    def _memory(self, root: str) -> Memory | None:
        if root not in self._memories:
            try:
                self._memories[root] = Memory.open(root)
            except MemoryBuilderError as error:
                self._memories[root] = None
                self.missing.add(f"Rows of the memory are not shown: {error}")
        return self._memories[root]

    def _read_asked(self) -> dict[str, str]:
        wanted: set[str] = set()
        for entry in self._group.entries:
            if entry.has_reasons and self._group.zero_shot is not None:
                for changes in _changes(entry, self._group.zero_shot):
                    wanted |= {change.key for change in _shown(changes)}
        told = self._group.dataset
        try:
            dataset = open_dataset(Path(told["root"]), told["split"])
            if dataset.digest() != told["digest"]:
                self.missing.add(f"Pictures asked about are not shown: {told['root']} has changed since")
                return {}
            return {example.key: thumbnail(example.image) for example in dataset.examples(frozenset(wanted))}
        except MemoryBuilderError as error:
            self.missing.add(f"Pictures asked about are not shown: {error}")
            return {}


def thumbnail(data: bytes) -> str:
    """An encoded picture as a small one inside a data URI.

    Raises:
        BadImageError: it cannot be decoded.
    """
    image = decode_image(data)
    image.thumbnail((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
