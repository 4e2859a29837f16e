"""A study: variants of one method, each trained with several seeds, then asked about the dev sets and the test sets.

What is trained and asked is kept, so the same command goes on where it was stopped. A variant's seeds are averaged by
picture, intervals are over classes, and differences are paired. Variants are compared on dev; the table of the test
sets lists all of them.
"""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from deal import TIERS
from iconify import IconsError

from memory_builder.cli import main
from memory_builder.errors import MemoryBuilderError
from memory_builder.storage.store import Store
from trainer.evaluate.numbers.arrays import Labels
from trainer.evaluate.numbers.intervals import Reals, interval, paired_difference
from trainer.evaluate.numbers.metrics import class_sums
from trainer.evaluate.report.entries import Entry, read_groups
from trainer.evaluate.results import read_results

SIDES = ("dev", "test")
SETS = tuple(f"{side}-{tier}" for side in SIDES for tier in TIERS)
CAPTIONED = tuple(f"{side}-captioned" for side in SIDES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to train, and to ask what was trained."""

    name: str
    train: tuple[str, ...] = ()
    """Flags of the training command, after the study's own."""
    seeds: int | None = None
    """If fewer than the study has."""

    def seeds_of(self, most: int) -> range:
        """Return the seeds of a study that has so many at most."""
        return range(min(most, self.seeds or most))


AnyVariant = TypeVar("AnyVariant", bound=Variant)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One method's answers to the pictures of one set, averaged over seeds."""

    label: str
    keys: tuple[str, ...]
    labels: Labels
    """i64[n]"""
    right: dict[str, Reals]
    """top1, top5 → f64[n] the share of seeds in which a picture is right."""
    seeds: tuple[float, ...]
    """Top-1 of each."""


def memory_builder(*arguments: object) -> None:
    """Run a command of memory-builder, in this process, which has loaded torch; its failure ends the study."""
    command = [*map(str, arguments)]
    print(f"== {' '.join(command)}", file=sys.stderr, flush=True)
    with redirect_stdout(io.StringIO()):
        code = main(command)
    if code:
        raise IconsError(f"failed, see above: {' '.join(command)}\nThe same command goes on from there")


def run_once(done: Path, *arguments: object) -> None:
    """Run a command of memory-builder unless the file is there that says it was done, and write that file."""
    do_once(done, " ".join(map(str, arguments)), lambda: memory_builder(*arguments))


def do_once(done: Path, what: str, do: Callable[[], object]) -> None:
    """Do something unless the file is there that says it was done, and write that file.

    Raises:
        IconsError: the file says that something else was done.
    """
    if not done.exists():
        do()
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text(what + "\n", encoding="utf-8")
    elif (found := done.read_text("utf-8").strip()) != what:
        raise IconsError(
            f"{done.parent} holds what was made by other means:\n  {found}\nand not\n  {what}\n"
            f"Remove it, or name another --out"
        )


def sets_in(benchmark: Path, names: Sequence[str] = SETS) -> list[Path]:
    """Return the folders of the sets there are that are asked about, dev and test."""
    return [benchmark / name for name in names if (benchmark / name).exists()]


def line_of(label: str, entries: Sequence[Entry]) -> Line:
    """Average the answers of a method's seeds."""
    tables = [entry.predictions for entry in entries]
    ranks = [np.array(table["rank_0"]) for table in tables if table is not None]
    first = tables[0]
    if first is None or len(ranks) != len(entries) or any(t["key"] != first["key"] for t in tables if t is not None):
        raise IconsError(f"{label}: its seeds did not answer the same pictures")
    return Line(
        label=label,
        keys=tuple(first["key"].to_pylist()),
        labels=np.array(first["label"]),
        right={f"top{k}": np.mean([rank < k for rank in ranks], axis=0) for k in (1, 5)},
        seeds=tuple(float((rank < 1).mean()) for rank in ranks),
    )


def lines_of(runs: dict[str, Sequence[Path]], methods: Sequence[str], dataset: str) -> list[Line]:
    """Return a line for each variant (label → folders of its seeds) and method that answered a set of this name."""
    lines = []
    for label, folders in runs.items():
        found: dict[str, list[Entry]] = {}
        for group in read_groups([str(folder) for folder in folders]):
            for entry in group.entries if group.dataset["name"] == dataset else ():
                if entry.method in methods and entry.predictions is not None:
                    found.setdefault(entry.method, []).append(entry)
        for method in sorted(found, key=list(methods).index):
            name = ": ".join(filter(None, (label, method if len(methods) > 1 or not label else "")))
            lines.append(line_of(name, found[method][: len(folders)]))
    return lines


def cells(line: Line, rivals: Sequence[Line]) -> list[str]:
    """Return top-1 with its interval, how far seeds are apart, top-5, and the difference from each rival."""
    sums = {name: class_sums(right, line.labels) for name, right in line.right.items()}
    low, high = interval(sums["top1"])
    spread = f" ± {100 * float(np.std(line.seeds)):.1f}" if len(line.seeds) > 1 else ""
    made = [line.label, f"{100 * sums['top1'].value:.1f} ({100 * low:.1f}–{100 * high:.1f}){spread}"]
    made.append(f"{100 * sums['top5'].value:.1f}")
    for rival in rivals:
        if rival.keys != line.keys or rival.label == line.label:
            made.append("–")
            continue
        found = paired_difference(sums["top1"], class_sums(rival.right["top1"], rival.labels))
        made.append(f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})")
    return made


