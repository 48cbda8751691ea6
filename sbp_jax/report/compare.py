"""Two runs or more side by side: what was set differently, and how far their arms, gaps, ledgers and texts differ.

Differences are those of each run to the first. Where both scored the same documents the interval is that of the paired
differences; else it is made from the two intervals as if they had nothing to do with each other, and is said to be.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sbp_jax.report.results import document_losses
from sbp_jax.report.runs import Run
from sbp_jax.scoring.ratio import ratio

PLACES = ("corpus.paths", "name", "note")  # fields that a run may differ in without being another experiment
LEDGER = (
    ("tokens", "training tokens"),
    ("synthetic_share", "synthetic share seen"),
    ("real_epochs", "epochs of real text"),
    ("steps", "steps"),
)
COUNTS = (
    ("documents", "documents"),
    ("accepted_pairs", "accepted pairs"),
    ("generated", "synthetic documents"),
    ("accepted_synthetic", "accepted synthetic documents"),
)


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the page and the terminal say, as JSON values; lists `values` have an entry for each run."""
    arms = list(dict.fromkeys(row["arm"] for run in runs for row in run.summary["arms"]))
    return {
        "runs": [_run(run) for run in runs],
        "settings": settings([run.experiment for run in runs]),
        "unknown_settings": [run.name for run in runs if run.experiment is None],
        "arms": [_arm(name, runs) for name in arms],
        "gaps": _gaps(runs),
        "ledger": list(_ledger(arms, runs)),
        "counts": [
            {"label": label, "values": [run.summary["counts"].get(name) for run in runs]} for name, label in COUNTS
        ],
        "tasks": list(_tasks(runs)),
        "quality": list(_quality(runs)),
    }


