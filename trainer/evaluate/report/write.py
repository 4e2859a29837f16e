"""Write the report of some runs."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from memory_builder.errors import MemoryBuilderError, UsageError
from memory_builder.indexing.curve import read_curves
from memory_builder.indexing.plot import COLOURS, FAINT, INK, PAPER, plot
from memory_builder.storage.store import Store
from trainer.evaluate.numbers.intervals import FEW, TOO_FEW
from trainer.evaluate.report.charts import forest, shots_curve
from trainer.evaluate.report.entries import Group, read_groups
from trainer.evaluate.report.gallery import gallery
from trainer.evaluate.report.page import page
from trainer.evaluate.report.pictures import Pictures
from trainer.evaluate.report.tables import measured_table, methods_table, other_tables

TITLE = "Evaluation"


def write_report(
    runs: Sequence[str], out: str | Path, *, local_roots: Sequence[str] = (), allow_hosts: Sequence[str] = ()
) -> str:
    """Write one page about all results of these runs; return where it lies.

    Args:
        runs: their folders.
        out: the page; local paths or fsspec URLs, as the runs are.
        local_roots, allow_hosts: see ``LinkPolicy``.

    Raises:
        UsageError: no run, or one without results.
        CorruptMemoryError: a result cannot be read.
    """
    if not runs:
        raise UsageError("nothing to report: name the folders that evaluate wrote to with --out")
    groups = read_groups(runs)
    shown = "".join(_group(group, Pictures(local_roots, allow_hosts)) for group in groups)
    body = f"<h1>{TITLE}</h1>{_models(groups)}{shown}{_recall(groups)}"
    folder, slash, name = str(out).rpartition("/")
    Store(folder or slash or ".").put(name, page(TITLE, body).encode())
    return str(out)


def _models(groups: Sequence[Group]) -> str:
    told = {
        (entry.run_name, entry.result["model"]["name"], entry.result["model"]["fingerprint"][:12])
        for group in groups
        for entry in group.entries
    }
    lines = (
        f"<p>{f'<b>{escape(run)}</b>: ' if run else ''}{escape(name)} <span class='soft'>({fingerprint})</span></p>"
        for run, name, fingerprint in sorted(told)
    )
    return "".join(lines)


def _group(group: Group, pictures: Pictures) -> str:
    plots = forest(group) + shots_curve(group)
    return (
        f"<h2>{escape(group.title)}</h2>{_notes(group)}{measured_table(group)}{methods_table(group)}"
        f'{other_tables(group)}{f"""<div class="plots">{plots}</div>""" if plots else ""}{gallery(group, pictures)}'
    )


def _notes(group: Group) -> str:
    """How settings were chosen, whether a memory holds what was asked about, and whether intervals can be trusted."""
    chosen = {entry.result["config"].get("chosen_on") for entry in group.entries} - {None}
    notes = []
    if chosen:
        dev = (
            "All settings were chosen on another set."
            if chosen == {"dev"}
            else "Some settings were chosen on another set, others are published defaults."
        )
        notes.append(dev if "dev" in chosen else "No setting was chosen: these are published defaults.")
    held = max((entry.result["memory"].get("pictures_in_memory", 0) for entry in group.entries), default=0)
    if held:
        notes.append(f"{held:,} of the pictures asked about have a row in the memory that looks the same to the model.")
    figures = [entry.result["figures"] for entry in group.entries]
    if min(some["n_classes"] for own in figures for some in (own, *own["tiers"].values())) < FEW:
        notes.append(TOO_FEW)
    return "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _recall(groups: Sequence[Group]) -> str:
    """Recall curves of the memories that results rest on."""
    roots = {entry.result["memory"].get("root"): None for group in groups for entry in group.entries}
    parts = []
    for root in roots:
        if root is None:
            continue
        try:
            curves = read_curves(Store(root))
        except MemoryBuilderError as error:
            parts.append(f'<p class="note">Curves of {escape(root)} are not shown: {escape(str(error))}</p>')
            continue
        if curves:
            drawn = _themed(plot(curves, root, ".svg").decode())
            parts.append(f'<div class="curves" tabindex="0" role="region" aria-label="recall curves">{drawn}</div>')
    return f"<h2>Search in the memory</h2>{''.join(parts)}" if parts else ""


def _themed(svg: str) -> str:
    """The page's colours instead of the picture's own."""
    lines = zip(COLOURS.values(), ("var(--soft)", "var(--c0)", "var(--c1)"), strict=True)
    for own, ours in ((PAPER, "none"), (FAINT, "var(--line)"), (INK, "var(--ink)"), *lines):
        svg = svg.replace(f'"{own}"', f'"{ours}"')
    return svg
