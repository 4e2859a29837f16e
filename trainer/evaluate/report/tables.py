"""Tables of the report: every number with its interval."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.evaluate.report.entries import Entry, Group, against

MEASURED = "What was measured"
CONTROLS = (
    "Names scrambled everywhere: class names are permuted in the prompts and in the memory, so what accuracy is left "
    "comes from the memory and not from the model. Names scrambled in the memory: class names are permuted in its "
    "captions alone, so nothing may be gained over zero-shot."
)
SPOKEN = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "mAP_11point": "mAP, 11 points",
    "names_scrambled": "names scrambled everywhere",
    "memory_scrambled": "names scrambled in the memory",
}


Cell = str | dict[str, str]
"""Text, or a ``value`` with its ``interval``."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page; the first cell of a row is its heading."""

    head: list[str]
    rows: list[list[Cell]]
    caption: str
    notes: tuple[str, ...] = ()


def methods_table(group: Group) -> Table | None:
    """A row a method: all classes, each tier, the difference from zero-shot, and the scrambled controls."""
    entries = [
        entry
        for entry in group.of("zero-shot", "baselines", "reco", "linear-probe", "few-shot")
        if entry.labels is not None
    ]
    if not entries:
        return None
    tiers = list(dict.fromkeys(tier for entry in entries for tier in entry.result["figures"]["tiers"]))
    metrics = [name for name in ("top1", "top5", "mean_per_class") if name in entries[0].result["figures"]["metrics"]]
    controls = [
        name for name in ("names_scrambled", "memory_scrambled") if any(name in e.result["extra"] for e in entries)
    ]
    head = ["method", *(SPOKEN[name] for name in metrics), *(f"top-1, {tier}" for tier in tiers)]
    head += ["top-1 over zero-shot", *(SPOKEN[name] for name in controls)]
    rows: list[list[Cell]] = [
        [
            entry.label,
            *(_cell(entry.result["figures"], name) for name in metrics),
            *(_cell(entry.result["figures"]["tiers"].get(tier), "top1") for tier in tiers),
            _gain(entry, group.zero_shot),
            *(_cell(entry.result["extra"].get(name), "top1") for name in controls),
        ]
        for entry in entries
    ]
    notes = []
    if group.zero_shot is not None and group.n_models > 1:
        notes.append(f"The difference from zero-shot is from {group.zero_shot.label}, for every model.")
    caption = "Accuracy in per cent, with 95 % intervals over classes"
    return Table(head=head, rows=rows, caption=caption, notes=tuple(notes + [CONTROLS] * bool(controls)))


def other_tables(group: Group) -> Table | None:
    """Retrieval and multilabel results: a row a result, a column a metric."""
    entries = [entry for entry in group.of("zero-shot", "retrieval", "reco") if entry.labels is None]
    if not entries:
        return None
    metrics = list(entries[0].result["figures"]["metrics"])
    rows: list[list[Cell]] = [
        [entry.label, *(_cell(entry.result["figures"], name) for name in metrics)] for entry in entries
    ]
    head = ["method", *(SPOKEN.get(name, name.replace("_", " ")) for name in metrics)]
    return Table(head=head, rows=rows, caption="In per cent, with 95 % intervals")


def measured_table(group: Group) -> Table:
    """How much there is of what was measured: classes, pictures, and rows of the memory."""
    figures: dict[str, Any] = group.entries[0].result["figures"]
    if group.dataset["kind"] == "retrieval":
        counted_captions = (entry.result["dataset"].get("n_captions") for entry in group.entries)  # not by older runs
        captions = next((f"{n:,}" for n in counted_captions if n is not None), "not counted")
        return Table(head=["pictures", "captions"], rows=[[f"{figures['n']:,}", captions]], caption=MEASURED)
    memories = [entry.result["memory"] for entry in group.entries if "rows_by_class" in entry.result["memory"]]
    counts = {memory["root"]: np.array(memory["rows_by_class"]) for memory in memories}
    tiers = np.array(group.dataset["tiers"])
    rows: list[list[Cell]] = []
    for name, some in {"all": figures, **figures["tiers"]}.items():
        inside = np.ones(len(group.dataset["classes"]), np.bool_) if name == "all" else tiers == name
        held = [(np.median(held[inside]), (held[inside] == 0).sum()) for held in counts.values()]
        cells = [cell for median, missing in held for cell in (f"{median:g}", f"{missing:,}")]
        rows.append([name, f"{some['n_classes']:,}", f"{some['n']:,}", *cells])
    head = ["classes", "number", "pictures"]
    for root in counts:
        name = root.rsplit("/", 1)[-1] if len(counts) > 1 else "memory"
        head += [f"{name} rows a class (median)", f"classes the {name} does not name"]
    return Table(head=head, rows=rows, caption=MEASURED)


def _cell(figures: dict[str, Any] | None, name: str) -> Cell:
    """A share in per cent, with its interval."""
    if not figures or name not in figures["metrics"]:
        return ""
    ends = figures["ci95"][name]
    interval = f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}" if ends else ""
    return {"value": f"{100 * figures['metrics'][name]:.1f}", "interval": interval}


def _gain(entry: Entry, zero_shot: Entry | None) -> Cell:
    difference = None if zero_shot is None else against(entry, zero_shot)
    if difference is None:
        return ""
    chance = f"p = {difference.p:.3f}" if difference.p >= 0.001 else "p < 0.001"
    interval = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}, {chance}"
    return {"value": f"{100 * difference.value:+.1f}", "interval": "" if np.isnan(difference.p) else interval}
