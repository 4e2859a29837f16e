"""Write the report of some runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memory_builder.base.charts import COLOURS, Interval, Series, interval_chart, line_chart, names_axis, number_axis
from memory_builder.base.drawing import Chart
from memory_builder.base.pages import render
from memory_builder.errors import MemoryBuilderError, UsageError
from memory_builder.indexing.curve import read_curves
from memory_builder.indexing.plot import recall_charts
from memory_builder.storage.store import Store
from trainer.evaluate.numbers.intervals import FEW, TOO_FEW
from trainer.evaluate.report.entries import LEARNT, Entry, Group, read_groups
from trainer.evaluate.report.gallery import gallery
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
    page = render(
        "trainer.evaluate.report/report.html",
        title=TITLE,
        models=_models(groups),
        groups=[_group(group, Pictures(local_roots, allow_hosts)) for group in groups],
        curves=_curves(groups),
    )
    folder, slash, name = str(out).rpartition("/")
    Store(folder or slash or ".").put(name, page.encode())
    return str(out)


def _models(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """(run, model, start of its fingerprint)"""
    entries = [entry for group in groups for entry in group.entries]
    names = {
        (entry.run_name, str(entry.result["model"]["name"]), str(entry.result["model"]["fingerprint"])[:12])
        for entry in entries
    }
    return sorted(names)


def _group(group: Group, pictures: Pictures) -> dict[str, Any]:
    tables = (measured_table(group), methods_table(group), other_tables(group))
    charts = (methods_chart(group), shots_chart(group))
    return {
        "title": group.title,
        "notes": _notes(group),
        "tables": [table for table in tables if table is not None],
        "charts": [chart for chart in charts if chart is not None],
        "gallery": gallery(group, pictures),
    }


def methods_chart(group: Group) -> Chart | None:
    """Top-1 of every method with its interval, over all classes and for each tier."""
    entries = [entry for entry in group.of("zero-shot", "baselines", "reco") if entry.labels is not None]
    if not entries:
        return None
    tiers = dict.fromkeys(tier for entry in entries for tier in entry.result["figures"]["tiers"])
    names = ["all", *tiers]
    rows = [(entry.label, [_top1(entry, name) for name in names]) for entry in entries]
    return interval_chart("Accuracy by method", "top-1 in per cent, 95 % intervals over classes", names, rows)


def shots_chart(group: Group) -> Chart | None:
    """Top-1 by pictures of each class, a line a method, and the line of zero-shot."""
    learnt = [entry for entry in group.of(*LEARNT) if entry.labels is not None]
    if not learnt:
        return None
    shots = list(dict.fromkeys(entry.shots or "" for entry in learnt))
    lines: dict[str, list[tuple[int, Interval]]] = {}
    for entry in learnt:
        if (top1 := _top1(entry, "all")) is not None:
            lines.setdefault(entry.curve, []).append((shots.index(entry.shots or ""), top1))
    series = [
        Series(
            name=name,
            points=[(at, value) for at, (value, _, _) in points],
            spans=[(low, high) for _, (_, low, high) in points],
            colour=COLOURS[i % len(COLOURS)],
        )
        for i, (name, points) in enumerate(lines.items())
    ]
    x = names_axis(shots, "training pictures of each class")
    ends = [end for one in series for span in one.spans for end in span]
    zero = None if group.zero_shot is None else _top1(group.zero_shot, "all")
    if group.zero_shot is not None and zero is not None:
        level = [(x.low, zero[0]), (x.high, zero[0])]
        series.append(Series(name=group.zero_shot.label, points=level, colour="ink", dashed=True, dots=False))
        ends.append(zero[0])
    y = number_axis(min(ends), max(ends), "top-1 in per cent, mean over seeds, 95 % intervals", scale=100)
    return line_chart("Accuracy by shots", x, y, series)


def _top1(entry: Entry, tier: str) -> Interval | None:
    """Top-1 with its interval; thrice the value where there is no interval, and nothing of a tier it lacks."""
    figures: dict[str, Any] | None = entry.result["figures"]
    if tier != "all" and figures is not None:
        figures = figures["tiers"].get(tier)
    if figures is None:
        return None
    value = figures["metrics"]["top1"]
    low, high = figures["ci95"]["top1"] or (value, value)
    return float(value), float(low), float(high)


def _notes(group: Group) -> list[str]:
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
        notes.append(f"{held:,} of the evaluation pictures have a row in the memory that looks the same to the model.")
    figures = [entry.result["figures"] for entry in group.entries]
    if min(some["n_classes"] for own in figures for some in (own, *own["tiers"].values())) < FEW:
        notes.append(TOO_FEW)
    return notes


def _curves(groups: Sequence[Group]) -> list[tuple[str, list[Chart], str]]:
    """(memory, recall curves, why there are none) of the memories that results rest on."""
    roots = dict.fromkeys(entry.memory_root for group in groups for entry in group.entries)
    shown = []
    for root in filter(None, roots):
        try:
            charts, problem = recall_charts(read_curves(Store(root))), ""
        except MemoryBuilderError as error:
            charts, problem = [], str(error)
        if charts or problem:
            shown.append((root, charts, problem))
    return shown