def settings(experiments: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Fields that are not the same in all experiments that are known, by dotted names."""
    known = [dict(_fields(experiment)) if experiment is not None else None for experiment in experiments]
    names = list(dict.fromkeys(name for fields in known if fields is not None for name in fields))
    found = []
    for name in names:
        values = [None if fields is None else fields.get(name, "–") for fields in known]
        there = [value for value in values if value is not None]
        if any(value != there[0] for value in there) and name not in PLACES:
            found.append({"field": name, "values": values})
    return found


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every field of an experiment as text; entries of lists that have names go by them."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if name or key != "execution":
                yield from _fields(entry, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict) and "name" in value[0]:
        for entry in value:
            yield from _fields({key: inner for key, inner in entry.items() if key != "name"}, f"{name}.{entry['name']}")
    elif isinstance(value, list | tuple):
        yield name, ", ".join(map(str, value)) or "none"
    else:
        yield name, "none" if value is None else str(value)


def _run(run: Run) -> dict[str, Any]:
    summary = run.summary
    return {
        "name": run.name,
        "place": run.place,
        "seeds": len(summary["seeds"]),
        "parameters": summary["parameters"],
        "test_documents": summary["test"]["documents"],
        "vocabulary": summary["vocabulary"],
        "warnings": summary["warnings"],
    }


def _arm(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """An arm in each run, None where it has none, and the differences to the first run."""
    rows = [_row(run, name) for run in runs]
    return {
        "arm": name,
        "values": rows,
        "differences": [None] + [_difference(name, runs[0], run) for run in runs[1:]],
    }


def _row(run: Run, arm: str) -> dict[str, Any] | None:
    return next((row for row in run.summary["arms"] if row["arm"] == arm), None)


def _difference(arm: str, first: Run, other: Run) -> dict[str, Any] | None:
    """Loss of an arm in one run minus that in the first: `difference`, `low`, `high`, `unit`, `paired`, `why`."""
    rows = _row(first, arm), _row(other, arm)
    if rows[0] is None or rows[1] is None:
        return None
    why = None
    if first.keys.get("documents") is None or first.keys["documents"] != other.keys.get("documents"):
        why = "the corpora are not known to be the same"
    else:
        scored = [_scored(run, arm) for run in (first, other)]
        if scored[0] is None or scored[1] is None:
            why = "the scores of single documents are gone"
        elif not np.array_equal(scored[0]["ordinals"], scored[1]["ordinals"]):
            why = "other test documents"
        else:
            return _paired(scored[0], scored[1])
    return _unpaired(rows[0], rows[1]) | {"paired": False, "why": why}


def _scored(run: Run, arm: str) -> dict[str, np.ndarray] | None:
    """Nats of each test document, the mean over seeds, with its ordinal, targets and, where known, bytes."""
    found = [run.artifact(f"scored/{arm}/{seed}") for seed in run.summary["seeds"]]
    made = [artifact for artifact in found if artifact is not None]
    if not made:
        return None
    losses = document_losses(made)
    return {"ordinals": losses.ordinals, "nats": losses.nats, "targets": losses.targets}


def _paired(first: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, Any]:
    found = ratio(other["nats"] - first["nats"], first["targets"], first["ordinals"])
    return {
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "unit": "nats per token",
        "paired": True,
        "why": None,
    }


def _unpaired(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """In bits per byte, which do not depend on the tokenizer."""
    widths = []
    for row in (first, other):
        if row["low"] is None:
            continue
        scale = row["bits_per_byte"] / row["nats_per_token"]
        widths.append((row["high"] - row["low"]) / 2 * scale)
    difference = other["bits_per_byte"] - first["bits_per_byte"]
    width = math.hypot(*widths) if len(widths) == 2 else None
    low, high = (None, None) if width is None else (difference - width, difference + width)
    return {"difference": difference, "low": low, "high": high, "unit": "bits per byte"}


def _gaps(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found: dict[tuple[str, ...], list[dict[str, Any] | None]] = {}
    for place, run in enumerate(runs):
        for gap in run.summary["gaps"]:
            key = gap["arm"], gap["set"], gap["budget"]
            found.setdefault(key, [None] * len(runs))[place] = gap
    return [dict(zip(("arm", "set", "budget"), key, strict=True), values=gaps) for key, gaps in found.items()]


def _ledger(arms: Sequence[str], runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for arm in arms:
        rows = [_row(run, arm) for run in runs]
        for name, label in LEDGER:
            values = [None if row is None else row[name] for row in rows]
            if name != "synthetic_share" or any(values):
                yield {"arm": arm, "label": label, "values": values, "unit": "share" if "share" in name else ""}
        spent = [
            next((row["flops"]["total"] for row in run.summary["compute"] if row["arm"] == arm), None) for run in runs
        ]
        if any(value is not None for value in spent):
            yield {"arm": arm, "label": "operations of all stages", "values": spent, "unit": "operations"}


def _tasks(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    tasks = list(dict.fromkeys((task["task"], task["metric"]) for run in runs for task in run.summary["tasks"]))
    for name, metric in tasks:
        own = [
            next((t for t in run.summary["tasks"] if (t["task"], t["metric"]) == (name, metric)), None) for run in runs
        ]
        chance = next((task["chance"] for task in own if task is not None), None)
        arms = list(dict.fromkeys(arm for task in own if task is not None for arm in task["arms"]))
        for arm in arms:
            values = [None if task is None else task["arms"].get(arm) for task in own]
            yield {"task": name, "metric": metric, "chance": chance, "arm": arm, "values": values}


def _quality(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    kinds = list(dict.fromkeys(entry["suffix"] for run in runs for entry in run.summary["quality"]))
    for suffix in kinds:
        own = [next((entry for entry in run.summary["quality"] if entry["suffix"] == suffix), None) for run in runs]
        told = [entry for entry in own if entry is not None]
        measures = {name: measure for entry in reversed(told) for name, measure in entry["measures"].items()}
        for group in dict.fromkeys(row["group"] for entry in told for row in entry["rows"]):
            rows: list[dict[str, Any]] = [
                {} if entry is None else next((row for row in entry["rows"] if row["group"] == group), {})
                for entry in own
            ]
            for name, measure in measures.items():
                values = [row.get(name) for row in rows]
                if any(value is not None for value in values):
                    entry = {"pairs": told[0]["pairs"], "base": told[0]["base"], "group": group}
                    yield entry | {"label": measure["label"], "unit": measure["unit"], "values": values}
