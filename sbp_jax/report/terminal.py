"""The summary of a run as text for a terminal."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from sbp_jax.accounting.charges import KINDS
from sbp_jax.config import BASE_ARM
from sbp_jax.report.examples import shortened
from sbp_jax.report.losses import TEST
from sbp_jax.report.sentences import answers, spent

SHOWN = 300  # characters of a document in the terminal
WIDTH = 100
LARGE = 1000  # values from which on digits behind the point say nothing


def text(summary: dict[str, Any]) -> str:
    """The summary as lines for a terminal of 100 columns."""
    lines = [f"{summary['name']}: what are synthetic documents worth?", "", *_table(_arms(summary))]
    uniform = f"{summary['uniform_nats_per_token']:.2f} nats/token"
    lines += [f"A guess at random among {summary['vocabulary']:,} tokens: {uniform}.", ""]
    for answer in answers(summary):
        lines += textwrap.wrap(answer, WIDTH)
    for title, rows in _sections(summary):
        if len(rows) > 1:
            lines += ["", title, *_table(rows)]
    if (told := spent(summary)) is not None:
        lines += textwrap.wrap(told, WIDTH)
    for warning in summary["warnings"]:
        lines += ["", *textwrap.wrap(f"Warning: {warning}", WIDTH)]
    for place, example in enumerate(summary["examples"], 1):
        scores = f"{example['words']:,} words, {example['repetition']:.0%} repeated, {example['copied']:.0%} copied"
        lines += ["", f"Synthetic document {place}: {example['id']}, {scores}"]
        for label, content in (("seed", example["seed_text"]), ("synthetic", example["text"])):
            start = f"  {label:<10} "
            flat = shortened(" ".join(printable(content).split()), SHOWN)
            lines += textwrap.wrap(start + flat, WIDTH, subsequent_indent=" " * len(start)) or [start]
    if summary["note"]:
        lines += ["", *textwrap.wrap(f"Note: {summary['note']}", WIDTH)]
    return "\n".join(lines)


def printable(content: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in content)


Rows = list[tuple[str, ...]]


def _sections(summary: dict[str, Any]) -> Iterator[tuple[str, Rows]]:
    yield "Differences in nats per token, with 95% intervals (below zero: better)", _differences(summary)
    yield "Gap closed, with 95% intervals", _gaps(summary)
    yield "Held-out texts", _texts(summary)
    yield "Tasks, with 95% intervals and what chance gives", _tasks(summary)
    yield "Sweep of the share of synthetic tokens", _shares(summary)
    yield "Sweep of repetition", _repetition(summary)
    yield "Operations of each arm, by what they were spent on", _operations(summary)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal widths, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines


def _arms(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("arm", "seeds", "tokens", "synthetic", "real epochs", "nats/token", "bits/byte", "best validation")]
    for arm in summary["arms"]:
        if arm["sweep"] is not None:
            continue
        synthetic = f"{arm['synthetic_share']:.1%}" if arm["synthetic_share_asked"] else "none"
        best = f"{arm['best_validation']:.3f} at step {arm['best_step']:,}"
        rows.append(
            (
                *(arm["arm"], f"{arm['seeds']}", f"{arm['tokens']:,}", synthetic, f"{arm['real_epochs']:.2f}"),
                *(f"{arm['nats_per_token']:.4f}", f"{arm['bits_per_byte']:.4f}", best),
            )
        )
    return rows


def _differences(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("arm", "minus", "set", "difference", "interval", "over")]
    for entry in summary["comparisons"]:
        found = f"{entry['difference']:+.4f}", _between(entry, "+.4f")
        rows.append((entry["arm"], entry["against"], entry["set"], *found, entry["over"]))
    return rows


def _gaps(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("arm", "set", "equal", "closed", "interval", "between")]
    for gap in summary["gaps"]:
        if gap["set"] == TEST and gap["closed"] is None:
            continue  # a sentence says why
        ends = gap["reason"] or f"{gap['against']}, {gap['oracle']}"
        value = ("undefined", "") if gap["closed"] is None else (f"{gap['closed']:.0%}", _between(gap, ".0%"))
        rows.append((gap["arm"], gap["set"], gap["budget"], *value, ends))
    return rows


def _texts(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("set", "arm", "documents", "nats/token", "interval", "bits/byte", "perplexity")]
    for found in summary["texts"]:
        for arm, loss in found["arms"].items():
            value = f"{loss['nats_per_token']:.4f}", _between(loss, ".4f"), f"{loss['bits_per_byte']:.4f}"
            rows.append((found["set"], arm, f"{found['documents']:,}", *value, f"{loss['perplexity']:,.2f}"))
    return rows


def _tasks(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("task", "metric", "items", "chance", "arm", "value", "interval", f"minus {BASE_ARM}", "interval")]
    for task in summary["tasks"]:
        chance = "–" if task["chance"] is None else f"{task['chance']:.3f}"
        differences = {entry["arm"]: entry for entry in task["differences"] if entry["against"] == BASE_ARM}
        for arm, found in task["arms"].items():
            form = ".3f" if abs(found["value"]) < LARGE else ".4g"  # perplexities of words go far
            value = f"{found['value']:{form}}", _between(found, form)
            other = differences.get(arm)
            signed = ("", "") if other is None else (f"{other['difference']:+{form}}", _between(other, f"+{form}"))
            rows.append((task["task"], task["metric"], f"{task['items']:,}", chance, arm, *value, *signed))
    return rows


def _shares(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("arm", "share", "nats/token", "interval", "validation at its end")]
    for row in summary["sweep"]["shares"]:
        value = f"{row['nats_per_token']:.4f}", _between(row, ".4f"), f"{row['validation']:.4f}"
        rows.append((row["arm"], f"{row['share']:.1%}", *value))
    return rows


def _repetition(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("arm", "weight decay", "epochs", "nats/token", "interval", "validation at its end")]
    for row in summary["sweep"]["repetition"]:
        values = f"{row['nats_per_token']:.4f}", _between(row, ".4f"), f"{row['validation']:.4f}"
        rows.append((row["arm"], f"{row['weight_decay']:g}", f"{row['epochs']:.2f}", *values))
    return rows


def _operations(summary: dict[str, Any]) -> Rows:
    rows: Rows = [("arm", *KINDS, "total")]
    for row in summary["compute"]:
        values = [row["flops"][kind] for kind in (*KINDS, "total")]
        rows.append((row["arm"], *(f"{value:.2e}" if value else "–" for value in values)))
    return rows


def _between(found: dict[str, Any], form: str) -> str:
    if found["low"] is None:
        return "–"
    return f"{format(found['low'], form)} to {format(found['high'], form)}"
