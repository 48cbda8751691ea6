"""Two runs or more side by side: what was set differently, and how far their arms, gaps, ledgers and texts differ.

Differences are those of each run to the first. Where both scored the same documents the interval is that of the paired
differences; else it is made from the two intervals as if they had nothing to do with each other, and is said to be.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.report.losses import TEST, bounds
from sbp_jax.report.runs import Run
from sbp_jax.scoring.scores import Columns, Scores

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
        scored = {run.place: _scored(run, arm) for run in (first, other)}
        if not all(scored.values()):
            why = "the scores of single documents are gone"
        else:
            found = _paired(scored[first.place], scored[other.place])
            if found is not None:
                return found
            why = "other test documents"
    return _unpaired(rows[0], rows[1]) | {"paired": False, "why": why}


def _scored(run: Run, arm: str) -> dict[int, Artifact]:
    """The scores of an arm on the test documents by seed, those that are still there."""
    found = {seed: run.artifact(f"scored/{arm}/{seed}") for seed in run.summary["seeds"]}
    return {seed: artifact for seed, artifact in found.items() if artifact is not None}


def _paired(first: dict[int, Artifact], other: dict[int, Artifact]) -> dict[str, Any] | None:
    """The paired difference, None where the documents are not the same: in bits per byte if the tokenizers differ."""
    tables = [parquet.read(next(iter(runs.values()))).sort_by("ordinal") for runs in (first, other)]
    if not tables[0]["ordinal"].equals(tables[1]["ordinal"]):
        return None
    same = tables[0]["targets"].equals(tables[1]["targets"])
    found = Scores({"first": first, "other": other}, _of_tokens if same else _of_bytes, TEST)
    difference = found.difference("other", "first") or found.of("other") - found.of("first")
    unit = "nats per token" if same else "bits per byte"
    return bounds(difference, "difference") | {"unit": unit, "paired": True, "why": None}


def _of_tokens(scored: Artifact) -> Columns:
    table = parquet.read(scored, ["ordinal", "nats", "targets"])
    return table["ordinal"].to_numpy(), table["nats"].to_numpy(), table["targets"].to_numpy()


def _of_bytes(scored: Artifact) -> Columns:
    table = parquet.read(scored, ["ordinal", "nats", "bytes"])
    return table["ordinal"].to_numpy(), table["nats"].to_numpy() / math.log(2), table["bytes"].to_numpy()


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
                    bounds = [[row.get(f"{name}_low"), row.get(f"{name}_high")] for row in rows]
                    yield entry | {
                        "label": measure["label"],
                        "unit": measure["unit"],
                        "values": values,
                        "bounds": bounds,
                    }
