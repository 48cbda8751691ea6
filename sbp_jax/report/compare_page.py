"""A comparison of runs as one HTML page that needs nothing but itself."""

from typing import Any

from markupsafe import Markup

from sbp_jax.report import forest
from sbp_jax.report.compare_text import between, budget, cell
from sbp_jax.report.environment import environment, signed
from sbp_jax.report.forest import Interval
from sbp_jax.report.svg import COLORS


def render(compared: dict[str, Any]) -> str:
    """The page; a function of the comparison alone."""
    made = environment()
    made.filters |= {"cell": cell, "between": between, "budget": budget}
    context = {"compared": compared, "runs": compared["runs"], "charts": _charts(compared)}
    return made.get_template("compare.html").render(context)


def _charts(compared: dict[str, Any]) -> list[tuple[str, Markup]]:
    """For each run but the first and each unit the differences of its arms to the first run's, a row an arm."""
    first, charts = compared["runs"][0]["name"], []
    for place, run in enumerate(compared["runs"][1:], 1):
        for unit in ("nats per token", "bits per byte"):
            rows = []
            for color, arm in enumerate(compared["arms"]):
                found = arm["differences"][place]
                if found is not None and found["unit"] == unit:
                    value, low, high = found["difference"], found["low"], found["high"]
                    told = signed(value), between(found)
                    rows.append(Interval(arm["arm"], color % COLORS, value, low, high, *told))
            if rows:
                title = f"Test loss of {run['name']} minus that of {first}, {unit}"
                charts.append((title, forest.intervals(rows, title, [(0.0, first)], ("better", "worse"))))
    return charts
