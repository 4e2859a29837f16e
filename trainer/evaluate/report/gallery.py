"""Pictures whose answer the memory changed, right and wrong, with the rows that did it."""

from dataclasses import dataclass
from html import escape

import numpy as np

from memory_builder.base.types import NO_ROW
from trainer.evaluate.numbers.metrics import NO_ANSWER
from trainer.evaluate.report.entries import Entry, Group
from trainer.evaluate.report.pictures import Pictures

SHOWN = 6
"""Pictures of each kind for each method."""
NOTHING = "nothing"
"""Said where a method gives no class more than others."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A picture that zero-shot and a method answer differently."""

    key: str
    truth: str
    before: str
    after: str
    reasons: list[int]
    """Row ids."""


def gallery(group: Group, pictures: Pictures) -> str:
    """For every method that keeps its reasons: answers put right, and answers spoilt; ``pictures`` reads theirs."""
    pairs = [(entry, group.zero_shot_of(entry)) for entry in group.entries if entry.has_reasons]
    compared = [(entry, zero_shot) for entry, zero_shot in pairs if zero_shot is not None]
    if not compared:
        return ""
    entries = [entry for entry, _ in compared]
    changes = [_changes(entry, zero_shot) for entry, zero_shot in compared]
    shown = [(_shown(put_right), _shown(spoilt)) for put_right, spoilt in changes]
    pictures.read_asked(group, {change.key for kinds in shown for some in kinds for change in some})
    for root in dict.fromkeys(entry.memory_root for entry in entries):
        of_root = (kinds for entry, kinds in zip(entries, shown, strict=True) if entry.memory_root == root)
        rows = {row for kinds in of_root for some in kinds for change in some for row in change.reasons}
        pictures.read_rows(root, sorted(rows))
    parts: list[str] = []
    for entry, (put_right, spoilt), kinds in zip(entries, changes, shown, strict=True):
        counted = f"{len(put_right):,} put right, {len(spoilt):,} spoilt"
        inside = _cards("Put right", kinds[0], entry, pictures) + _cards("Spoilt", kinds[1], entry, pictures)
        is_open = "" if parts else " open"
        parts.append(f"<details{is_open}><summary>{escape(entry.label)}: {counted}</summary>{inside}</details>")
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
        before, after = (table["top_0"][i].as_py()[0] for table in (then, now))
        unsaid = None if right_now[i] else now["label"][i].as_py()
        return Change(
            key=now["key"][i].as_py(),
            truth=classes[now["label"][i].as_py()],
            before=classes[before] if before != NO_ANSWER else NOTHING,
            # Older records say the right class where it was given no more than others.
            after=classes[after] if after not in {NO_ANSWER, unsaid} else NOTHING,
            reasons=[row for row in now["reasons"][i].as_py() if row != NO_ROW],
        )

    put_right, spoilt = np.flatnonzero(right_now & ~right_then), np.flatnonzero(~right_now & right_then)
    return [change(int(i)) for i in put_right], [change(int(i)) for i in spoilt]


def _shown(changes: list[Change]) -> list[Change]:
    """Some of them, from all of the set and not from its first classes."""
    return changes[:: max(1, len(changes) // SHOWN)][:SHOWN]


def _cards(title: str, changes: list[Change], entry: Entry, pictures: Pictures) -> str:
    cards = "".join(_card(change, entry, pictures) for change in changes)
    return f"<h4>{title}</h4>{cards}" if cards else ""


def _card(change: Change, entry: Entry, pictures: Pictures) -> str:
    right = change.after == change.truth
    rows = "".join(_figure(*pictures.row(entry.memory_root, row)) for row in change.reasons)
    return (
        f'<section class="card"><div class="asked">{_figure(pictures.asked(change.key), change.truth)}</div>'
        f'<div class="told"><p>names: <q>{escape(change.before)}</q> {"✗ wrong" if right else "✓ right"}<br>'
        f"{escape(entry.method)}: <q>{escape(change.after)}</q> {'✓ right' if right else '✗ wrong'}</p>"
        f'<div class="rows">{rows}</div></div></section>'
    )


def _figure(source: str | None, caption: str) -> str:
    image = f'<img alt="" src="{source}">' if source else '<span class="gone" aria-hidden="true"></span>'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
