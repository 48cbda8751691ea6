"""The answer of an experiment for the first screen of the page: how much of the gap was closed, how surely."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from sbp_jax.config import BASE_ARM, ORACLE_ARM
from sbp_jax.report import forest
from sbp_jax.report.environment import percent, signed
from sbp_jax.report.forest import Interval

TEST = "test"  # the set of test documents
BUDGETS = {"tokens": "at equal training tokens", "flops": "at equal operations, those of all stages counted"}


def main_arm(summary: dict[str, Any]) -> str | None:
    """The arm that the page is about: the first with synthetic text from related pairs, else the first with a gap."""
    compared = [gap["arm"] for gap in summary["gaps"] if gap["set"] == TEST]
    known = {row["arm"]: row for row in summary["arms"]}
    plain = [
        name
        for name in compared
        if known[name]["synthetic_share_asked"] and known[name]["pairs"] == "related" and known[name]["base"] is None
    ]
    return (plain or compared or [None])[0]


def headline(summary: dict[str, Any]) -> str:
    """The result in a few words."""
    arm = main_arm(summary)
    gap = _gap(summary, arm, "tokens")
    if gap is None:
        return f"{ORACLE_ARM.capitalize()} against {BASE_ARM}"
    if gap["closed"] is None:
        return "The gap is undefined"
    return f"The {arm} arm {_verdict(gap)}"


def cards(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The gap that the main arm closed under each budget, and its difference to repetition, in words."""
    arm = main_arm(summary)
    found = []
    for budget, title in BUDGETS.items():
        gap = _gap(summary, arm, budget)
        if gap is not None:
            found.append({"arm": arm, "title": title, "what": "Gap closed by"} | _words(gap))
    difference = next((entry for entry in summary["comparisons"] if _is(entry, arm)), None)
    if difference is not None:
        found.append(_difference(difference))
    return found


def _is(entry: dict[str, Any], arm: str | None) -> bool:
    return (entry["arm"], entry["against"], entry["set"]) == (arm, BASE_ARM, TEST)


def _difference(entry: dict[str, Any]) -> dict[str, Any]:
    """Whether the main arm beats repetition at all, which is known where the gap is undefined too."""
    low, high = entry["low"], entry["high"]
    sure = low is not None and (low > 0 or high < 0)
    verdict = f"cannot be told from {BASE_ARM}"
    if sure:
        verdict = f"better than {BASE_ARM}" if high < 0 else f"worse than {BASE_ARM}"
    interval = None if low is None else f"{signed(low)} to {signed(high)} nats per token: {verdict}"
    said = {"what": "Test loss of", "arm": entry["arm"], "title": f"minus that of {BASE_ARM}"}
    return said | {"value": signed(entry["difference"]), "interval": interval, "reason": None, "against": ""}


def rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The gap of every arm on every set: by arm and set, in words for each budget that was asked for."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for gap in summary["gaps"]:
        row = found.setdefault((gap["arm"], gap["set"]), {"arm": gap["arm"], "set": gap["set"]})
        row[gap["budget"]] = _words(gap)
    return [dict.fromkeys(BUDGETS) | row for row in found.values()]


def reasons(summary: dict[str, Any]) -> dict[str, list[str]]:
    """Why gaps are undefined, on the `test` documents and on `others`: each reason once, with the arms that it is of.

    Of reasons that differ in the arm's name alone that of the first arm is told.
    """
    found: dict[tuple[str, str, str], tuple[str, list[str]]] = {}
    for gap in summary["gaps"]:
        if gap["reason"]:
            where, unnamed = ("test" if gap["set"] == TEST else "others"), gap["reason"].replace(gap["arm"], "")
            _, arms = found.setdefault((where, gap["budget"], unnamed), (gap["reason"], []))
            if gap["arm"] not in arms:
                arms.append(gap["arm"])
    told: dict[str, list[str]] = {"test": [], "others": []}
    for (where, budget, _), (reason, arms) in found.items():
        told[where].append(f"for {', '.join(arms)} {BUDGETS[budget].partition(',')[0]}: {reason}")
    return told


def _gap(summary: dict[str, Any], arm: str | None, budget: str) -> dict[str, Any] | None:
    for gap in summary["gaps"]:
        if (gap["arm"], gap["set"], gap["budget"]) == (arm, TEST, budget):
            return gap
    return None


def _words(gap: dict[str, Any]) -> dict[str, Any]:
    if gap["closed"] is None:
        return {
            "value": "undefined",
            "interval": None,
            "reason": gap["reason"].partition(";")[0],
            "against": _against(gap),
        }
    value, interval = percent(gap["closed"], 0), None
    if gap["low"] is not None:
        interval = f"{percent(gap['low'], 0)} to {percent(gap['high'], 0)}"
    return {"value": value, "interval": interval, "reason": None, "against": _against(gap)}


def _against(gap: dict[str, Any]) -> str:
    return "" if gap["against"] in (BASE_ARM, None) else gap["against"]


def _verdict(gap: dict[str, Any]) -> str:
    if gap["low"] is not None and gap["low"] > 0:
        return f"closed {percent(gap['closed'], 0)} of the gap"
    worse = gap["high"] is not None and gap["high"] < 0
    return f"is worse than {BASE_ARM}" if worse else f"cannot be told from {BASE_ARM}"


def differences_chart(summary: dict[str, Any], colors: Mapping[str, int]) -> Markup | None:
    """Loss of every arm minus that of repetition on the test documents, a row each."""
    found = [entry for entry in summary["comparisons"] if entry["set"] == TEST and entry["against"] == BASE_ARM]
    shown = [entry for entry in found if entry["arm"] in colors]
    if not shown:
        return None
    intervals = []
    for entry in shown:
        value, low, high = entry["difference"], entry["low"], entry["high"]
        between = "" if low is None else f"{signed(low)} to {signed(high)}"
        row = Interval(entry["arm"], colors[entry["arm"]], value, low, high, signed(value), between)
        intervals.append(row)
    title = f"Loss of each arm minus that of {BASE_ARM}, with 95% intervals"
    return forest.intervals(intervals, title, [(0.0, BASE_ARM)], ("better", "worse"))


def asked(row: dict[str, Any]) -> str:
    """The question that an arm answers, in a sentence."""
    share = row["synthetic_share_asked"]
    if row["arm"] == BASE_ARM:
        return "What do the real documents give, read again and again? The others are compared with it."
    if row["flops_of"]:
        return f"What would {row['arm'] if share else 'repetition'} give for all the operations of {row['flops_of']}?"
    if row["real"] == "oracle" and not share:
        return "What would new real documents give? The most that synthetic ones can stand in for."
    if row["layout"] == "in_context" and not share:
        return "Control: does it do to lay related real documents side by side, with nothing written?"
    if not share:
        return "Repetition with other settings: is the arm that all are compared with as strong as it can be?"
    if row["pairs"] == "random":
        return "Control: does it matter that the pairs are related?"
    if row["pairs"] == "none":
        return "Control: does what the base model writes of itself, with no pairs, do as well?"
    if row["base"]:
        return f"Another round: does a synthesizer that starts from the {row['base']} arm's model write better?"
    if row["order"] == "staged":
        return "Does it help to read synthetic text first and real text last?"
    if row["layout"] == "megadoc":
        return "Does it help to read all documents of a seed as one, the real one last?"
    return "Do synthetic documents, written after reading related ones, stand in for real ones?"
