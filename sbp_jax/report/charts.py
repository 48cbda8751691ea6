"""Charts as inline SVG: lines, a histogram, intervals. Colours come from the page's style sheet.

All have one width, so that their text stays readable on a phone, where a chart fills the screen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 262
LEFT, RIGHT, TOP, BOTTOM = 58, 408, 12, 218  # of the plot inside its axes
COLORS = 6  # in the style sheet


@dataclass(frozen=True)
class Series:
    """One line of a chart; `color` is an index into the colours and dash patterns of the style sheet."""

    name: str
    color: int
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A value with its bounds, in percent."""

    name: str
    color: int
    value: float
    low: float
    high: float


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str,
    y_label: str,
    zero: str = "",
    x_low: float = 0.0,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """Lines over one pair of axes.

    Args:
      zero: names a horizontal line at 0 that then belongs to the picture.
      x_low: where the horizontal axis begins.
      mark: a place on it and what it says there.
    """
    values = np.concatenate([line.y for line in series] + ([np.zeros(1)] if zero else []))
    y_ticks = ticks(float(values.min()), float(values.max()))
    x_high = max(float(line.x.max()) for line in series)
    across = _scale(x_low, x_high, LEFT, RIGHT)
    up = _scale(y_ticks[0], y_ticks[-1], BOTTOM, TOP + 18 if mark else TOP)  # room for what the mark says
    parts = _frame(x_label, y_label)
    for value in y_ticks:
        parts += _level(up(value), compact(value) if y_ticks[-1] >= 1000 else fixed(value, y_ticks))
    inside = [value for value in ticks(x_low, x_high) if x_low - 1e-9 <= value <= x_high + 1e-9]
    parts += [_text("tick", across(value), BOTTOM + 16, compact(value)) for value in inside]
    if mark:
        parts += _mark(across(mark[0]), mark[1])
    if zero:
        label = up(0.0) - 5 if up(0.0) > TOP + 20 else up(0.0) + 14
        parts += [_line("zero", LEFT, up(0.0), RIGHT, up(0.0)), _text("label", RIGHT, label, zero, "end")]
    for line in series:
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True))
        name = f"<title>{escape(line.name)}</title>"
        if len(line.x) == 1:  # a line of one point cannot be seen
            x, y = points.split(",")
            parts.append(f'<circle class="dot c{line.color}" cx="{x}" cy="{y}" r="4">{name}</circle>')
            continue
        parts.append(f'<polyline class="line c{line.color}" points="{points}">{name}</polyline>')
    return _svg(parts, title, HEIGHT)


def histogram(
    groups: Sequence[tuple[str, np.ndarray]],
    edges: np.ndarray,
    title: str,
    x_label: str,
    y_label: str,
    mark: tuple[float, str] | None = None,
    shares: bool | None = None,
) -> Markup:
    """Bars of one or more named groups over shared bins.

    Args:
      groups: the height of each bin.
      mark: a place and what it says there; bars left of it are pale.
      shares: whether heights are shares rather than counts; None: they are where none is above 1.
    """
    top = max(float(heights.max()) for _, heights in groups) or 1.0
    shares = top <= 1 if shares is None else shares
    show: Callable[[float], str] = "{:.0%}".format if shares else compact
    first, last = float(edges[0]), float(edges[-1])
    across = _scale(first, last, LEFT, RIGHT)
    up = _scale(0.0, top, BOTTOM, TOP + 18 if mark else TOP)  # room for what the mark says
    parts = _frame(x_label, y_label)
    for value in ticks(0.0, top):
        if value <= top:
            parts += _level(up(value), show(value))
    for index, (name, heights) in enumerate(groups):
        for place in np.flatnonzero(heights).tolist():
            low, high, height = float(edges[place]), float(edges[place + 1]), float(heights[place])
            width = (across(high) - across(low)) / len(groups)
            left, y = across(low) + index * width + 0.5, up(height)
            css = f"bar c{index} pale" if mark and high <= mark[0] + 1e-9 else f"bar c{index}"
            box = f'x="{left:.1f}" y="{y:.1f}" width="{max(width - 1, 0.5):.1f}" height="{BOTTOM - y:.1f}"'
            says = f"{escape(name)}, {low:.3g} to {high:.3g}: {f'{height:.1%}' if shares else f'{height:,.0f}'}"
            parts.append(f'<rect class="{css}" {box}><title>{says}</title></rect>')
    if mark:
        parts += _mark(across(mark[0]), mark[1])
    inside = [value for value in ticks(first, last) if first - 1e-9 <= value <= last + 1e-9]
    parts += [_text("tick", across(value), BOTTOM + 16, f"{value:g}") for value in inside]
    return _svg(parts, title, HEIGHT)


