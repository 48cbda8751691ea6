"""Two runs or more side by side: what was set differently, and how far their arms, gaps, ledgers and texts differ.

Differences are those of each run to the first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sbp_jax.report import compare_losses, compare_tasks
from sbp_jax.report.losses import TEST
from sbp_jax.report.runs import Run

PLACES = ("corpus.paths", "name", "note")  # fields that a run may differ in without being another experiment
THERE, MISSING = "there", "–"  # entries of lists, such as arms, that a run has or lacks
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
        "arms": [compare_losses.of_arm(TEST, name, runs) for name in arms],
        "texts": list(_texts(runs)),
        "gaps": _gaps(runs),
        "ledger": list(_ledger(arms, runs)),
        "counts": [
            {"label": label, "values": [run.summary["counts"].get(name) for run in runs]} for name, label in COUNTS
        ],
        "tasks": list(compare_tasks.scores(runs)),
        "quality": list(_quality(runs)),
    }


def settings(experiments: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Fields that are not the same in all experiments that are known, by dotted names; an arm that one lacks is one."""
    known = [dict(_fields(experiment)) if experiment is not None else None for experiment in experiments]
    names = list(dict.fromkeys(name for fields in known if fields is not None for name in fields))
    found: list[dict[str, Any]] = []
    for name in names:
        values = [None if fields is None else fields.get(name, MISSING) for fields in known]
        there = [value for value in values if value is not None]
        if any(value != there[0] for value in there) and name not in PLACES:
            found.append({"field": name, "values": values})
    lacked = tuple(f"{row['field']}." for row in found if THERE in row["values"] and MISSING in row["values"])
    return [row for row in found if not row["field"].startswith(lacked)]


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every field of an experiment as text; entries of lists that have names go by them."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if name or key != "execution":
                yield from _fields(entry, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict) and "name" in value[0]:
        for entry in value:
            yield f"{name}.{entry['name']}", THERE
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


def _texts(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Every text set: how many documents of it each run scored, None where it has none, and the losses of the arms."""
    for name in dict.fromkeys(text["set"] for run in runs for text in run.summary["texts"]):
        own = [next((text for text in run.summary["texts"] if text["set"] == name), None) for run in runs]
        arms = dict.fromkeys(arm for text in own if text is not None for arm in text["arms"])
        documents = [None if text is None else text["documents"] for text in own]
        losses = [compare_losses.of_arm(name, arm, runs) for arm in arms]
        yield {"set": name, "documents": documents, "arms": losses}


def _gaps(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found: dict[tuple[str, ...], list[dict[str, Any] | None]] = {}
    for place, run in enumerate(runs):
        for gap in run.summary["gaps"]:
            key = gap["arm"], gap["set"], gap["budget"]
            found.setdefault(key, [None] * len(runs))[place] = gap
    return [dict(zip(("arm", "set", "budget"), key, strict=True), values=gaps) for key, gaps in found.items()]


def _ledger(arms: Sequence[str], runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for arm in arms:
        rows = [compare_losses.row(run, TEST, arm) for run in runs]
        for name, label in LEDGER:
            values = [None if row is None else row[name] for row in rows]
            if name != "synthetic_share" or any(values):
                yield {"arm": arm, "label": label, "values": values, "unit": "share" if "share" in name else ""}
        spent = [
            next((row["flops"]["total"] for row in run.summary["compute"] if row["arm"] == arm), None) for run in runs
        ]
        if any(value is not None for value in spent):
            yield {"arm": arm, "label": "operations of all stages", "values": spent, "unit": "operations"}


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
                    bounds = [[row.get(f"{name}_low"), row.get(f"{name}_high")] for row in rows]
                    yield entry | {
                        "label": measure["label"],
                        "unit": measure["unit"],
                        "values": values,
                        "bounds": bounds,
                    }
