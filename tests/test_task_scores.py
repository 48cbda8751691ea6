"""Tasks in the summary: values as the harness has them, intervals over items and seeds, chance, the average."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Arm
from sbp_jax.report import task_scores

ARMS = (Arm("repetition"), Arm("sbp", synthetic_share=0.4), Arm("oracle", real="oracle"))
RIGHT = {"repetition": 0.3, "sbp": 0.4, "oracle": 0.5}  # chance of a right answer
ITEMS, SEEDS = 2000, (0, 1, 2)
METRIC = {"stderr": 0.01, "chance": 0.25, "higher_is_better": True, "aggregation": "mean"}


def artifact(folder: Path, task: dict[str, Any], rows: list[tuple[Any, ...]]) -> Artifact:
    """What the stage `ask` leaves."""
    output = Output(epath.Path(folder), Recipe("ask", 1, {}, {}), folder.name)
    names = ("task", "metric", "item", "value", "weight")
    types = (pa.string(), pa.string(), pa.int64(), pa.float64(), pa.float64())
    columns = zip(*rows, strict=True)
    table = pa.table({name: pa.array(column, kind) for name, kind, column in zip(names, types, columns, strict=True)})
    output.shard(0, ".parquet", partial(parquet.write, table=table))
    with output.writing("results.json") as writing:
        writing.path.write_text(json.dumps({"tasks": [{"fewshot": 0, "members": []} | task]}))
    return output.finish()


def asked(folder: Path, name: str, arm: str, seed: int, metric: str = "acc", **changed: Any) -> Artifact:
    """An arm's answers to a task of questions whose difficulty is the same for every arm."""
    hard, own = np.random.default_rng(len(name)), np.random.default_rng([seed, len(arm), len(name)])
    easy = hard.random(ITEMS)
    right = 0.5 * easy + 0.5 * own.random(ITEMS) < np.quantile(0.5 * easy + 0.5 * own.random(ITEMS), RIGHT[arm])
    rows = [(name, metric, item, float(value), None) for item, value in enumerate(right)]
    told = METRIC | {"metric": metric, "value": float(right.mean())} | changed
    return artifact(folder / f"{name}-{arm}-{seed}", {"task": name, "items": ITEMS, "metrics": [told]}, rows)


def runs(folder: Path, name: str, **changed: Any) -> dict[str, dict[int, Artifact]]:
    return {arm: {seed: asked(folder, name, arm, seed, **changed) for seed in SEEDS} for arm in RIGHT}


def test_accuracies_have_intervals_differences_chance_and_a_gap(tmp_path: Path) -> None:
    (entry,), gaps = task_scores.summarize({"arc_easy": runs(tmp_path, "arc_easy")}, ARMS)
    assert (entry["task"], entry["metric"], entry["items"], entry["chance"]) == ("arc_easy", "acc", ITEMS, 0.25)
    for arm, right in RIGHT.items():
        found = entry["arms"][arm]
        assert found["value"] == pytest.approx(np.mean(found["by_seed"])) == pytest.approx(right, abs=0.03)
        assert len(found["by_seed"]) == 3 and found["low"] < found["value"] < found["high"]
    (difference,) = [one for one in entry["differences"] if one["arm"] == "sbp" and one["against"] == "repetition"]
    assert difference["difference"] == pytest.approx(0.1, abs=0.02) and difference["low"] > 0
    (gap,) = gaps
    assert (gap["set"], gap["budget"]) == ("arc_easy (acc)", "tokens") and gap["closed"] == pytest.approx(0.5, abs=0.1)
    assert gap["low"] < gap["closed"] < gap["high"]


def test_the_average_is_of_the_tasks_that_ask_questions(tmp_path: Path) -> None:
    """Guards an average that counts a task twice, or one that asks for no answer."""
    both = runs(tmp_path, "arc_easy"), runs(tmp_path, "triviaqa", metric="exact_match", chance=None)
    tasks = {"arc_easy": both[0], "triviaqa": both[1], "lambada_openai": runs(tmp_path, "lambada_openai", chance=None)}
    entries, gaps = task_scores.summarize(tasks, ARMS)
    average = entries[-1]
    assert average["task"] == "average" and average["of"] == ["arc_easy (acc)", "triviaqa (exact_match)"]
    assert average["chance"] == pytest.approx(0.125) and average["items"] == 2 * ITEMS
    for arm, found in average["arms"].items():
        each = [entry["arms"][arm] for entry in entries[:2]]
        assert found["value"] == pytest.approx(np.mean([one["value"] for one in each]))
        assert found["by_seed"] == pytest.approx(np.mean([one["by_seed"] for one in each], axis=0))
    sets = [gap["set"] for gap in gaps]
    assert sets == ["arc_easy (acc)", "triviaqa (exact_match)", "average (accuracy)"]


