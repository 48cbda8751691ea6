"""Answers of the arms to tasks, beside chance: values, differences and gaps with their intervals.

A metric that is a mean over items, or a function of one, is resampled over the items and the seeds; one that the
harness puts together otherwise has its value alone. The average accuracy, which the paper's gap is of, is the mean over
the tasks that ask questions.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import Arm
from sbp_jax.report.losses import bounds, contrasts, gaps
from sbp_jax.report.results import Runs
from sbp_jax.scoring.scores import Average, Function, Scores
from sbp_jax.scoring.share import METRICS, share

RESULTS = "results.json"
AVERAGE, ACCURACY = "average", "accuracy"
ACCURACIES = ("acc", "exact_match")  # by falling preference; one of each task is in the average
NO_QUESTIONS = ("lambada",)  # beginnings of the names of tasks that ask for a word, not for an answer
# What the harness makes of the sum over the items by that of their weights, by the name that it has there.
FUNCTIONS: dict[str, Function] = {
    "mean": lambda value: value,
    "perplexity": lambda value: np.exp(-value),
    "weighted_perplexity": lambda value: np.exp(-value),
    "bits_per_byte": lambda value: -value / math.log(2),
}


@dataclass(frozen=True)
class Measured:
    """One metric of one task.

    Attributes:
      told: what the harness says of it: `task`, `metric`, `higher_is_better`, `items`, `chance` and `fewshot`; and
        `is_share`, whether it is a share of the items, each right or wrong.
      values: of each arm, a value for each seed, as the harness has it.
      scores: None where the harness's values do not follow from the items.
    """

    told: dict[str, Any]
    values: dict[str, list[float]]
    scores: Scores | None


def summarize(tasks: Mapping[str, Runs], arms: Sequence[Arm]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Entries of all tasks and metrics, the average accuracy last, and the gaps that arms close on accuracies.

    Args:
      arms: of the experiment, without those of its sweep.
    """
    measured = [entry for runs in tasks.values() for entry in metrics(runs)]
    questions = accuracies(measured)
    closed = []
    for entry in questions:
        assert entry.scores is not None
        closed += gaps(entry.scores, f"{entry.told['task']} ({entry.told['metric']})", arms, higher=True)
    if len(questions) > 1:
        average = mean_accuracy(questions)
        assert average.scores is not None
        measured.append(average)
        closed += gaps(average.scores, f"{AVERAGE} ({ACCURACY})", arms, higher=True)
    return [_entry(entry, contrasts(arms)) for entry in measured], closed


def metrics(runs: Runs) -> list[Measured]:
    """The metrics of one task, in the order of the harness."""
    results = {arm: [answered(artifact) for artifact in seeds.values()] for arm, seeds in runs.items()}
    first = next(iter(results.values()))[0]
    made = []
    for metric in first["metrics"]:
        name = metric["metric"]
        values = {arm: [_value(told, name) for told in each] for arm, each in results.items()}
        finite = {arm: [value for value in each if value is not None] for arm, each in values.items()}
        if finite != values:
            continue
        told = {name: first[name] for name in ("task", "items", "fewshot")}
        told |= {name: metric[name] for name in ("metric", "higher_is_better", "chance")}
        told["is_share"] = metric["metric"].partition(",")[0] in METRICS
        made.append(Measured(told, finite, _scores(runs, first, metric, finite)))
    return made


def answered(artifact: Artifact) -> dict[str, Any]:
    """What the harness says of the task that was asked, which comes first."""
    return json.loads(artifact.file(RESULTS).read_text())["tasks"][0]


def _value(told: dict[str, Any], metric: str) -> float | None:
    return next((entry["value"] for entry in told["metrics"] if entry["metric"] == metric), None)


