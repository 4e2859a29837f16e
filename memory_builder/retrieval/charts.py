"""Histograms as inline SVG, in the page's own colours."""

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 180, 44, 24, 10, 40
BINS = 24


def histogram(values: npt.NDArray[np.floating] | npt.NDArray[np.integer], *, title: str, across: str, up: str) -> str:
    """How often values of each size occur; nothing for no values."""
    if not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    if whole and high - low < BINS:
        edges = np.arange(low, high + 2) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts, _ = np.histogram(values, edges)
    bars = "".join(_bar(i, n, len(counts), int(counts.max()), edges) for i, n in enumerate(counts.tolist()))
    ticks = "".join(_tick(edges, i, len(counts), whole) for i in range(0, len(counts) + 1, max(1, len(counts) // 4)))
    sides = (
        _text(LEFT - 6, TOP + 8, f"{counts.max():,}", "end")
        + _text(LEFT - 6, HEIGHT - BOTTOM, "0", "end")
        + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across, "middle")
    )
    label = f"{title}: {len(values):,} from {low:g} to {high:g}"
    svg = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">{bars}{ticks}{sides}</svg>'
    return f"<figure><figcaption>{escape(title)}, {escape(up)}</figcaption>{svg}</figure>"


def _bar(i: int, n: int, n_bars: int, most: int, edges: npt.NDArray[np.floating]) -> str:
    step = (WIDTH - LEFT - RIGHT) / n_bars
    tall = (HEIGHT - TOP - BOTTOM) * n / most
    told = f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {n:,}"
    return (
        f'<rect x="{LEFT + i * step:.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" width="{max(1, step - 1):.1f}" '
        f'height="{tall:.1f}"><title>{told}</title></rect>'
    )


def _tick(edges: npt.NDArray[np.floating], i: int, n_bars: int, whole: bool) -> str:
    step = (WIDTH - LEFT - RIGHT) / n_bars
    centred = whole and n_bars == len(edges) - 1 and edges[1] - edges[0] == 1
    if centred and i == n_bars:
        return ""
    x = LEFT + (i + 0.5 * centred) * step
    return _text(x, HEIGHT - BOTTOM + 15, f"{edges[i] + 0.5 * centred:.3g}", "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """What, how many, and a remark."""
    cells = "".join(
        f"<tr><th>{escape(a)}</th><td>{escape(b)}</td><td class=soft>{escape(c)}</td></tr>" for a, b, c in rows
    )
    return f'<div class="scroll"><table>{cells}</table></div>'