def test_a_value_that_does_not_follow_from_the_items_has_no_interval(tmp_path: Path) -> None:
    """Guards intervals around another number than the harness's: a median, or items that were left out."""
    for changed in ({"aggregation": "median"}, {"value": 0.9}):
        folder = tmp_path / next(iter(changed))
        (entry,), gaps = task_scores.summarize({"arc_easy": runs(folder, "arc_easy", **changed)}, ARMS)
        assert gaps == [] and all(found["low"] is None for found in entry["arms"].values())
        assert all(one["low"] is None for one in entry["differences"])


def test_a_perplexity_is_a_function_of_the_items_mean(tmp_path: Path) -> None:
    def made(arm: str, seed: int) -> Artifact:
        nats = np.random.default_rng([seed, len(arm)]).normal(-3, 0.5, 300)
        words = np.arange(300) % 7 + 3.0
        rows = [
            ("wiki", "word_perplexity", item, float(n * w), float(w))
            for item, (n, w) in enumerate(zip(nats, words, strict=True))
        ]
        value = math.exp(-(nats * words).sum() / words.sum())
        told = METRIC | {"metric": "word_perplexity", "value": value, "chance": None, "higher_is_better": False}
        told |= {"aggregation": "weighted_perplexity"}
        return artifact(tmp_path / f"{arm}-{seed}", {"task": "wiki", "items": 300, "metrics": [told]}, rows)

    found = {arm: {seed: made(arm, seed) for seed in SEEDS} for arm in RIGHT}
    (entry,), gaps = task_scores.summarize({"wiki": found}, ARMS)
    assert gaps == []
    for one in entry["arms"].values():
        assert one["low"] < one["value"] < one["high"] and one["value"] == pytest.approx(20, rel=0.1)


def test_a_group_is_all_items_of_its_tasks(tmp_path: Path) -> None:
    def made(arm: str) -> Artifact:
        rows = [
            (task, "acc", item, float(item % (2 + place)), None) for place, task in enumerate("ab") for item in (0, 1)
        ]
        mean = float(np.mean([row[3] for row in rows]))
        task = {
            "task": "group",
            "members": ["a", "b"],
            "items": 4,
            "metrics": [METRIC | {"metric": "acc", "value": mean}],
        }
        return artifact(tmp_path / arm, task, [*rows, ("c", "acc", 0, 1.0, None)])

    (entry,), _ = task_scores.summarize({"group": {arm: {0: made(arm)} for arm in RIGHT}}, ARMS)
    assert entry["arms"]["sbp"]["value"] == 0.5 and entry["items"] == 4


def test_an_accuracy_at_its_end_is_not_certain(tmp_path: Path) -> None:
    """Guards intervals below 0, and one of no width where none of a few items is right."""

    def made(arm: str, right: int) -> Artifact:
        rows = [("t", "acc", item, float(item < right), None) for item in range(20)]
        told = METRIC | {"metric": "acc", "value": right / 20}
        return artifact(tmp_path / arm, {"task": "t", "items": 20, "metrics": [told]}, rows)

    found = {arm: {0: made(arm, right)} for arm, right in (("repetition", 0), ("sbp", 0), ("oracle", 1))}
    (entry,), _ = task_scores.summarize({"t": found}, ARMS)
    assert entry["arms"]["oracle"]["low"] == 0.0 < 0.05 < entry["arms"]["oracle"]["high"]
    assert entry["arms"]["repetition"]["low"] == 0.0 and 0.1 < entry["arms"]["repetition"]["high"] < 0.2
    (same,) = [one for one in entry["differences"] if (one["arm"], one["against"]) == ("sbp", "repetition")]
    assert -0.2 < same["low"] < -0.1 and 0.1 < same["high"] < 0.2
