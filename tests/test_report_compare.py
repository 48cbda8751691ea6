"""`sbp report --compare`: runs are found, settings and losses differ as planted, and intervals say what they are."""

import json
from collections.abc import Sequence
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
from sbp_jax.artifacts import Output, Recipe, parquet
from sbp_jax.config import Arm, Experiment, Training
from sbp_jax.errors import SbpError
from sbp_jax.experiments import to_json
from sbp_jax.report import compare_page, compare_text
from sbp_jax.report.compare import compare, settings
from sbp_jax.report.runs import open_all, open_run
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
) -> Path:
    """A work folder with a finished report and the scores behind it; every document is as hard in each run.

    Args:
      corpus: whose key the documents have.
      skipped: test documents that are not there.
      tokens: of a document, whatever it has of bytes.
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
    half = np.hypot(0.35, 0.35) / 2  # of a half-width of 0.35 nats each, at half a bit a nat
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
