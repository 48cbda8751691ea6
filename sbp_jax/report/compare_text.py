"""A comparison of runs for a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sbp_jax.report.environment import percent, signed
from sbp_jax.report.summary import printable
from sbp_jax.report.svg import compact

CUT = 40  # characters of a setting


def show(compared: dict[str, Any], console: Console) -> None:
    """Prints the settings that differ, the arms, the gaps, the ledgers and the quality of synthetic text."""
    names = [run["name"] for run in compared["runs"]]
    for run in compared["runs"]:
        about = f"{run['seeds']} seed{'s' if run['seeds'] > 1 else ''}, {compact(run['parameters'])} parameters"
        console.print(
            Text(f"{printable(run['name'])}: {run['place']}, {about}, {run['test_documents']:,} test documents")
        )
    if compared["settings"]:
        table = _table(console, "Settings that differ", "field", *names)
        for row in compared["settings"]:
            table.add_row(Text(row["field"]), *(Text(_cut(value)) for value in row["values"]))
        console.print(table)
    elif not compared["unknown_settings"]:
        console.print("\nAll settings are the same.")
    if compared["unknown_settings"]:
        console.print(f"\nThe settings of {', '.join(compared['unknown_settings'])} are not known: a summary alone.")
    _arms(compared, names, console)
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
        table = _table(console, "Tasks", "task", "chance", "arm", *names)
        for row in compared["tasks"]:
            scores = ("" if value is None else f"{value['value']:.4g} {_interval(value)}" for value in row["values"])
            table.add_row(f"{row['task']} {row['metric']}", cell(row["chance"]), row["arm"], *scores)
        console.print(table)
    if compared["quality"]:
        table = _table(console, "Quality of synthetic text", "pairs", "documents", "measure", *names)
        for row in compared["quality"]:
            cells = []
            for value, (low, high) in zip(row["values"], row["bounds"], strict=True):
                interval = "" if low is None else f" ({cell(low, row['unit'])} to {cell(high, row['unit'])})"
                cells.append(cell(value, row["unit"]) + interval)
            table.add_row(row["pairs"], row["group"].replace("_", " "), row["label"], *cells)
        console.print(table)


def _arms(compared: dict[str, Any], names: list[str], console: Console) -> None:
    columns = [
        column for place, name in enumerate(names) for column in ([name] if place == 0 else [name, "minus first"])
    ]
    table = _table(console, f"Test loss, nats per token; differences to {names[0]}", "arm", *columns)
    reasons = {}
    for arm in compared["arms"]:
        cells = []
        for place, row in enumerate(arm["values"]):
            cells.append("" if row is None else f"{row['nats_per_token']:.4f}")
            if place:
                found = arm["differences"][place]
                if found is None:
                    cells.append("")
                    continue
                star = "" if found["paired"] else " *"
                cells.append(f"{signed(found['difference'])} ({between(found)}){star}".replace(" ()", ""))
                if not found["paired"]:
                    reasons[f"{names[place]}: {found['why']}"] = found["unit"]
        table.add_row(arm["arm"], *cells)
    console.print(table)
    for reason, unit in reasons.items():
        console.print(f"* {reason}; the difference is in {unit}, its interval is not paired.")


def between(found: dict[str, Any]) -> str:
    """The interval of a difference in words, nothing where there is none."""
    return "" if found["low"] is None else f"{signed(found['low'])} to {signed(found['high'])}"


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
