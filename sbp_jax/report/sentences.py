"""What was found, in sentences."""

from collections.abc import Iterator
from typing import Any

from sbp_jax.config import BASE_ARM, ORACLE_ARM
from sbp_jax.report.losses import TEST

BUDGETS = {"tokens": "at equal training tokens", "flops": "at equal operations"}


def answers(summary: dict[str, Any]) -> list[str]:
    """The gap closed by each arm on the test documents, under each budget, then what the gap is."""
    gain, counts = summary["oracle_gain"], summary["counts"]
    value = f"{gain['nats_per_token']:.4f} nats per token{_interval(gain, '.4f')}"
    lines = [*_gaps(summary)]
    lines.append(f"The {ORACLE_ARM}'s gain over {BASE_ARM}, on {counts['test_documents']:,} test documents: {value}.")
    seeds = len(summary["seeds"])
    luck = f"documents and over the luck of {seeds} seeds"
    if seeds == 1:
        luck = "documents; with one seed for each arm, the luck of training is not in them"
    return [*lines, f"Intervals are of 95%, over the choice of {luck}."]


def _gaps(summary: dict[str, Any]) -> Iterator[str]:
    told = set()
    for gap in summary["gaps"]:
        if gap["set"] != TEST:
            continue
        if gap["closed"] is not None:
            yield _closed(gap)
        elif (key := (gap["budget"], gap["reason"].replace(gap["arm"], ""))) not in told:  # once for all such arms
            told.add(key)
            yield f"{BUDGETS[gap['budget']].capitalize()} the gap closed is undefined, because {gap['reason']}."


def _closed(gap: dict[str, Any]) -> str:
    arm, against, oracle, budget = gap["arm"], gap["against"], gap["oracle"], BUDGETS[gap["budget"]]
    interval = _interval(gap, ".0%")
    if gap["low"] > 0:
        return f"The {arm} arm closed {gap['closed']:.0%} of the gap between {against} and {oracle} {budget}{interval}."
    verdict = "is worse than" if gap["high"] < 0 else "cannot be told from"
    return f"The {arm} arm {verdict} {against} {budget}: gap closed {gap['closed']:.0%}{interval}."


def _interval(value: dict[str, Any], form: str) -> str:
    if value["low"] is None:
        return ""
    return f" (95% interval {format(value['low'], form)} to {format(value['high'], form)})"


def spent(summary: dict[str, Any]) -> str | None:
    """What the arms that took more than their training did, in terms of repetition; None where none did."""
    totals = {row["arm"]: row["flops"]["total"] for row in summary["compute"]}
    more = {row["arm"] for row in summary["compute"] if row["flops"]["total"] > row["flops"]["training"]}
    shown = [row["arm"] for row in summary["arms"] if row["sweep"] is None and row["arm"] in more]
    if BASE_ARM not in totals or not shown:
        return None
    times = ", ".join(f"{arm} {totals[arm] / totals[BASE_ARM]:.2f}" for arm in shown)
    return f"All that an arm took, its synthetic text included, as a multiple of {BASE_ARM}'s operations: {times}."