def table(title: str, lines: Sequence[Line], rivals: Sequence[Line]) -> str:
    """Return a Markdown table of all lines, each beside its rivals."""
    head = ["", "top-1 (95 %) ± seeds", "top-5", *(f"over {rival.label}" for rival in rivals)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *(cells(line, rivals) for line in lines)]
    return "\n".join([f"### {title}", "", *(f"| {' | '.join(row)} |" for row in rows)])


def overview(side: str, measured: dict[str, tuple[Sequence[Line], Sequence[Line]]]) -> str:
    """Return a Markdown table of top-1, a line for each method and a column for each tier, beside the first rival.

    Args:
        side: dev or test.
        measured: set → its lines, and their rivals.
    """
    rows: dict[str, dict[str, str]] = {}
    names = [name for name in measured if name.startswith(side)]
    for name in names:
        lines, rivals = measured[name]
        for line in lines:
            label, top1, _, difference = cells(line, rivals[:1])
            rows.setdefault(label, {})[name] = top1 if difference == "–" else f"{top1}; {difference}"
    head = [f"top-1 (95 %) ± seeds; over {measured[names[0]][1][0].label}", *names]
    table_rows = [head, ["---", *["---:"] * len(names)]]
    table_rows += [[label, *(found.get(name, "–") for name in names)] for label, found in rows.items()]
    return "\n".join([f"### {side}, all tiers", "", *(f"| {' | '.join(row)} |" for row in table_rows)])


def tables(
    runs: dict[str, Sequence[Path]],
    methods: Sequence[str],
    frozen: Path,
    baselines: Mapping[str, Path],
    rivals: Sequence[str],
    chosen: Sequence[str] = (),
) -> str:
    """Return the tables, dev first, as choices are made there: all sets of a side in one, then one for each set.

    Args:
        runs: variant → the folders of its seeds' answers.
        methods: of those answers.
        frozen: folder with the answers of the frozen model; on dev it is the only rival.
        baselines: tier → the folder of its baselines' answers on test.
        rivals: the methods in there that every line is compared with.
        chosen: labels of lines that every line is compared with, too.
    """
    measured = {}
    for name in SETS:
        lines = lines_of(runs, methods, name)
        if lines:
            beside = lines_of({"": [baselines[name.partition("-")[2]]]}, rivals, name)
            beside = beside or lines_of({"": [frozen]}, ("zero-shot",), name)
            measured[name] = ([*beside, *lines], [*beside, *(line for line in lines if line.label in chosen)])
    sides = [side for side in SIDES if any(name.startswith(side) for name in measured)]
    made = [overview(side, measured) for side in sides]
    made += [table(name, lines, beside) for name, (lines, beside) in measured.items()]
    return "\n\n".join(made) + "\n"


def recall_table(runs: dict[str, Sequence[Path]], methods: Sequence[str], name: str) -> str:
    """Return the Markdown table of image-text retrieval on one captioned set, means of the seeds; empty if unasked."""
    head, rows = ["", *(f"{way} R@{k}" for way in ("text → image", "image → text") for k in (1, 5, 10))], []
    for label, folders in runs.items():
        found: dict[str, list[dict[str, float]]] = {}
        for folder in folders:
            for result in read_results(Store(folder)):
                if result["dataset"]["name"] == name:
                    found.setdefault(result["method"], []).append(result["figures"]["metrics"])
        for method in (method for method in methods if method in found):
            names = [f"{way}_recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
            means = [np.mean([metrics[metric] for metrics in found[method]]) for metric in names]
            rows.append([f"{label}: {method}", *(f"{100 * mean:.1f}" for mean in means)])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join([f"### {name}", "", *(f"| {' | '.join(row)} |" for row in lines)]) if rows else ""


def write_tables(out: Path, make: Callable[[], str]) -> int:
    """Make a study's tables and write ``tables.md``; return the exit code: 0 is success, 1 a step that failed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "tables.md").write_text(make(), encoding="utf-8")
    except (IconsError, MemoryBuilderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"tables: {out / 'tables.md'}")
    return 0


def named(variants: Sequence[AnyVariant], only: Sequence[str]) -> list[AnyVariant]:
    """Return the variants of these names, all unless given."""
    if unknown := set(only) - {variant.name for variant in variants}:
        names = ", ".join(variant.name for variant in variants)
        raise IconsError(f"--only {', '.join(sorted(unknown))}: the variants are {names}")
    return [variant for variant in variants if not only or variant.name in only]


def slug(name: str) -> str:
    """Return a folder's name."""
    return "".join(c if c.isalnum() else "-" for c in name)
