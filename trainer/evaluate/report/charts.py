"""The report's plots: intervals side by side, and accuracy by shots. Colours come from the page, light or dark."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from trainer.evaluate.report.entries import LEARNT, Entry, Group

N_COLOURS = 4
"""The page's --c0 … --c3; beyond them colours repeat, labels do not."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 240, 40, 14, 14, 40


def forest(group: Group) -> str:
    """Top-1 of every method with its interval, all classes and each tier: plain HTML, so it fits any width."""
    entries = [entry for entry in group.of("zero-shot", "baselines", "reco") if entry.labels is not None]
    if not entries:
        return ""
    tiers = list(dict.fromkeys(tier for entry in entries for tier in entry.result["figures"]["tiers"]))
    names = ["all", *tiers]
    top = max(_ends(entry, name)[2] for entry in entries for name in names if _figures(entry, name))
    limit = min(1.0, np.ceil(10 * top) / 10) or 0.1
    rows = "".join(
        f'<div class="bar-label">{escape(entry.label)}</div><div class="bars">'
        + "".join(_bar(entry, name, i, limit) for i, name in enumerate(names) if _figures(entry, name))
        + "</div>"
        for entry in entries
    )
    ticks = "".join(f'<span style="left:{100 * i / 4:.0f}%">{100 * limit * i / 4:.0f}</span>' for i in range(5))
    axis = f'<div class="bar-label"></div><div class="ticks" aria-hidden="true">{ticks}</div>'
    caption = f"Top-1 in per cent, 95 % intervals. {_legend(names)}"
    return f'<figure><figcaption>{caption}</figcaption><div class="forest">{rows}{axis}</div></figure>'


def _bar(entry: Entry, name: str, colour: int, limit: float) -> str:
    value, low, high = (100 * end / limit for end in _ends(entry, name))
    shown, *ends = (100 * end for end in _ends(entry, name))
    text = f"{entry.label}, {name}: {shown:.1f} per cent, {ends[0]:.1f} to {ends[1]:.1f}"
    return (
        f'<div class="bar c{colour % N_COLOURS}" role="img" aria-label="{escape(text)}" title="{escape(text)}">'
        f'<i style="left:{low:.2f}%;width:{max(high - low, 0.3):.2f}%"></i><b style="left:{value:.2f}%"></b></div>'
    )


def shots_curve(group: Group) -> str:
    """Top-1 by pictures a class, a line a method, above the line of zero-shot."""
    learnt = [entry for entry in group.of(*LEARNT) if entry.labels is not None]
    if not learnt:
        return ""
    shots = list(dict.fromkeys(entry.shots or "" for entry in learnt))
    lines: dict[str, list[Entry]] = {}
    for entry in learnt:
        lines.setdefault(entry.curve, []).append(entry)
    ends = [_ends(entry, "all") for entry in learnt] + ([_ends(group.zero_shot, "all")] if group.zero_shot else [])
    low, high = np.floor(10 * min(end[1] for end in ends)) / 10, np.ceil(10 * max(end[2] for end in ends)) / 10
    high = max(high, low + 0.1)

    def x(number: str) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (shots.index(number) + 0.5) / len(shots)

    def y(value: float) -> float:
        return float(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low))

    drawn = [_grid(low + (high - low) * i / 4, y) for i in range(5)]
    drawn += [_text(x(number), HEIGHT - BOTTOM + 16, number, "middle") for number in shots]
    drawn += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "pictures of each class to learn from", "middle")]
    if group.zero_shot:
        at = y(_ends(group.zero_shot, "all")[0])
        drawn.append(f'<line class="zero" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for i, entries in enumerate(lines.values()):
        ends = [_ends(entry, "all") for entry in entries]
        places = zip(entries, ends, strict=True)
        drawn.append(_line([(x(entry.shots or ""), y(end[0]), y(end[1]), y(end[2])) for entry, end in places], i))
    label = f"Top-1 by shots: {', '.join(lines)}"
    picture = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(drawn)}</svg>'
    zero = f" Dashed: {escape(group.zero_shot.label)}." if group.zero_shot else ""
    caption = f"Top-1 in per cent by shots, mean of the seeds, 95 % intervals. {_legend(list(lines))}{zero}"
    return f"<figure><figcaption>{caption}</figcaption>{picture}</figure>"


def _line(points: Sequence[tuple[float, float, float, float]], colour: int) -> str:
    """Points of x and of the y of value, lower and upper end."""
    path = " ".join(f"{x:.1f},{value:.1f}" for x, value, _, _ in points)
    ends = "".join(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>' for x, _, low, high in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{value:.1f}" r="3.5"/>' for x, value, _, _ in points)
    return f'<g class="c{colour % N_COLOURS}"><polyline points="{path}"/>{ends}{dots}</g>'


def _grid(value: float, y: Any) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
    return line + _text(LEFT - 6, y(value) + 4, f"{100 * value:.0f}", "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _legend(names: Sequence[str]) -> str:
    keys = (f'<span class="key c{i % N_COLOURS}">{escape(name)}</span>' for i, name in enumerate(names))
    return f'<span class="legend">{" ".join(keys)}</span>'


def _figures(entry: Entry, name: str) -> dict[str, Any] | None:
    figures: dict[str, Any] = entry.result["figures"]
    return figures if name == "all" else figures["tiers"].get(name)


def _ends(entry: Entry, name: str) -> tuple[float, float, float]:
    """(value, low, high) of top-1; thrice the value where there is no interval."""
    figures = _figures(entry, name) or {}
    value = figures["metrics"]["top1"]
    low, high = figures["ci95"]["top1"] or (value, value)
    return float(value), float(low), float(high)
