"""Inline SVG for charts: axes, scales, ticks and labels. Colours come from the page's style sheet.

All charts have one width, so that their text stays readable on a phone, where a chart fills the screen.
"""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 262
LEFT, RIGHT, TOP, BOTTOM = 58, 408, 12, 218  # of the plot inside its axes
COLORS = 10  # in the style sheet, each with a dash pattern of its own
LETTER = 5.9  # width of a character of a label, about


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
    """A count in few characters: 950, 1.2k, 3M, 2.5B, 1T; from a quadrillion on, as operations are, 2.5e+17."""
    for power, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if power <= value < 1e15:
            return f"{value / power:.3g}{unit}"
    return f"{value:.3g}"


def fixed(value: float, among: Sequence[float]) -> str:
    """A value with the decimals that its neighbours on the axis need."""
    decimals = max(len(f"{tick:.10g}".partition(".")[2]) for tick in among)
    return f"{value:z.{decimals}f}".replace("-", "−")


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of low..high to start..end."""
    return lambda value: start + (end - start) * (value - low) / (high - low)


def frame(x_label: str, y_label: str) -> list[str]:
    """The horizontal axis, and what both axes are."""
    turned = f'transform="translate(10 {(TOP + BOTTOM) / 2}) rotate(-90)"'
    return [
        line("axis", LEFT, BOTTOM, RIGHT, BOTTOM),
        text("label", (LEFT + RIGHT) / 2, HEIGHT - 6, x_label),
        f'<text class="label" {turned} text-anchor="middle">{escape(y_label)}</text>',
    ]


def mark(x: float, says: str) -> list[str]:
    """A vertical line with what it says."""
    anchor, shift = ("end", -5) if x > (LEFT + RIGHT) / 2 else ("start", 5)
    return [line("zero", x, TOP, x, BOTTOM), text("label", x + shift, TOP + 10, says, anchor)]


def level(y: float, label: str) -> list[str]:
    """A grid line with its tick."""
    return [line("grid", LEFT, y, RIGHT, y), text("tick", LEFT - 6, y + 4, label, "end")]


def line(css: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def dot(css: str, x: float, y: float, radius: float = 4, says: str = "") -> str:
    title = f"<title>{escape(says)}</title>" if says else ""
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{title}</circle>'


def text(css: str, x: float, y: float, content: str, anchor: str = "middle") -> str:
    if anchor == "middle":
        x = min(x, WIDTH - 4 - 3.2 * len(content))  # the last tick's label stays inside
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def fitted(content: str, width: float) -> str:
    """A label cut to about `width`."""
    letters = max(int(width / LETTER), 2)
    return content if len(content) <= letters else f"{content[: letters - 1]}…"


def image(parts: Sequence[str], title: str, height: float = HEIGHT) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>")
