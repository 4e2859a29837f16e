"""Pictures whose answer the memory changed, right and wrong, with the rows that did it."""

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class ShownChange:
    """A change with its pictures: the question's own, and (picture, caption) of the rows."""

    truth: str
    before: str
    after: str
    picture: str | None
    rows: list[tuple[str | None, str]]


@dataclass(frozen=True, kw_only=True)
class MethodChanges:
    """What one method changed."""

    label: str
    name: str
    n_corrected: int
    n_broken: int
    corrected: list[ShownChange]
    broken: list[ShownChange]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What every method that keeps its reasons changed, and what cannot be shown of it."""

    missing: list[str]
    methods: list[MethodChanges]


def gallery(group: Group, pictures: Pictures) -> Gallery | None:
    """For every method that keeps its reasons: answers corrected, and answers broken; ``pictures`` reads theirs."""
    pairs = [(entry, group.zero_shot_of(entry)) for entry in group.entries if entry.has_reasons]
    compared = [(entry, zero_shot) for entry, zero_shot in pairs if zero_shot is not None]
    if not compared:
        return None
    entries = [entry for entry, _ in compared]
    changes = [_changes(entry, zero_shot) for entry, zero_shot in compared]
    samples = [(_sample(corrected), _sample(broken)) for corrected, broken in changes]
    pictures.read_asked(group, {change.key for kinds in samples for sample in kinds for change in sample})
    for root in dict.fromkeys(entry.memory_root for entry in entries):
        of_root = (kinds for entry, kinds in zip(entries, samples, strict=True) if entry.memory_root == root)
        rows = {row for kinds in of_root for sample in kinds for change in sample for row in change.reasons}
        pictures.read_rows(root, sorted(rows))
    methods = [
        MethodChanges(
            label=entry.label,
            name=entry.method,
            n_corrected=len(corrected),
            n_broken=len(broken),
            corrected=_with_pictures(sample[0], entry, pictures),
            broken=_with_pictures(sample[1], entry, pictures),
        )
        for entry, (corrected, broken), sample in zip(entries, changes, samples, strict=True)
    ]
    return Gallery(missing=sorted(pictures.missing), methods=methods)


def _changes(entry: Entry, zero_shot: Entry) -> tuple[list[Change], list[Change]]:
    """(corrected, broken)"""
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

    corrected, broken = np.flatnonzero(right_now & ~right_then), np.flatnonzero(~right_now & right_then)
    return [change(int(i)) for i in corrected], [change(int(i)) for i in broken]


def _sample(changes: list[Change]) -> list[Change]:
    """Some of them, from all of the set and not from its first classes."""
    return changes[:: max(1, len(changes) // SHOWN)][:SHOWN]


def _with_pictures(changes: list[Change], entry: Entry, pictures: Pictures) -> list[ShownChange]:
    return [
        ShownChange(
            truth=change.truth,
            before=change.before,
            after=change.after,
            picture=pictures.asked(change.key),
            rows=[pictures.row(entry.memory_root, row) for row in change.reasons],
        )
        for change in changes
    ]
