"""Charts of recall curves, and a file with all of them."""

import math
from collections.abc import Sequence
from pathlib import Path

from memory_builder.base.charts import Axis, Series, beside, line_chart, number_axis
from memory_builder.base.drawing import Chart
from memory_builder.base.pages import render
from memory_builder.errors import UsageError
from memory_builder.indexing.curve import RECALL_AT, Curve, bytes_text

COLOURS = {1: "c2", 10: "c0", 100: "c1"}
SUFFIXES = (".png", ".svg", ".html")


def plot(curves: Sequence[Curve], title: str, suffix: str) -> bytes:
    """Draw the curves as a file with this suffix.

    Raises:
        UsageError: no index is tuned yet, or the suffix is not in SUFFIXES.
    """
    check_suffix(Path(f"curve{suffix}"))
    if not curves:
        raise UsageError("nothing to plot: no index has been tuned yet; run memory-builder index first")
    charts = recall_charts(curves)
    if suffix == ".html":
        return render("memory_builder.indexing/curves.html", title=title, charts=charts).encode()
    together = beside(title, charts)
    return together.png() if suffix == ".png" else together.svg().encode()


def check_suffix(path: Path) -> None:
    """Refuse a file suffix that cannot be drawn, before any reading."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--plot {path}: expected a name that ends in {', '.join(SUFFIXES)}")


def recall_charts(curves: Sequence[Curve]) -> list[Chart]:
    """Chart each curve: recall by the bytes that a query reads, in powers of ten."""
    return [_recall_chart(curve) for curve in curves]


def _recall_chart(curve: Curve) -> Chart:
    work = [max(1.0, point.work_bytes) for point in [*curve.points, *([curve.chosen] if curve.chosen else [])]]
    low, high = math.floor(math.log10(min(work))), math.ceil(math.log10(max(work)) + 1e-9)
    powers = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    x = Axis(
        low=powers[0],
        high=powers[-1],
        ticks=[(power, bytes_text(power)) for power in powers],
        label="bytes read by a query for ten rows",
        log=True,
    )
    series = [
        Series(
            name=f"recall@{k}",
            points=[(point.work_bytes, point.recall[str(k)]) for point in curve.points if str(k) in point.recall],
            colour=COLOURS[k],
        )
        for k in RECALL_AT
    ]
    in_use, ring = curve.chosen, None
    if in_use:
        ring = (in_use.work_bytes, in_use.recall["10"], f"in use: nprobe {in_use.nprobe}, refine {in_use.refine}")
    title = f"{curve.name}: {curve.query_modality} to {curve.modality}"
    return line_chart(title, x, number_axis(0, 1, "recall"), [one for one in series if one.points], ring)
