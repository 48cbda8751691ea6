"""A calibration as a text for people."""

from collections.abc import Callable, Sequence
from typing import Any

from sbp_jax.calibration.held_out import ALONE, BASE, OTHER, OWN

ACROSS = 8  # settings side by side
NAMES = {OWN: "d2 | d1", ALONE: "d2", OTHER: "d2 | random", BASE: "d2, base"}
UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def text(told: dict[str, Any]) -> str:
    """The calibration as tables for the terminal."""
    model = told["model"]
    lines = [f"{model['instance']} {model['key']}, step {model['step']}, engine {told['engine']}", ""]
    if told["held_out"] is not None:
        lines += [*_held_out(told["held_out"]), ""]
    lines += [*_settings(told), "", *_verdict(told)]
    return "\n".join(line.rstrip() for line in lines)


def _held_out(held_out: dict[str, Any]) -> list[str]:
    everything = held_out["all"]
    names, saved = list(everything["bits_per_token"]), list(everything["saved"])
    head = ["similarity", "groups", "seeds", "tokens", *(NAMES[name] for name in names)]
    head += [f"saved over {NAMES[name].replace('d2 | ', '')}" for name in saved]
    rows = [head]
    for part in (*held_out["buckets"], everything):
        bounds = f"{part['from']:.2f} to {part['to']:.2f}" if "from" in part else "all"
        row = [bounds, *(f"{part[name]:,}" for name in ("groups", "seeds", "tokens"))]
        row += [f"{part['bits_per_token'][name]:.3f}" for name in names]
        row += [_interval(part["saved"][name], "+.3f") for name in saved]
        rows.append(row)
    of = f"{everything['groups']:,} of {held_out['groups_available']:,} validation groups"
    lines = [f"Losses of held-out documents in bits a token, {of}", *_table(rows)]
    _, low, high = everything["saved"][OTHER]
    if low is not None and high is not None:
        sure = "helps" if low > 0 else "harms" if high < 0 else "makes no sure difference"
        lines += ["", f"Reading the seed instead of a random document {sure}."]
    return lines


def _settings(told: dict[str, Any]) -> list[str]:
    """The settings side by side, a column each."""
    settings = told["settings"]
    lines = [
        f"Documents written at each setting, {settings[0]['documents']:,} for the same seeds (*: the experiment's)"
    ]
    for start in range(0, len(settings), ACROSS):
        some = settings[start : start + ACROSS]
        rows = [["temperature", *(f"{row['temperature']:g}{' *' if row['own'] else '  '}" for row in some)]]
        rows += [[name, *map(cell, some)] for name, cell in _measures(some)]
        lines += [*_table(rows, gap=3), ""]
    return lines[:-1]


def _measures(settings: Sequence[dict[str, Any]]) -> list[tuple[str, Callable[[dict[str, Any]], str]]]:
    """Names of the lines of the table of settings, and what makes their cells."""

    def share(*path: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: _cell(_at(row, *path), ".1%")

    def number(form: str, *path: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: _cell(_at(row, *path), form)

    rejected = dict.fromkeys(reason for row in settings for reason in row["rejected"])
    lines = [
        ("top-p", number("g", "top_p")),
        ("new tokens, mean", number(",.1f", "mean_new_tokens")),
        ("ended by itself", share("finish", "end")),
        ("cut by length", share("finish", "length")),
        ("went in a circle", share("finish", "loop")),
        ("4-grams repeated", share("repetition")),
        ("words in a row of the seed", number(".1f", "seed_common")),
        ("  the most", number(",", "longest_seed_common")),
        ("shingles of the seed", share("seed_overlap")),
        ("shingles of the capped set", share("copied")),
        ("shingles of held-out text", share("held_out")),
        ("distinct 2-grams", share("distinct_2")),
        ("distinct 4-grams", share("distinct_4")),
        ("copies of earlier ones", share("copies")),
        *((f"rejected: {reason}", _rejected(reason)) for reason in rejected),
        ("accepted", share("accepted")),
        ("tokens left of a document", lambda row: f"{row['whole_run']['accepted_tokens_a_document'][0]:,.1f}"),
        ("oversample needed", lambda row: _cell(row["whole_run"]["oversample_needed"][0], ".2f")),
    ]
    for title, path in (("as configured", "configured"), ("as advised", "advised")):
        run = "whole_run", path
        lines.append((f"whole run {title}", lambda row: ""))
        lines.append(("  oversample", number(".2f", *run, "oversample")))
        lines.append(("  documents", number(",", *run, "documents")))
        lines.append(("  new tokens", number(",", *run, "new_tokens")))
        lines.append(("  tokens read", number(",", *run, "prompt_tokens")))
        lines.append(("  tokens left by the filters", number(",", *run, "accepted_tokens")))
        lines.append(("  time", _hours(path)))
    return lines


def _verdict(told: dict[str, Any]) -> list[str]:
    """Whether the run that is configured writes enough, and what to change."""
    (own,) = (row for row in told["settings"] if row["own"])
    needed, speed, run = told["needed"], told["speed"], own["whole_run"]
    configured, (value, low, high) = run["configured"], run["oversample_needed"]
    lines = [
        f"Measured: {speed['new_tokens_a_second']:,.0f} new tokens a second in {speed['slots']:,} slots"
        f" ({speed['tokens']:,} tokens in {speed['seconds']:.1f} s); prompts are read in that time.",
        f"The arms need {needed['tokens']:,} synthetic tokens. As configured the run writes"
        f" {configured['documents']:,} documents, {configured['new_tokens']:,} new tokens, in"
        f" {_time(configured['hours'])} on this machine, and the filters leave {configured['accepted_tokens']:,}.",
    ]
    if value is None:
        lines.append("They leave none of those written here: see what rejects them before anything is spent.")
        return lines
    sure = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    says = "is enough" if run["suffices"] else "is not enough"
    advised = None if run["advised"] is None else run["advised"]["oversample"]
    advice = "" if advised is None or advised <= configured["oversample"] else f"; {advised:g} is on the safe side"
    lines.append(
        f"synthesis.oversample = {configured['oversample']:g} {says}: by these documents it takes {value:.2f}{sure}"
        f"{advice}."
    )
    return lines


def _hours(path: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: _time(_at(row, "whole_run", path, "hours"))


def _rejected(reason: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f"{row['rejected'].get(reason, 0.0):.1%}"


def _at(row: dict[str, Any], *path: str) -> Any:
    for name in path:
        if row is None:
            return None
        row = row[name]
    return row


def _cell(value: Any, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _interval(estimate: Sequence[float | None], form: str) -> str:
    value, low, high = estimate
    return f"{value:{form}}" if low is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _time(hours: float | None) -> str:
    if hours is None:
        return "–"
    for size, unit in UNITS:
        if hours * 3600 >= size:
            return f"{hours * 3600 / size:,.1f} {unit}"
    return f"{hours * 3600:.1f} s"


def _table(rows: Sequence[Sequence[str]], gap: int = 2) -> list[str]:
    """Lines of cells: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append((" " * gap).join([f"{first:<{widths[0]}}", *cells]))
    return lines
