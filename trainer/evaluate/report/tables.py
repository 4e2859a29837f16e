"""The report's tables: every number with its interval."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from trainer.evaluate.report.entries import Entry, Group, against

MEASURED = "What was measured"
CONTROLS = (
    "Names scrambled everywhere: every class goes by another one's name, in the memory too, so what is left was known "
    "to the memory and not to the model. Names scrambled in the memory: its captions name the wrong things, so nothing "
    "may be gained over zero-shot."
)
SPOKEN = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "mAP_11point": "mAP, 11 points",
    "names_scrambled": "names scrambled everywhere",
    "memory_scrambled": "names scrambled in the memory",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Cells are HTML; the first of a row is its heading. Scrolls by itself where the page is too narrow."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def number(value: float, ci95: Sequence[float] | None = None) -> str:
    """A share in per cent, with its interval below."""
    interval = f'<span class="ci">{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}</span>' if ci95 else ""
    return f"<b>{100 * value:.1f}</b>{interval}"


def methods_table(group: Group) -> str:
    """A row a method: all classes, each tier, the difference from zero-shot, and the scrambled controls."""
    entries = [
        entry
        for entry in group.of("zero-shot", "baselines", "reco", "linear-probe", "few-shot")
        if entry.labels is not None
    ]
    if not entries:
        return ""
    tiers = list(dict.fromkeys(tier for entry in entries for tier in entry.result["figures"]["tiers"]))
    metrics = [name for name in ("top1", "top5", "mean_per_class") if name in entries[0].result["figures"]["metrics"]]
    controls = [
        name for name in ("names_scrambled", "memory_scrambled") if any(name in e.result["extra"] for e in entries)
    ]
    head = ["method", *(SPOKEN[name] for name in metrics), *(f"top-1, {escape(tier)}" for tier in tiers)]
    head += ["top-1 over zero-shot", *(SPOKEN[name] for name in controls)]
    rows = [
        [
            escape(entry.label),
            *(_cell(entry.result["figures"], name) for name in metrics),
            *(_cell(entry.result["figures"]["tiers"].get(tier), "top1") for tier in tiers),
            _gain(entry, group.zero_shot),
            *(_cell(entry.result["extra"].get(name), "top1") for name in controls),
        ]
        for entry in entries
    ]
    told = table(head, rows, "Accuracy in per cent, with 95 % intervals over classes")
    if group.zero_shot is not None and group.n_models > 1:
        told += f'<p class="note">Over zero-shot: over {escape(group.zero_shot.label)}, for every model.</p>'
    return told + (f'<p class="note">{CONTROLS}</p>' if controls else "")


def other_tables(group: Group) -> str:
    """Retrieval and multilabel results: a row a result, a column a metric."""
    entries = [entry for entry in group.of("zero-shot", "retrieval", "reco") if entry.labels is None]
    if not entries:
        return ""
    metrics = list(entries[0].result["figures"]["metrics"])
    rows = [[escape(entry.label), *(_cell(entry.result["figures"], name) for name in metrics)] for entry in entries]
    head = ["method", *(escape(SPOKEN.get(name, name.replace("_", " "))) for name in metrics)]
    return table(head, rows, "In per cent, with 95 % intervals")


def measured_table(group: Group) -> str:
    """How much there is of what was measured: classes, pictures, and rows of the memory."""
    figures: dict[str, Any] = group.entries[0].result["figures"]
    if group.dataset["kind"] == "retrieval":
        counted_captions = (entry.result["dataset"].get("n_captions") for entry in group.entries)  # not by older runs
        captions = next((f"{n:,}" for n in counted_captions if n is not None), "not counted")
        return table(["pictures", "captions"], [[f"{figures['n']:,}", captions]], MEASURED)
    memories = [entry.result["memory"] for entry in group.entries if "rows_by_class" in entry.result["memory"]]
    counts = {memory["root"]: np.array(memory["rows_by_class"]) for memory in memories}
    tiers = np.array(group.dataset["tiers"])
    rows = []
    for name, some in {"all": figures, **figures["tiers"]}.items():
        inside = np.ones(len(group.dataset["classes"]), np.bool_) if name == "all" else tiers == name
        held = [(np.median(held[inside]), (held[inside] == 0).sum()) for held in counts.values()]
        cells = [cell for median, missing in held for cell in (f"{median:g}", f"{missing:,}")]
        rows.append([escape(name), f"{some['n_classes']:,}", f"{some['n']:,}", *cells])
    head = ["classes", "number", "pictures"]
    for root in counts:
        name = escape(root.rsplit("/", 1)[-1]) if len(counts) > 1 else "memory"
        head += [f"{name} rows a class (median)", f"classes the {name} does not name"]
    return table(head, rows, MEASURED)


def _cell(figures: dict[str, Any] | None, name: str) -> str:
    if not figures or name not in figures["metrics"]:
        return ""
    return number(figures["metrics"][name], figures["ci95"][name])


def _gain(entry: Entry, zero_shot: Entry | None) -> str:
    found = None if zero_shot is None else against(entry, zero_shot)
    if found is None:
        return ""
    chance = f"p = {found.p:.3f}" if found.p >= 0.001 else "p &lt; 0.001"
    interval = f'<span class="ci">{100 * found.low:+.1f} to {100 * found.high:+.1f}, {chance}</span>'
    return f"<b>{100 * found.value:+.1f}</b>{'' if np.isnan(found.p) else interval}"
