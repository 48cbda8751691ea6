"""Rows of a chart: values with their intervals on one scale (a forest plot), and bars stacked from parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from sbp_jax.report.svg import WIDTH, dot, fitted, fixed, image, line, scale, text, ticks

NAMES = 94  # width of the column of names
VALUES = 118  # width of the column of values
ROW, BAR = 32, 26  # height of a row of intervals, and of bars


@dataclass(frozen=True)
class Interval:
    """A value with its bounds, None where there are none.

    Attributes:
      words, between: the value and its interval, as they stand beside the chart.
    """

    name: str
    color: int
    value: float
    low: float | None
    high: float | None
    words: str
    between: str = ""


@dataclass(frozen=True)
class Stack:
    """A bar of parts, (name, color, value) each."""

    name: str
    parts: tuple[tuple[str, int, float], ...]
    words: str


def intervals(
    rows: Sequence[Interval], title: str, marks: Sequence[tuple[float, str]], better: tuple[str, str] = ("", "")
) -> Markup:
    """One row for each value, its words on the right.

    Args:
      marks: vertical lines with their names, which belong to the picture.
      better: what is said at the left and right end of the axis.
    """
    known = [bound for row in rows for bound in (row.value, row.low, row.high) if bound is not None]
    values = ticks(min(known + [at for at, _ in marks]), max(known + [at for at, _ in marks]), 4)
    across = scale(values[0], values[-1], NAMES + 8, WIDTH - VALUES - 10)
    top, bottom = 24.0, 24.0 + ROW * len(rows) + 4
    parts = [line("grid", across(value), top, across(value), bottom) for value in values]
    parts.append(line("axis", across(values[0]), bottom, across(values[-1]), bottom))
    for at, name in marks:
        anchor = "start" if across(at) < NAMES + 40 else "end" if across(at) > WIDTH - VALUES - 40 else "middle"
        parts.append(line("zero", across(at), top - 4, across(at), bottom))
        parts.append(text("label", across(at), top - 9, name, anchor))
    for place, row in enumerate(rows):
        y = top + ROW * (place + 0.5) + 2
        parts.append(text("label", 0, y + 4, fitted(row.name, NAMES), "start"))
        parts.append(text("value", WIDTH, y - 1 if row.between else y + 4, row.words, "end"))
        if row.between:
            parts.append(text("tick", WIDTH, y + 11, row.between, "end"))
        if row.low is not None and row.high is not None:
            parts.append(line(f"line solid c{row.color}", across(row.low), y, across(row.high), y))
        parts.append(dot(f"dot c{row.color}", across(row.value), y, 4.5, f"{row.name}: {row.words} {row.between}"))
    parts += [text("tick", across(value), bottom + 16, fixed(value, values)) for value in values]
    left, right = better
    parts.append(text("tick", across(values[0]), bottom + 32, left, "start"))
    parts.append(text("tick", across(values[-1]), bottom + 32, right, "end"))
    return image(parts, title, bottom + (38 if left or right else 22))


def stacked(rows: Sequence[Stack], title: str, show: Callable[[float], str]) -> Markup:
    """One bar for each row, from 0, its words on the right.

    Args:
      show: a value in words, for who points at a part.
    """
    most = max((sum(value for _, _, value in row.parts) for row in rows), default=0.0) or 1.0
    across = scale(0.0, most, NAMES + 4, WIDTH - 62)
    parts = []
    for place, row in enumerate(rows):
        y, reached = 4.0 + BAR * place, 0.0
        parts.append(text("label", 0, y + 14, fitted(row.name, NAMES), "start"))
        for name, color, value in row.parts:
            left, right = across(reached), across(reached + value)
            reached += value
            if value > 0:
                box = f'x="{left:.2f}" y="{y + 2:.1f}" width="{max(right - left, 0.4):.2f}" height="{BAR - 9}"'
                says = escape(f"{row.name}, {name}: {show(value)}")
                parts.append(f'<rect class="bar c{color}" {box}><title>{says}</title></rect>')
        parts.append(text("value", WIDTH, y + 14, row.words, "end"))
    return image(parts, title, BAR * len(rows) + 6)
