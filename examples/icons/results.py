"""Write the results of runs as Markdown tables: for every set each method, its interval, and paired differences.

    uv run python examples/icons/results.py ~/icons/runs/absent ~/icons/runs/rare --out ~/icons/results.md

With --bounds, a figure outside the range that is stored for it is an error.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from iconify import IconsError
from tyro.conf import Positional

from memory_builder.errors import MemoryBuilderError
from trainer.evaluate.report.entries import Entry, Group, against, read_groups

TASKS = ("zero-shot", "baselines", "reco", "linear-probe", "few-shot")


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Write the results of runs as Markdown tables."""

    runs: Annotated[tuple[str, ...], Positional]
    """Folders that memory-builder evaluate wrote."""
    out: Path
    """File to write."""
    rivals: tuple[str, ...] = ("zero-shot",)
    """Methods that each is compared with, as the tables call them without the tier: priming, 'zero-shot (react)'."""
    bounds: Path | None = None
    """JSON: set, method → least and greatest top-1."""


def share(value: float, ci95: Sequence[float] | None = None) -> str:
    """A share in per cent, with its interval."""
    interval = f" ({100 * ci95[0]:.1f}–{100 * ci95[1]:.1f})" if ci95 is not None else ""
    return f"{100 * value:.1f}{interval}"


def name_of(entry: Entry, group: Group) -> str:
    """What a method is called in a table of one tier; its run's folder ends with the tier's name."""
    tier = str(group.dataset["name"]).rpartition("-")[2]
    return entry.label.replace(f" ({tier})", "").replace(f"-{tier})", ")")


def over(entry: Entry, rival: Entry | None) -> str:
    """How far a method is above another, paired, with its interval."""
    difference = None if rival is None or rival is entry else against(entry, rival)
    if difference is None:
        return "–"
    return f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def row(entry: Entry, rivals: Sequence[Entry | None]) -> list[str]:
    """One method's cells."""
    figures, extra = entry.result["figures"], entry.result["extra"]
    cells = [entry.label]
    cells += [
        share(figures["metrics"][name], figures["ci95"][name]) if name in figures["metrics"] else "–"
        for name in ("top1", "top5")
    ]
    cells += [over(entry, rival) for rival in rivals]
    controls = ("names_scrambled", "memory_scrambled")
    return cells + [share(extra[name]["metrics"]["top1"]) if name in extra else "–" for name in controls]


def about(group: Group) -> str:
    """What stands above a table: the set's size, and the memory's rows for its classes."""
    entries = group.of(*TASKS)
    n_classes, n = len(group.dataset["classes"]), entries[0].result["figures"]["n"]
    counts = next((e.result["memory"]["rows_by_class"] for e in entries if "rows_by_class" in e.result["memory"]), None)
    said = f"{n_classes:,} classes, {n:,} pictures"
    if counts is None:
        return said
    rows = next(e.result["memory"]["rows"] for e in entries if "rows" in e.result["memory"])
    named = f"{np.mean(counts):.1f} of them name a class (median {np.median(counts):g})"
    return f"{said}; a memory of {rows:,} rows, {named}"


def table(group: Group, rivals: Sequence[str]) -> str:
    """One set's table."""
    entries = group.of(*TASKS)
    named = {name_of(entry, group): entry for entry in reversed(entries)}
    differences = [f"top-1 over {rival}" for rival in rivals]
    head = ["method", "top-1 (95 %)", "top-5 (95 %)", *differences, "names scrambled", "memory scrambled"]
    lines = [f"### {group.title}", "", f"{about(group)}.", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    return "\n".join([*lines, *(_line(row(entry, [named.get(rival) for rival in rivals])) for entry in entries)])


def overview(groups: Sequence[Group]) -> str:
    """A table of top-1 with a line for each method and a column for each set; empty if there is only one set."""
    shown = [group for group in groups if any(entry.task in ("baselines", "reco") for entry in group.of(*TASKS))]
    cells: dict[str, dict[str, str]] = {}
    for group in shown:
        for entry in group.of(*TASKS):
            metrics, ci95 = entry.result["figures"]["metrics"], entry.result["figures"]["ci95"]
            of_method = cells.setdefault(name_of(entry, group), {})
            of_method[str(group.dataset["name"])] = share(metrics["top1"], ci95["top1"])
    names = [str(group.dataset["name"]) for group in shown]
    if len(names) < 2:
        return ""
    rows = [[label, *(of.get(name, "–") for name in names)] for label, of in cells.items()]
    return "\n".join(map(_line, [["top-1 (95 %)", *names], ["---", *["---:"] * len(names)], *rows]))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def outside(groups: Sequence[Group], bounds: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return what is not as it was: figures outside their range, and figures that are missing."""
    found = {(group.dataset["name"], entry.label): entry for group in groups for entry in group.of(*TASKS)}
    wrong = []
    for name, methods in bounds.items():
        for label, (least, greatest) in methods.items():
            entry: Any = found.get((name, label))
            top1 = None if entry is None else entry.result["figures"]["metrics"]["top1"]
            if top1 is None or not least <= top1 <= greatest:
                measured = "missing" if top1 is None else f"{top1:.4f}"
                wrong.append(f"{name}, {label}: top-1 is {measured}, expected {least} to {greatest}")
    return wrong


def write_results(config: Results) -> None:
    """Do the whole of it."""
    groups = read_groups(config.runs)
    tables = filter(None, [overview(groups), *(table(group, config.rivals) for group in groups)])
    config.out.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    if config.bounds is not None:
        wrong = outside(groups, json.loads(config.bounds.read_bytes()))
        if wrong:
            raise IconsError("\n".join(wrong))


def main() -> int:
    """Run the command; 0 is success, 1 a figure outside its bounds, 2 wrong usage."""
    config = tyro.cli(Results, description=__doc__)
    try:
        write_results(config)
    except IconsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MemoryBuilderError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"tables: {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
