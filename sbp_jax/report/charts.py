"""Charts as inline SVG: lines over a pair of axes, and histograms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from sbp_jax.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    compact,
    dot,
    fixed,
    frame,
    image,
    level,
    line,
    mark,
    scale,
    text,
    ticks,
)


@dataclass(frozen=True)
class Series:
    """One line of a chart; `color` is an index into the colours and dash patterns of the style sheet.

    Attributes:
      low, high: bounds of a band around the line, where there is one.
      marked: places (x, y, words) that are ringed.
    """

    name: str
    color: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    marked: tuple[tuple[float, float, str], ...] = ()


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    zero: str = "",
    x_low: float = 0.0,
    at: tuple[float, str] | None = None,
    percent: bool = False,
    y_high: float | None = None,
) -> Markup:
    """Lines over one pair of axes.

    Args:
      zero: names a horizontal line at 0 that then belongs to the picture.
      x_low: where the horizontal axis begins.
      at: a place on it and what it says there.
      percent: whether x is a share.
      y_high: where the vertical axis ends at most; what lies higher is cut off.
    """
    bounds = [bound for entry in series for bound in (entry.low, entry.high) if bound is not None]
    values = np.concatenate([entry.y for entry in series] + bounds + ([np.zeros(1)] if zero else []))
    highest = float(values.max() if y_high is None else min(values.max(), y_high))
    y_ticks = ticks(float(values.min()), highest)
    x_high = max(float(entry.x.max()) for entry in series)
    x_high = x_high if x_high > x_low else x_low + 1.0
    across = scale(x_low, x_high, LEFT, RIGHT)
    up = scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP + 18 if at else TOP)  # room for what the mark says
    parts = frame(x_label, y_label)
    for value in y_ticks:
        parts += level(up(value), compact(value) if y_ticks[-1] >= 1000 else fixed(value, y_ticks))
    inside = [value for value in ticks(x_low, x_high) if x_low - 1e-9 <= value <= x_high + 1e-9]
    show: Callable[[float], str] = "{:.3g}%".format if percent else compact
    parts += [text("tick", across(value), BOTTOM + 16, show(100 * value if percent else value)) for value in inside]
    if at:
        parts += mark(across(at[0]), at[1])
    if zero:
        parts.append(line("zero", LEFT, up(0.0), RIGHT, up(0.0)))
    top = 0 if y_high is None else TOP
    box = f"{LEFT - 3} {top} {WIDTH - LEFT + 3} {BOTTOM + 3 - top}"
    x, y, width, height = box.split()
    parts.append(f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">')  # cuts off what is outside
    for entry in series:
        parts += _band(entry, across, up)
    for entry in series:
        points = _points(entry.x, entry.y, across, up)
        if len(points) == 1:  # a line of one point cannot be seen
            parts.append(dot(f"dot c{entry.color}", *points[0], says=entry.name))
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        name = f"<title>{escape(entry.name)}</title>"
        parts.append(f'<polyline class="line c{entry.color}" points="{path}">{name}</polyline>')
    for entry in series:
        parts += [dot(f"ring c{entry.color}", across(x), up(y), 4.5, says) for x, y, says in entry.marked]
    parts.append("</svg>")
    if zero:
        parts.append(text("label", RIGHT, up(0.0) - 5 if up(0.0) > TOP + 20 else up(0.0) + 14, zero, "end"))
    return image(parts, title)


def _band(entry: Series, across: Callable[[float], float], up: Callable[[float], float]) -> list[str]:
    if entry.low is None or entry.high is None or len(entry.x) < 2:
        return []
    outline = _points(entry.x, entry.low, across, up) + _points(entry.x, entry.high, across, up)[::-1]
    return [f'<polygon class="band c{entry.color}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in outline)}"/>']


def _points(
    x: np.ndarray, y: np.ndarray, across: Callable[[float], float], up: Callable[[float], float]
) -> list[tuple[float, float]]:
    return [(across(a), up(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def histogram(
    groups: Sequence[tuple[str, np.ndarray]],
    edges: np.ndarray,
    title: str,
    x_label: str,
    y_label: str,
    at: tuple[float, str] | None = None,
    shares: bool | None = None,
) -> Markup:
    """Bars of one or more named groups over shared bins.

    Args:
      groups: the height of each bin.
      at: a place and what it says there; bars left of it are pale.
      shares: whether heights are shares rather than counts; None: they are where none is above 1.
    """
    top = max(float(heights.max()) for _, heights in groups) or 1.0
    shares = top <= 1 if shares is None else shares
    show: Callable[[float], str] = "{:.0%}".format if shares else compact
    first, last = float(edges[0]), float(edges[-1])
    across = scale(first, last, LEFT, RIGHT)
    up = scale(0.0, top, BOTTOM, TOP + 18 if at else TOP)  # room for what the mark says
    parts = frame(x_label, y_label)
    for value in ticks(0.0, top):
        if value <= top:
            parts += level(up(value), show(value))
    for index, (name, heights) in enumerate(groups):
        for place in np.flatnonzero(heights).tolist():
            low, high, height = float(edges[place]), float(edges[place + 1]), float(heights[place])
            width = (across(high) - across(low)) / len(groups)
            left, y = across(low) + index * width + 0.5, up(height)
            css = f"bar c{index} pale" if at and high <= at[0] + 1e-9 else f"bar c{index}"
            box = f'x="{left:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" height="{BOTTOM - y:.1f}"'
            says = f"{escape(name)}, {low:.3g} to {high:.3g}: {f'{height:.1%}' if shares else f'{height:,.0f}'}"
            parts.append(f'<rect class="{css}" {box}><title>{says}</title></rect>')
    if at:
        parts += mark(across(at[0]), at[1])
    inside = [value for value in ticks(first, last) if first - 1e-9 <= value <= last + 1e-9]
    parts += [text("tick", across(value), BOTTOM + 16, f"{value:g}") for value in inside]
    return image(parts, title)


def smoothed(tokens: np.ndarray, losses: np.ndarray, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Means of consecutive steps, so that at most `points` are left: a noisy curve that an eye can follow."""
    width = math.ceil(len(losses) / points)
    starts = np.arange(0, len(losses), width)
    counts = np.diff([*starts, len(losses)])
    return np.add.reduceat(tokens, starts) / counts, np.add.reduceat(losses, starts) / counts
