"""`sbp report --compare`: runs are found, settings and losses differ as planted, and intervals say what they are."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from etils import epath
from rich.console import Console

from sbp_jax import cli
from sbp_jax.artifacts import Output, Recipe, find, parquet
from sbp_jax.config import Arm, Experiment, Training
from sbp_jax.errors import SbpError
from sbp_jax.experiments import to_json
from sbp_jax.report import compare_page, compare_tasks, compare_text, losses, task_scores
from sbp_jax.report.compare import compare, settings
from sbp_jax.report.compare_losses import apart
from sbp_jax.report.runs import open_all, open_run
from sbp_jax.scoring.share import share
from tests import planted_summary

EXPERIMENT = Experiment(name="first", arms=(Arm("repetition"), Arm("sbp", synthetic_share=0.25)), seeds=(0, 1))
DOCUMENTS, TARGETS = 300, 100
HOSTILE = "<script>alert(1)</script>"


def _run(
    workdir: Path,
    experiment: Experiment,
    losses: dict[str, float],
    corpus: str = "corpus",
    skipped: int = 0,
    tokens: int = TARGETS,
    held_out: Callable[[Path], tuple[dict[str, str], dict[str, Any]]] = lambda workdir: ({}, {}),
) -> Path:
    """A work folder with a finished report and the scores behind it; every document is as hard in each run.

    Args:
      corpus: whose key the documents have.
      skipped: test documents that are not there.
      tokens: of a document, whatever it has of bytes.
      held_out: writes text sets and tasks: inputs of the report, and what its summary says of them.
    """
    hard = np.random.default_rng(0).normal(0, 1, DOCUMENTS)[skipped:]
    inputs, rows = {"documents": corpus}, []
    for arm in experiment.arms:
        for seed in experiment.seeds:
            own = np.random.default_rng([seed, len(arm.name), len(experiment.name)]).normal(0, 0.01, len(hard))
            nats = TARGETS * (losses[arm.name] + hard + own)
            columns = {"ordinal": np.arange(skipped, DOCUMENTS), "nats": nats, "targets": np.full(len(hard), tokens)}
            table = pa.table(columns | {"bytes": np.full(len(hard), 4 * TARGETS)})
            recipe = Recipe(
                "score", 1, {"losses": losses, "arm": arm.name, "seed": seed, "skipped": skipped, "tokens": tokens}, {}
            )
            output = Output(epath.Path(workdir / f"artifacts/score-{arm.name}-{seed}" / recipe.key), recipe, "score")
            output.shard(0, ".parquet", partial(parquet.write, table=table))
            output.finish()
            inputs[f"scored/{arm.name}/{seed}"] = recipe.key
        rows.append(_row(arm, experiment, losses[arm.name] + float(hard.mean())))
    summary = {"name": experiment.name, "seeds": list(experiment.seeds), "parameters": 1_000_000, "vocabulary": 2048}
    summary |= {"test": {"documents": len(hard), "targets": TARGETS * len(hard), "bytes": None}, "warnings": []}
    gap = {"arm": "sbp", "set": "test", "budget": "tokens", "closed": None, "low": None, "high": None}
    gap |= {"reason": f"planted {HOSTILE}", "against": "repetition", "oracle": "oracle"}
    summary |= {"arms": rows, "gaps": [gap], "comparisons": [], "tasks": [], "compute": []}
    summary |= {"counts": {"documents": 10, "accepted_pairs": 3}, "quality": [planted_summary.quality("related")]}
    more, told = held_out(workdir)
    inputs, summary = inputs | more, summary | {"texts": []} | told
    recipe = Recipe("report", 1, {"experiment": json.loads(json.dumps(to_json(experiment)))}, inputs)
    output = Output(epath.Path(workdir / "artifacts/report" / recipe.key), recipe, "report")
    with output.writing("summary.json") as writing:
        writing.path.write_text(json.dumps(summary))
    output.finish()
    record = workdir / "experiments" / f"{experiment.name}.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps({"keys": {"report": recipe.key}}))
    return workdir


def _row(arm: Arm, experiment: Experiment, loss: float) -> dict[str, Any]:
    row = {"arm": arm.name, "nats_per_token": loss, "low": loss - 0.3, "high": loss + 0.4, "bits_per_byte": loss / 2}
    row |= {"synthetic_share": arm.synthetic_share, "tokens": experiment.training.tokens or 100, "steps": 7}
    return row | {"real_epochs": 1.5}


def _both(folder: Path, **second: Any) -> list[str]:
    first = _run(folder / "one", EXPERIMENT, {"repetition": 4.2, "sbp": 4.15})
    training = replace(EXPERIMENT.training, tokens=200)
    other = replace(EXPERIMENT, name="second", training=training)
    return [str(first), str(_run(folder / "two", other, {"repetition": 4.2, "sbp": 4.05}, **second))]


def _arm(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(arm for arm in found["arms"] if arm["arm"] == name)["differences"][1]


def test_the_same_documents_give_a_paired_interval(tmp_path: Path) -> None:
    """Guards the pairing: documents differ by a whole nat, seeds by a hundredth, and the interval is as small."""
    found = compare(open_all(_both(tmp_path)))
    for name, expected in (("repetition", 0.0), ("sbp", -0.1)):
        difference = _arm(found, name)
        assert difference["paired"] and difference["unit"] == "nats per token"
        assert difference["difference"] == pytest.approx(expected, abs=0.003)
        assert difference["low"] < expected + 0.001 and difference["high"] > expected - 0.001
        assert difference["high"] - difference["low"] < 0.05


def test_other_tokenizers_are_compared_by_bytes(tmp_path: Path) -> None:
    """Guards against nats per token of two tokenizers: half as many tokens are no better a model."""
    difference = _arm(compare(open_all(_both(tmp_path, tokens=TARGETS // 2))), "sbp")
    assert difference["paired"] and difference["unit"] == "bits per byte"
    assert difference["difference"] == pytest.approx(-0.1 / np.log(2) / 4, abs=0.001)


@pytest.mark.parametrize(
    "second, why",
    [({"skipped": 5}, "other test documents"), ({"corpus": "else"}, "the corpora are not known to be the same")],
)
def test_other_documents_give_an_interval_that_says_it_is_not_paired(
    tmp_path: Path, second: dict[str, Any], why: str
) -> None:
    """Guards against a paired interval over documents that have nothing to do with each other."""
    found = compare(open_all(_both(tmp_path, **second)))
    difference = _arm(found, "repetition")
    assert not difference["paired"] and difference["why"] == why and difference["unit"] == "bits per byte"
    half = np.hypot(0.3, 0.4) / 2  # a loss is 0.3 nats above its bound, the other 0.4 below, at half a bit a nat
    assert difference["high"] - difference["low"] == pytest.approx(2 * half)
    assert why in _told(found).replace("\n", " ") and why in compare_page.render(found)


def test_a_summary_alone_can_be_compared(tmp_path: Path) -> None:
    first, second = _both(tmp_path)
    (summary,) = Path(second).glob("artifacts/report/*/summary.json")
    alone = tmp_path / "summary.json"
    alone.write_text(summary.read_text())
    found = compare(open_all([first, str(alone)]))
    assert found["unknown_settings"] == ["second"] and not _arm(found, "sbp")["paired"]
    assert "not known" in _told(found) and "not known" in compare_page.render(found)


def test_scores_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    places = _both(tmp_path)
    for file in Path(places[1]).glob("artifacts/score-sbp-*/*/manifest.json"):
        file.unlink()
    found = compare(open_all(places))
    assert (
        _arm(found, "repetition")["paired"] and _arm(found, "sbp")["why"] == "the scores of single documents are gone"
    )


def test_settings_are_those_that_differ(tmp_path: Path) -> None:
    found = compare(open_all(_both(tmp_path)))
    assert found["settings"] == [{"field": "training.tokens", "values": ["none", "200"]}]
    one, two = (to_json(replace(EXPERIMENT, arms=arms)) for arms in (EXPERIMENT.arms, (*EXPERIMENT.arms, Arm("x"))))
    assert settings([one, two]) == [{"field": "arms.x", "values": ["–", "there"]}]
    assert settings([one, None, one]) == []
    three = to_json(replace(EXPERIMENT, training=Training(peak_lr=1.0), name="other", note="other"))
    assert [row["field"] for row in settings([one, three])] == ["training.peak_lr"]


def test_everything_stands_in_both_outputs(tmp_path: Path) -> None:
    found = compare(open_all(_both(tmp_path)))
    page, told = compare_page.render(found), _told(found)
    for text in (page, told):
        losses = [f"{row['nats_per_token']:.4f}" for arm in found["arms"] for row in arm["values"]]
        for words in ("training.tokens", *losses, "planted", "steps", "accepted pairs", "repeated", "second", "first"):
            assert words in text, words
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not {"http://", "https://"} & {page[place : place + 8] for place in range(len(page))}


def _told(found: dict[str, Any]) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))
    compare_text.show(found, console)
    return console.export_text()


def test_runs_are_found_by_all_their_names(tmp_path: Path) -> None:
    place = Path(_both(tmp_path)[0])
    (report,) = place.glob("artifacts/report/*")
    for name in (place, report, report / "summary.json", place / "experiments" / "first.json"):
        run = open_run(str(name))
        assert run.name == "first" and run.experiment is not None and run.artifact("scored/sbp/1") is not None
    assert [run.name for run in open_all([str(place), str(report)])] == ["first (1)", "first (2)"]


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Guards the messages: each says which place, and what to give or run instead."""
    place = Path(_both(tmp_path)[0])
    _run(place, replace(EXPERIMENT, name="third"), {"repetition": 4.2, "sbp": 4.1})
    unfinished = tmp_path / "unfinished"
    (unfinished / "artifacts").mkdir(parents=True)
    old = tmp_path / "old.json"
    old.write_text('{"arms": []}')
    other = tmp_path / "other.json"
    other.write_text('{"a": 1}')
    cases = [
        (tmp_path / "nowhere", "holds no report"),
        (place, "several experiments.*first.json.*third.json"),
        (unfinished, "no finished report"),
        (old, "earlier version"),
        (other, "no summary"),
    ]
    for name, message in cases:
        with pytest.raises(SbpError, match=message):
            open_run(str(name))