def interval_chart(intervals: Sequence[Interval], title: str, start: str, end: str) -> Markup:
    """Points with intervals on a scale from `start` at 0% to `end` at 100%."""
    row, top, margin = 34, 26, 20
    bottom = top + 12 + row * len(intervals)
    marks = ticks(min(0.0, *(entry.low for entry in intervals)), max(100.0, *(entry.high for entry in intervals)))
    across = _scale(marks[0], marks[-1], margin, WIDTH - margin)
    parts = [_line("axis", margin, bottom, WIDTH - margin, bottom)]
    for value, name in ((0.0, start), (100.0, end)):
        x = across(value)
        anchor = "start" if x < 60 else "end" if x > WIDTH - 60 else "middle"
        parts += [_line("zero", x, top, x, bottom), _text("label", x, top - 8, name, anchor)]
    for place, interval in enumerate(intervals):
        x, y = across(interval.value), top + 28.0 + row * place
        parts.append(_line(f"line solid c{interval.color}", across(interval.low), y, across(interval.high), y))
        parts.append(f'<circle class="dot c{interval.color}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        label = f"{interval.name} {interval.value:.0f}%".replace("-", "−")
        parts.append(_text("label", min(max(x, 60.0), WIDTH - 60.0), y - 10, label))
    parts += [_text("tick", across(value), bottom + 16, f"{value:.0f}%".replace("-", "−")) for value in marks]
    return _svg(parts, title, bottom + 24)


def smoothed(tokens: np.ndarray, losses: np.ndarray, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Means of consecutive steps, so that at most `points` are left: a noisy curve that an eye can follow."""
    width = math.ceil(len(losses) / points)
    starts = np.arange(0, len(losses), width)
    counts = np.diff([*starts, len(losses)])
    return np.add.reduceat(tokens, starts) / counts, np.add.reduceat(losses, starts) / counts


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """About `number` round values from at most `low` to at least `high`, two at least."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        return ticks(low - 0.5, high + 0.5, number)
    raw = (high - low) / (number - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def compact(value: float) -> str:
    """A count in few characters: 950, 1.2k, 3M, 2.5B, 1T."""
    for power, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g}{unit}"
    return f"{value:.3g}"


def fixed(value: float, among: Sequence[float]) -> str:
    """A value with the decimals that its neighbours on the axis need."""
    decimals = max(len(f"{tick:.10g}".partition(".")[2]) for tick in among)
    return f"{value:.{decimals}f}".replace("-", "−")


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of low..high to start..end."""
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _frame(x_label: str, y_label: str) -> list[str]:
    turned = f'transform="translate(10 {(TOP + BOTTOM) / 2}) rotate(-90)"'
    return [
        _line("axis", LEFT, BOTTOM, RIGHT, BOTTOM),
        _text("label", (LEFT + RIGHT) / 2, HEIGHT - 6, x_label),
        f'<text class="label" {turned} text-anchor="middle">{escape(y_label)}</text>',
    ]


def _mark(x: float, says: str) -> list[str]:
    """A vertical line with what it says."""
    anchor, shift = ("end", -5) if x > (LEFT + RIGHT) / 2 else ("start", 5)
    return [_line("zero", x, TOP, x, BOTTOM), _text("label", x + shift, TOP + 10, says, anchor)]


def _level(y: float, label: str) -> list[str]:
    """A grid line with its tick."""
    return [_line("grid", LEFT, y, RIGHT, y), _text("tick", LEFT - 6, y + 4, label, "end")]


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(css: str, x: float, y: float, content: str, anchor: str = "middle") -> str:
    if anchor == "middle":
        x = min(x, WIDTH - 4 - 3.2 * len(content))  # the last tick's label stays inside
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(parts: Sequence[str], title: str, height: float) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>")
