"""Answers of runs to tasks: the scores side by side, and differences to the first run's with their intervals.

Where two runs were asked the same items the interval is that of the paired differences over items and seeds, as it is
between the arms of one run; else it is made from the two intervals, and is said to be.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.report import task_scores
from sbp_jax.report.compare_losses import apart
from sbp_jax.report.results import Runs
from sbp_jax.report.runs import Run
from sbp_jax.report.task_scores import Measured

FIRST, OTHER = "first", "other"
GONE = "the answers to single items are gone"
DATA, VERSION, ITEMS = "other data of the task", "another version of the task", "other items"
NO_INTERVAL = "no interval follows from the items"
TASKS = "the average is over other tasks, or over some that cannot be paired"
Metric = tuple[str, str]  # a task and one of its metrics


@dataclass(frozen=True)
class Paired:
    """What one arm of two runs answered.

    Attributes:
      measured: the metrics of the tasks that both were asked with the same items.
      reasons: why the other tasks cannot be paired.
    """

    measured: Mapping[Metric, Measured]
    reasons: Mapping[str, str]


def scores(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """A row for each metric and arm: `values` and `differences` by run, None where a run or the first one has none."""
    answers = [_answers(run) for run in runs]
    paired: dict[tuple[int, str], Paired] = {}
    for metric in dict.fromkeys(_metric(task) for run in runs for task in run.summary["tasks"]):
        own = [next((task for task in run.summary["tasks"] if _metric(task) == metric), None) for run in runs]
        told = [task for task in own if task is not None]
        about = {"chance": told[0]["chance"], "higher_is_better": told[0]["higher_is_better"]}
        for arm in dict.fromkeys(arm for task in told for arm in task["arms"]):
            values = [None if task is None else task["arms"].get(arm) for task in own]
            differences: list[dict[str, Any] | None] = [None]
            for place in range(1, len(runs)):
                entries = own[0], own[place]
                if values[0] is None or values[place] is None:
                    differences.append(None)
                    continue
                if (place, arm) not in paired:
                    paired[place, arm] = _pair(answers[0], answers[place], arm)
                differences.append(_difference(entries, arm, paired[place, arm]))
            row = {"task": metric[0], "metric": metric[1], "arm": arm} | about
            yield row | {"values": values, "differences": differences}


def _metric(task: Mapping[str, Any]) -> Metric:
    return task["task"], task["metric"]


def _answers(run: Run) -> dict[str, Runs]:
    """The answers that are still there, by the task's name in the summary, arm and seed."""
    by_role: dict[str, dict[str, dict[int, Artifact]]] = {}
    for role in run.keys:
        kind, _, rest = role.partition("/")
        if kind == "task" and (artifact := run.artifact(role)) is not None:
            name, arm, seed = rest.split("/")
            by_role.setdefault(name, {}).setdefault(arm, {})[int(seed)] = artifact
    return {task_scores.answered(_one(arms))["task"]: arms for arms in by_role.values()}


def _one(arms: Runs) -> Artifact:
    return next(iter(next(iter(arms.values())).values()))


def _pair(first: Mapping[str, Runs], other: Mapping[str, Runs], arm: str) -> Paired:
    """The answers of one arm of two runs, resampled together."""
    measured: list[Measured] = []
    reasons = {}
    for task in first:
        seeds = first[task].get(arm), other.get(task, {}).get(arm)
        if seeds[0] is None or seeds[1] is None:
            continue
        why = _why(next(iter(seeds[0].values())), next(iter(seeds[1].values())))
        if why is None:
            measured += task_scores.metrics({FIRST: seeds[0], OTHER: seeds[1]})
        else:
            reasons[task] = why
    questions = task_scores.accuracies(measured)
    seeds_of = [entry.scores.seeds for entry in questions if entry.scores is not None]
    if len(questions) > 1 and all(seeds == seeds_of[0] for seeds in seeds_of):
        measured.append(task_scores.mean_accuracy(questions))
    return Paired({_metric(entry.told): entry for entry in measured}, reasons)


def _why(first: Artifact, other: Artifact) -> str | None:
    """Why two artifacts do not answer the same items, None where they do."""
    both = first, other
    # Local files are told apart by their content; data of the hub by the version of the task alone.
    files = [sorted(file[-1] for file in artifact.recipe["config"].get("files", [])) for artifact in both]
    if files[0] != files[1]:
        return DATA
    versions = [task_scores.answered(artifact).get("version") for artifact in both]
    if versions[0] != versions[1]:
        return VERSION
    order = [(name, "ascending") for name in ("task", "metric", "item")]
    items = [parquet.read(artifact, ["task", "metric", "item", "weight"]).sort_by(order) for artifact in both]
    return None if items[0].equals(items[1]) else ITEMS


def _difference(
    entries: tuple[dict[str, Any] | None, dict[str, Any] | None], arm: str, paired: Paired
) -> dict[str, Any]:
    """Score of an arm in one run minus that in the first: `difference`, `low`, `high`, `unit`, `paired`, `why`."""
    first, other = entries
    assert first is not None and other is not None
    name, _ = _metric(first)
    measured = paired.measured.get(_metric(first))
    why = paired.reasons.get(name, GONE)
    if name == task_scores.AVERAGE and not (
        measured and set(measured.told["of"]) == set(first["of"]) == set(other["of"])
    ):
        measured, why = None, TASKS
    if measured is not None:
        found = task_scores.difference(measured, OTHER, FIRST)
        if found["low"] is not None:
            return found | {"unit": None, "paired": True, "why": None}
        why = NO_INTERVAL
    values = [(row["value"], row["low"], row["high"]) for row in (first["arms"][arm], other["arms"][arm])]
    return apart(values[0], values[1]) | {"unit": None, "paired": False, "why": why}
