"""A comparison of runs for a terminal."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sbp_jax.report.environment import difference, percent
from sbp_jax.report.summary import printable
from sbp_jax.report.svg import compact

CUT = 40  # characters of a setting


def show(compared: dict[str, Any], console: Console) -> None:
    """Prints what differs in settings, losses, gaps, ledgers, tasks and the quality of synthetic text."""
    names = [run["name"] for run in compared["runs"]]
    for run in compared["runs"]:
        about = f"{run['seeds']} seed{'s' if run['seeds'] > 1 else ''}, {compact(run['parameters'])} parameters"
        console.print(
            Text(f"{printable(run['name'])}: {run['place']}, {about}, {run['test_documents']:,} test documents")
        )
    _settings(compared, names, console)
    _losses("Test loss", compared["arms"], names, console)
    for text in compared["texts"]:
        sizes = ", ".join("none" if size is None else f"{size:,}" for size in text["documents"])
        _losses(f"Loss on {text['set']} ({sizes} documents)", text["arms"], names, console)
    if compared["gaps"]:
        table = _table(console, "Gap closed", "arm", "set", "at equal", *names)
        for row in compared["gaps"]:
            table.add_row(row["arm"], row["set"], budget(row["budget"]), *(gap(value) for value in row["values"]))
        console.print(table)
    table = _table(console, "Ledger", "arm", "", *names)
    for row in compared["ledger"]:
        table.add_row(row["arm"], row["label"], *(cell(value, row["unit"]) for value in row["values"]))
    for row in compared["counts"]:
        table.add_row("", row["label"], *(cell(value) for value in row["values"]))
    console.print(table)
    if compared["tasks"]:
        _tasks(compared["tasks"], names, console)
    if compared["quality"]:
        _quality(compared["quality"], names, console)


def _settings(compared: dict[str, Any], names: list[str], console: Console) -> None:
    if compared["settings"]:
        table = _table(console, "Settings that differ", "field", *names)
        for row in compared["settings"]:
            table.add_row(Text(row["field"]), *(Text(_cut(value)) for value in row["values"]))
        console.print(table)
    elif not compared["unknown_settings"]:
        console.print("\nAll settings are the same.")
    if compared["unknown_settings"]:
        console.print(f"\nThe settings of {', '.join(compared['unknown_settings'])} are not known: a summary alone.")


def _losses(title: str, arms: list[dict[str, Any]], names: list[str], console: Console) -> None:
    table = _table(console, f"{title}, nats per token; differences to {names[0]}", "arm", *_columns(names))
    for arm in arms:
        losses = ("" if row is None else f"{row['nats_per_token']:.4f}" for row in arm["values"])
        table.add_row(arm["arm"], *_with_differences(losses, arm["differences"]))
    console.print(table)
    _reasons(arms, names, console)


def _tasks(rows: list[dict[str, Any]], names: list[str], console: Console) -> None:
    table = _table(console, f"Tasks; differences to {names[0]}", "task", "chance", "arm", *_columns(names))
    for row in rows:
        scores = ("" if value is None else f"{value['value']:.4g} {_interval(value)}" for value in row["values"])
        lower = " (lower is better)" if row["higher_is_better"] is False else ""
        cells = _with_differences(scores, row["differences"])
        table.add_row(f"{row['task']} {row['metric']}{lower}", cell(row["chance"]), row["arm"], *cells)
    console.print(table)
    _reasons(rows, names, console)


def _quality(rows: list[dict[str, Any]], names: list[str], console: Console) -> None:
    table = _table(console, "Quality of synthetic text", "pairs", "documents", "measure", *names)
    for row in rows:
        cells = []
        for value, (low, high) in zip(row["values"], row["bounds"], strict=True):
            interval = "" if low is None else f" ({cell(low, row['unit'])} to {cell(high, row['unit'])})"
            cells.append(cell(value, row["unit"]) + interval)
        table.add_row(row["pairs"], row["group"].replace("_", " "), row["label"], *cells)
    console.print(table)


def _columns(names: list[str]) -> list[str]:
    """A column for each run, and one more for its difference to the first."""
    return [names[0], *(column for name in names[1:] for column in (name, "minus first"))]


def _with_differences(values: Iterable[str], differences: list[dict[str, Any] | None]) -> Iterator[str]:
    for place, (value, found) in enumerate(zip(values, differences, strict=True)):
        yield value
        if place and found is None:
            yield ""
        elif found is not None:
            star = "" if found["paired"] else " *"
            yield f"{difference(found['difference'])} ({between(found)}){star}".replace(" ()", "")


def _reasons(rows: list[dict[str, Any]], names: list[str], console: Console) -> None:
    """Why differences have a star, each reason once."""
    reasons: dict[str, str] = {}
    for row in rows:
        for name, found in zip(names, row["differences"], strict=True):
            if found is not None and not found["paired"]:
                unit = f"the difference is in {found['unit']}, " if found["unit"] else ""
                reasons[f"{name}: {found['why']}"] = unit
    for reason, unit in reasons.items():
        console.print(Text(printable(f"* {reason}; {unit}its interval is not paired.")))


def between(found: dict[str, Any]) -> str:
    """The interval of a difference in words, nothing where there is none."""
    return "" if found["low"] is None else f"{difference(found['low'])} to {difference(found['high'])}"


def budget(name: str) -> str:
    return {"tokens": "tokens", "flops": "operations"}[name]


def gap(value: dict[str, Any] | None) -> str:
    """A gap closed in words."""
    if value is None:
        return ""
    if value["closed"] is None:
        return f"undefined: {value['reason']}"
    interval = "" if value["low"] is None else f" ({percent(value['low'], 0)} to {percent(value['high'], 0)})"
    return f"{percent(value['closed'], 0)}{interval}"


def cell(value: float | None, unit: str = "") -> str:
    """A number of a ledger or a measure."""
    if value is None:
        return ""
    if unit == "share":
        return percent(value)
    if unit == "operations":
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4g}"


def _interval(value: dict[str, Any]) -> str:
    return "" if value["low"] is None else f"({value['low']:.4g} to {value['high']:.4g})"


def _cut(value: str | None) -> str:
    if value is None:
        return "?"
    return value if len(value) <= CUT else f"{value[: CUT - 1]}…"


def _table(console: Console, title: str, *columns: str) -> Table:
    """A table whose title is printed first; words to the left, numbers as they come."""
    console.print(Text(f"\n{title}", "bold"))
    table = Table(box=None, pad_edge=False, header_style="bright_black", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(printable(column)), overflow="fold")
    return table