@pytest.mark.parametrize("spelling", [["report", "--compare", "A", "B"], ["report", "A", "--compare", "B"]])
def test_the_command_prints_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spelling: Sequence[str]
) -> None:
    places = dict(zip(("A", "B"), _both(tmp_path), strict=True))
    page = tmp_path / "compared.html"
    assert cli.main([*(places.get(word, word) for word in spelling), "--to", str(page)]) == 0
    assert "training.tokens" in capsys.readouterr().out and "training.tokens" in page.read_text()
    assert cli.main(["report", "--compare", places["A"], places["B"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][1]["name"] == "second"
    assert cli.main(["report", "--compare", places["A"]]) == 2
    assert "two runs" in capsys.readouterr().err
    assert cli.main(["report", "--compare", places["A"], places["B"], "--to", str(tmp_path / "no" / "page")]) == 2


ITEMS, TASKS = 400, ("arc_easy", "piqa")


def _held_out(
    workdir: Path,
    better: float = 0.0,
    source: str = "web",
    skipped: int = 0,
    size: int = 0,
    data: str = "data",
    asked: int = ITEMS,
    version: int = 1,
    tasks: Sequence[str] = TASKS,
    arms: Sequence[str] = ("repetition", "sbp"),
    sets: Sequence[str] = ("web",),
) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes scores on a text set and answers to tasks, and tells of them with the report's own functions.

    Args:
      better: by how much the second arm is, in nats and as a share of right answers.
      source: key of the set's documents, and `skipped` how many of them are not there, `size` bytes more each has.
      data: names the content of the tasks' files, `version` the tasks' own, and `asked` the items.
    """
    inputs, written = {f"copies/{name}": _write(workdir, "copies", {}, {"texts": source}, None) for name in sets}, {}
    for place, arm in enumerate(arms):
        for seed in EXPERIMENT.seeds:
            for name in sets:
                written[f"text/{name}/{arm}/{seed}"] = _text(workdir, seed, place, place * better, skipped, size)
            for task in tasks:
                written[f"task/{task}/{arm}/{seed}"] = _task(
                    workdir, task, (seed, place), place * better, data, asked, version
                )
    inputs |= written
    found: dict[str, Any] = {}
    for role, key in written.items():
        kind, name, arm, number = role.split("/")
        (folder,) = workdir.glob(f"artifacts/*/{key}")
        artifact = find(epath.Path(folder), key)
        found.setdefault(kind, {}).setdefault(name, {}).setdefault(arm, {})[int(number)] = artifact
    texts = [losses.of_set(losses.scores(runs, name), name, runs) for name, runs in found.get("text", {}).items()]
    entries, _ = task_scores.summarize(found.get("task", {}), [Arm("repetition")])
    return inputs, {"texts": texts, "tasks": entries}


def _text(workdir: Path, seed: int, place: int, better: float, skipped: int, size: int) -> str:
    hard = np.random.default_rng(0).normal(4, 1, DOCUMENTS)
    nats = TARGETS * (hard - better + np.random.default_rng([seed, place]).normal(0, 0.01, DOCUMENTS))[skipped:]
    columns = {"ordinal": np.arange(skipped, DOCUMENTS), "nats": nats, "targets": np.full(len(nats), TARGETS)}
    table = pa.table(columns | {"bytes": np.full(len(nats), 4 * TARGETS + size)})
    bits = nats.sum() / np.log(2) / len(nats) / (4 * TARGETS + size)
    config = {"seed": seed, "place": place, "better": better, "skipped": skipped, "size": size}
    return _write(workdir, "score", config, {}, table, stats={"bits_per_byte": float(bits)})


def _task(workdir: Path, task: str, luck: tuple[int, int], better: float, data: str, asked: int, version: int) -> str:
    hard = np.random.default_rng(len(task)).random(asked)
    right = hard + np.random.default_rng(luck).normal(0, 0.02, asked) < 0.4 + better
    columns = {"task": pa.array([task] * asked), "metric": pa.array(["acc"] * asked), "item": pa.array(range(asked))}
    table = pa.table(columns | {"value": right.astype(float), "weight": pa.nulls(asked, pa.float64())})
    metric = {"metric": "acc", "value": float(right.mean()), "chance": 0.25, "higher_is_better": True}
    told = {"task": task, "items": asked, "fewshot": 0, "members": [], "version": version}
    told["metrics"] = [metric | {"aggregation": "mean"}]
    config = {"task": task, "luck": luck, "better": better, "files": [["a.jsonl", 1, data]]}
    config |= {"asked": asked, "version": version}
    return _write(workdir, "ask", config, {}, table, {"tasks": [told]})


def _write(
    workdir: Path,
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, str],
    table: pa.Table | None,
    results: dict[str, Any] | None = None,
    stats: dict[str, Any] | None = None,
) -> str:
    """An artifact; its key."""
    recipe = Recipe(stage, 1, config, inputs)
    output = Output(epath.Path(workdir / f"artifacts/{stage}" / recipe.key), recipe, stage)
    if table is not None:
        output.shard(0, ".parquet", partial(parquet.write, table=table))
    if results is not None:
        with output.writing("results.json") as writing:
            writing.path.write_text(json.dumps(results))
    output.finish(stats or {})
    return recipe.key


def _compared(folder: Path, **second: Any) -> dict[str, Any]:
    """Two runs, of which the second's sbp arm is better by 0.05, unless something else is said."""
    one = _run(folder / "one", EXPERIMENT, {"repetition": 4.2, "sbp": 4.15}, held_out=_held_out)
    other = partial(_held_out, **{"better": 0.05} | second)
    experiment = replace(EXPERIMENT, name="second")
    two = _run(folder / "two", experiment, {"repetition": 4.2, "sbp": 4.05}, held_out=other)
    return compare(open_all([str(one), str(two)]))


def _rows(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every arm on every text set and task, with the name of the value."""
    texts = [("nats_per_token", arm) for text in found["texts"] for arm in text["arms"]]
    return texts + [("value", row) for row in found["tasks"]]


def test_a_run_minus_itself_is_nothing(tmp_path: Path) -> None:
    """Guards the pairing of text sets, tasks and their average: what is the same in both runs cancels.

    Where no item tells two shares apart, their difference is as sure as the number of the items allows, and no more.
    """
    found = compare(open_all([str(_run(tmp_path, EXPERIMENT, {"repetition": 4, "sbp": 4}, held_out=_held_out))] * 2))
    assert [row["task"] for row in found["tasks"]] == ["arc_easy"] * 2 + ["piqa"] * 2 + ["average"] * 2
    for name, row in _rows(found):
        difference = row["differences"][1]
        items = 2 * ITEMS if row.get("task") == "average" else ITEMS
        half = 0.0 if name == "nats_per_token" else share(0, items).high
        assert half is not None and difference["paired"] and difference["difference"] == 0.0
        assert (difference["low"], difference["high"]) == (-half, half)
        assert difference["unit"] == ("nats per token" if name == "nats_per_token" else None)


def test_differences_are_those_of_the_values_and_paired_intervals_hold_what_was_planted(tmp_path: Path) -> None:
    """Guards the sign, the arm that a difference is of, and the pairing: documents differ by a whole nat."""
    for name, row in _rows(_compared(tmp_path)):
        first, second = (value[name] for value in row["values"])
        difference = row["differences"][1]
        assert difference["paired"] and difference["difference"] == pytest.approx(second - first, abs=1e-12)
        planted = 0.0 if row["arm"] == "repetition" else 0.05 if name == "value" else -0.05
        assert difference["low"] - 1e-9 <= planted <= difference["high"] + 1e-9
        widths = [value["high"] - value["low"] for value in row["values"]]
        assert difference["high"] - difference["low"] < 0.6 * np.hypot(*widths)


@pytest.mark.parametrize(
    "second, kind, why",
    [
        ({"source": "else", "skipped": 5}, "texts", "other documents of web"),
        ({"source": "else", "size": 1}, "texts", "other documents of web"),
        ({"skipped": 5}, "texts", "other documents of web"),
        ({"data": "else"}, "tasks", "other data of the task"),
        ({"version": 2}, "tasks", "another version of the task"),
        ({"asked": 300}, "tasks", "other items"),
    ],
)
def test_other_documents_and_items_are_not_paired(tmp_path: Path, second: dict[str, Any], kind: str, why: str) -> None:
    """Guards against pairing what has nothing in common, and the star and the reason in both outputs."""
    found = _compared(tmp_path, **second)
    for name, row in _rows(found):
        difference, values = row["differences"][1], row["values"]
        assert difference["paired"] == ((name == "value") != (kind == "tasks"))
        if difference["paired"]:
            continue
        assert difference["why"] == (compare_tasks.TASKS if row.get("task") == "average" else why)
        asked = "bits_per_byte" if kind == "texts" else "value"
        assert difference["difference"] == pytest.approx(values[1][asked] - values[0][asked])
        assert difference["low"] < difference["difference"] < difference["high"]
    told, page = " ".join(_told(found).split()), compare_page.render(found)
    assert f"* second: {why}" in told and why in page and "*<small" in page


def test_the_same_documents_of_another_recipe_are_paired(tmp_path: Path) -> None:
    """Guards sets whose file has another name: the key is another one, the documents are the same."""
    for _, row in _rows(_compared(tmp_path, source="else")):
        assert row["differences"][1]["paired"]


@pytest.mark.parametrize("lacks", [{"arms": ("repetition",)}, {"sets": ()}, {"tasks": ("arc_easy",)}])
def test_what_a_run_lacks_has_no_difference(tmp_path: Path, lacks: dict[str, Any]) -> None:
    """Guards cells that would be of another arm, set or task, and pages that fail where a value is missing."""
    found = _compared(tmp_path, **lacks)
    missing = [row for _, row in _rows(found) if row["values"][1] is None]
    assert missing and all(row["differences"][1] is None for row in missing)
    rest = [row for _, row in _rows(found) if row["values"][1] is not None]
    assert rest and all(row["differences"][1]["paired"] for row in rest)
    for text in (_told(found), compare_page.render(found)):
        assert all(word in text for word in ("web", "arc_easy", "piqa"))


def test_averages_over_other_tasks_are_not_paired(tmp_path: Path) -> None:
    """Guards an average of the tasks that both runs have beside two values that are of more tasks."""
    rows = _compared(tmp_path, tasks=(*TASKS, "winogrande"))["tasks"]
    found = {row["task"]: row["differences"][1] for row in rows if row["arm"] == "sbp"}
    assert found["arc_easy"]["paired"] and found["piqa"]["paired"] and found["winogrande"] is None
    assert not found["average"]["paired"] and found["average"]["why"] == compare_tasks.TASKS


def test_answers_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    _compared(tmp_path)
    for file in (tmp_path / "two").glob("artifacts/ask/*/manifest.json"):
        file.unlink()
    for row in compare(open_all([str(tmp_path / name) for name in ("one", "two")]))["tasks"]:
        difference = row["differences"][1]
        assert not difference["paired"] and difference["low"] < difference["difference"] < difference["high"]
        assert difference["why"] == (compare_tasks.TASKS if row["task"] == "average" else compare_tasks.GONE)


def test_an_interval_that_is_not_paired_is_newcombes() -> None:
    """Against table II of Newcombe 1998: 56 of 70 and 48 of 80, method 10 gives 0.0524 to 0.3339."""
    first, other = ((found.value, found.low, found.high) for found in (share(48, 80), share(56, 70)))
    found = apart(first, other)
    assert found == pytest.approx({"difference": 0.2, "low": 0.0524, "high": 0.3339}, abs=5e-5)