def _scores(runs: Runs, task: dict[str, Any], metric: dict[str, Any], values: dict[str, list[float]]) -> Scores | None:
    """The scores by item, if the harness's values are what follows from them."""
    function = FUNCTIONS.get(metric["aggregation"])
    if function is None:
        return None
    members = pa.array(task["members"] or [task["task"]], pa.string())

    def read(artifact: Artifact) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = parquet.read(artifact, ["task", "metric", "item", "value", "weight"])
        place = pc.index_in(table["task"], value_set=members)
        table = table.append_column("member", place)
        table = table.filter(pc.and_(pc.equal(table["metric"], metric["metric"]), pc.is_valid(place)))
        numbers = table["member"].to_numpy().astype(np.int64) * (1 << 40) + table["item"].to_numpy()
        return numbers, table["value"].to_numpy(), pc.fill_null(table["weight"], 1.0).to_numpy()

    found = Scores(runs, read, f"{task['task']} {metric['metric']}", function)
    same = (np.allclose(found.by_seed(arm), each, rtol=1e-6, atol=1e-9) for arm, each in values.items())
    return found if all(same) else None


def accuracies(measured: Sequence[Measured]) -> list[Measured]:
    """One accuracy of each task that asks questions."""
    chosen: dict[str, Measured] = {}
    for accuracy in reversed(ACCURACIES):
        for entry in measured:
            task, metric = entry.told["task"], entry.told["metric"].partition(",")[0]
            if metric == accuracy and entry.scores is not None and not task.startswith(NO_QUESTIONS):
                chosen[task] = entry
    return [entry for entry in measured if entry is chosen.get(entry.told["task"])]


def mean_accuracy(questions: Sequence[Measured]) -> Measured:
    """The mean of accuracies; where something is written and nothing chosen, chance is 0."""
    chances = [0.0 if entry.told["metric"].startswith("exact_match") else entry.told["chance"] for entry in questions]
    told = {
        "task": AVERAGE,
        "metric": ACCURACY,
        "higher_is_better": True,
        "is_share": True,
        "items": sum(entry.told["items"] for entry in questions),
        "chance": None if None in chances else float(np.mean(chances)),
        "fewshot": None,
        "of": [f"{entry.told['task']} ({entry.told['metric']})" for entry in questions],
    }
    found = Average([entry.scores for entry in questions if entry.scores is not None])
    return Measured(told, {arm: found.by_seed(arm) for arm in found.seeds}, found)


def _entry(measured: Measured, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    for arm, values in measured.values.items():
        told: dict[str, Any] = {"value": float(np.mean(values)), "low": None, "high": None}
        if measured.scores is not None:
            told = bounds(measured.scores.of(arm), "value")
        arms[arm] = (_as_share(told, measured) if measured.told["is_share"] else told) | {"by_seed": values}
    differences = []
    for arm, against in pairs:
        if {arm, against} <= set(measured.values):
            differences.append({"arm": arm, "against": against} | difference(measured, arm, against))
    return measured.told | {"arms": arms, "differences": differences}


def difference(measured: Measured, arm: str, against: str) -> dict[str, Any]:
    """Arm minus another arm: `difference`, and `low` and `high`, None where no interval follows from the items.

    Of shares that no item tells apart the interval is as wide as that of a share of none of so many items.
    """
    made = None if measured.scores is None else measured.scores.difference(arm, against)
    if made is None:
        value, other = (float(np.mean(measured.values[name])) for name in (arm, against))
        return {"difference": value - other, "low": None, "high": None}
    found = bounds(made, "difference")
    if measured.told["is_share"] and found["low"] is not None and found["low"] == found["high"]:
        half = share(0, measured.told["items"]).high
        assert half is not None
        found |= {"low": found["difference"] - half, "high": found["difference"] + half}
    return found


def _as_share(told: dict[str, Any], measured: Measured) -> dict[str, Any]:
    """The same within 0 and 1; where all draws are alike, as they are where no item is right, Wilson's interval."""
    low, high = told["low"], told["high"]
    if low is None or high is None:
        return told
    if low == high:
        items = measured.told["items"]
        wilson = share(round(told["value"] * items), items)
        low, high = wilson.low, wilson.high
    return told | {"low": max(low, 0.0), "high": min(high, 1.0)}
