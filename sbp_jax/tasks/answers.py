"""The harness's results as tables: a row for each item and metric, and for each task its values and what chance gives.

A metric is named as the harness names it, with its filter where a task has several.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

GUESSED = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")  # of multiple choice, which a guess may get right
SCHEMA = pa.schema(
    {
        "task": pa.string(),
        "metric": pa.string(),
        "item": pa.int64(),
        "value": pa.float64(),
        "weight": pa.float64(),
        "answer": pa.string(),
    }
)


def items(found: dict[str, Any]) -> pa.Table:
    """A row for each item and metric whose value is a number.

    `weight` is what the value is of where it is a sum, such as the bytes that log-likelihoods are of; `answer` is the
    choice with the greatest score, or what was written.
    """
    rows = []
    for task, samples in found["samples"].items():
        several = len({sample["filter"] for sample in samples}) > 1
        config = found["objects"][task].config
        for sample in samples:
            for metric in sample["metrics"]:
                value, weight = _number(sample[metric])
                if value is not None:
                    name = _name(metric, sample["filter"], several)
                    answer = _answer(found["objects"][task], sample, metric, config)
                    rows.append((task, name, sample["doc_id"], value, weight, answer))
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMA]
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def results(found: dict[str, Any], task: str, cut: int, harness: str | None) -> dict[str, Any]:
    """Values of all metrics of a task, or of a group and its tasks, as JSON.

    Args:
      task: what was asked; it comes first.
      cut: prompts that did not fit the model's context.
      harness: its version.
    """
    chances = {name: _chances(one, found["samples"][name]) for name, one in found["objects"].items()}
    groups = found.get("groups", {})
    told = [_told(name, found["results"][name], found, chances) for name in (*groups, *found["objects"])]
    told = [one for one in told if one["metrics"]]
    told.sort(key=lambda one: one["task"] != task)
    return {"task": task, "harness": harness, "cut": cut, "tasks": told}


def _told(name: str, values: dict[str, Any], found: dict[str, Any], chances: dict[str, Any]) -> dict[str, Any]:
    single = name in found["objects"]
    members = [name] if single else _members(name, found)
    filters = {key.partition(",")[2] for key in values if "," in key}
    metrics = []
    for key, value in values.items():
        metric, comma, how = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{how}")
        metrics.append(
            {
                "metric": _name(metric, how, len(filters) > 1),
                "value": _finite(value),
                "stderr": _finite(error),
                "chance": _chance(metric, members, chances),
                "higher_is_better": (found["higher_is_better"].get(name) or {}).get(metric),
                "aggregation": _aggregation(found["objects"][members[0]], metric) if members else None,
            }
        )
    return {
        "task": name,
        "version": found["versions"].get(name),
        "fewshot": found["n-shot"].get(name),
        "items": sum(found["n-samples"][member]["effective"] for member in members),
        "members": [] if single else members,
        "metrics": metrics,
    }


def _members(name: str, found: dict[str, Any]) -> list[str]:
    if name in found["objects"]:
        return [name]
    return [leaf for child in found["group_subtasks"].get(name, []) for leaf in _members(child, found)]


def _chances(task: Any, samples: list[dict[str, Any]]) -> np.ndarray | None:
    """Of each item, the probability that a choice at random is right; None: nothing is chosen, or not as usual."""
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice" or callable(getattr(task.config, "process_results", 0)):
        return None
    first = {sample["doc_id"]: sample for sample in samples}.values()  # of each item once, whatever its filters
    right = [len(set(target)) if isinstance(target := sample["target"], list) else 1 for sample in first]
    return np.array([count / len(_choices(task, sample)) for count, sample in zip(right, first, strict=True)])


def _chance(metric: str, members: list[str], chances: dict[str, Any]) -> float | None:
    if metric not in GUESSED or not members or any(chances[member] is None for member in members):
        return None
    return float(np.mean(np.concatenate([chances[member] for member in members])))


def _choices(task: Any, sample: dict[str, Any]) -> list[str]:
    if task.config.doc_to_choice is not None:
        return list(task.doc_to_choice(sample["doc"]))
    return [arguments[1] for arguments in sample["arguments"]]


def _answer(task: Any, sample: dict[str, Any], metric: str, config: Any) -> str | None:
    kind, answers = getattr(task, "OUTPUT_TYPE", None), sample["filtered_resps"]
    if kind == "generate_until":
        return answers[0] if isinstance(answers[0], str) else str(answers[0])
    if kind != "multiple_choice":
        return None
    choices = _choices(task, sample)
    scores = np.array([answer[0] for answer in answers[: len(choices)]], np.float64)
    if metric == "acc_norm":
        scores = scores / np.array([len(choice) for choice in choices])
    return choices[int(np.argmax(scores))]


def _number(value: Any) -> tuple[float | None, float | None]:
    if isinstance(value, bool | int | float | np.number):
        return float(value), None
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, int | float) for part in value):
        return float(value[0]), float(value[1])
    return None, None


def _name(metric: str, how: str, several: bool) -> str:
    return f"{metric},{how}" if several else metric


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(value) else None


def _aggregation(task: Any, metric: str) -> str | None:
    how = task.aggregation().get(metric)
    return getattr(how, "__name__", None)


def lines(told: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every metric with its task's name and what else is said of the task."""
    for one in told["tasks"]:
        for metric in one["metrics"]:
            yield one["task"], one, metric
