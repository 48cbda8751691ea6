"""`sbp evaluate`: finished arms and folders, what is done not asked again, and what is told of a wrong call."""

import json
from pathlib import Path
from typing import Any

import pytest
from etils import epath

from sbp_jax.artifacts import Output, parquet
from sbp_jax.cli import main
from sbp_jax.experiments import load
from sbp_jax.pipeline import Pipeline
from sbp_jax.tasks import harness
from tests.planted_model import plant

CONFIG = """
from sbp_jax.config import Corpus, Experiment, Training
from tests.planted_model import MODEL

def get_config():
    return Experiment(
        name="planted", corpus=Corpus(paths=({corpus!r},)), model=MODEL, training=Training(context=160), seeds=(0, 1)
    )
"""
QUESTIONS = [{"query": f"Question: Is {n} gold?", "choices": ["yes", "no", "maybe"], "gold": n % 3} for n in range(5)]
SENTENCES = [{"text": f"The metal number {n} is gold"} for n in range(3)]


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, records in (("arc_easy", QUESTIONS), ("lambada_openai", SENTENCES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def arms(tmp_path) -> list[str]:
    """Arguments of a run whose repetition arm is trained with both seeds and whose oracle arm with one."""
    corpus, config, workdir = tmp_path / "corpus.jsonl", tmp_path / "planted.py", tmp_path / "work"
    corpus.write_text('{"id": "a", "text": "some text"}\n')
    config.write_text(CONFIG.format(corpus=str(corpus)))
    pipeline = Pipeline(load(str(config)), str(workdir))
    for seed, name in enumerate(("train-repetition-0", "train-repetition-1", "train-oracle-0")):
        model = plant(tmp_path / name, seed=seed)
        output = Output(pipeline.path(name), pipeline.recipes[name], name)
        for file in sorted(model.iterdir()):
            with output.writing(f"final/{file.name}") as writing:
                writing.path.write_bytes(file.read_bytes())
        output.finish({"steps": 1})
    return [str(config), "--workdir", str(workdir)]


def evaluate(capsys: Any, *arguments: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["evaluate", *arguments]) == status, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.err if status else captured.out


def told(capsys: Any, *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["model"], one["task"]): one for one in json.loads(evaluate(capsys, *arguments, "--json"))}


def test_finished_arms_are_asked_once(arms, data, capsys, monkeypatch):
    """Guards results that are asked for again, or kept although the data or the question is another."""
    asked: list[tuple[str, int | None]] = []
    ask = harness.ask

    def count(model: Any, task: Any) -> dict[str, Any]:
        asked.append((task.task, task.limit))
        return ask(model, task)

    monkeypatch.setattr(harness, "ask", count)
    call = [*arms, "--tasks", "arc_easy,lambada_openai", "--data", str(data)]
    first = told(capsys, *call)
    runs = ("repetition-0", "repetition-1", "oracle-0")
    assert set(first) == {(run, task) for run in runs for task in ("arc_easy", "lambada_openai")}
    assert len(asked) == 6
    assert told(capsys, *call) == first and len(asked) == 6
    told(capsys, *call[:-4], "--tasks", "arc_easy", "--data", str(data), "--model", "oracle", "--limit", "2")
    assert asked[6:] == [("arc_easy", 2)]
    (data / "arc_easy.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n")
    again = told(capsys, *call, "--model", "repetition-1")
    assert asked[7:] == [("arc_easy", None)] and set(again) == {
        ("repetition-1", task) for task in ("arc_easy", "lambada_openai")
    }


def test_the_artifact_agrees_with_itself_and_with_the_folder_scored_alone(arms, data, capsys):
    (one,) = told(capsys, *arms, "--tasks", "arc_easy", "--data", str(data), "--model", "oracle").values()
    settings = [f"evaluation.{name}" for name in ("tasks=arc_easy", f"data={data}")]
    pipeline = Pipeline(load(arms[0], settings), arms[2])
    artifact = pipeline.artifact("task-arc_easy-oracle-0")
    assert artifact is not None, "the same recipe from the config"
    (table,) = parquet.tables(artifact)
    values = {metric["metric"]: metric for metric in one["tasks"][0]["metrics"]}
    for name in ("acc", "acc_norm"):
        rows = [row for row in table.to_pylist() if row["metric"] == name]
        assert [row["item"] for row in rows] == list(range(5))
        assert values[name]["value"] == pytest.approx(sum(row["value"] for row in rows) / 5)
        right = [
            row["answer"] == record["choices"][record["gold"]] for row, record in zip(rows, QUESTIONS, strict=True)
        ]
        assert [bool(row["value"]) for row in rows] == right
        assert values[name]["chance"] == pytest.approx(1 / 3) and values[name]["aggregation"] == "mean"
    folder = str(pipeline.path("train-oracle-0") / "final")
    (alone,) = json.loads(evaluate(capsys, "--folder", folder, "--tasks", "arc_easy", "--data", str(data), "--json"))
    assert alone["tasks"] == one["tasks"] and alone["harness"] == one["harness"] == harness.version()


def test_the_table_has_chance_beside_every_accuracy(arms, data, capsys):
    text = evaluate(capsys, *arms, "--tasks", "arc_easy,lambada_openai", "--data", str(data), "--model", "repetition")
    lines = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines()}
    assert lines[("task", "metric")] == ["items", "n-shot", "chance", "repetition-0", "repetition-1"]
    assert lines[("arc_easy", "acc")][:3] == ["5", "0", "33.3%"] and lines[("lambada_openai", "acc")][:2] == [
        "3",
        "0",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "arc_easy", "--model", "sbp"], "sbp-0, sbp-1: not trained yet"),
        (["--tasks", "arc_easy", "--model", "nobody"], "there is no arm nobody; there are oracle, oracle-0"),
        (["--tasks", "arc_eazy"], "has no task arc_eazy; did you mean"),
        (["--tasks", "arc_easy", "--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--tasks", "arc_easy", "--fewshot", "-1"], "--fewshot is -1"),
        (["--folder", "somewhere"], "leave out the config"),
    ],
)
def test_a_wrong_call_is_told(arms, data, capsys, arguments, said):
    assert said in evaluate(capsys, *arms, "--data", str(data), *arguments, status=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a config file whose arms are to be scored, or --folder"),
        (["--folder", "nowhere"], "--folder needs --tasks"),
        (["--folder", "nowhere", "--tasks", "arc_easy"], "nowhere has no config.json"),
    ],
)
def test_a_call_without_a_config_is_told_what_it_lacks(capsys, arguments, said):
    assert said in evaluate(capsys, *arguments, status=2)


def test_the_list_says_which_files_are_there(data, capsys):
    text = evaluate(capsys, "--list", "--data", str(data))
    assert "[arc_easy.jsonl]" in text and "cais/mmlu" in text and "[no file]" in text
    listed = json.loads(evaluate(capsys, "--list", "--json"))
    assert listed["piqa"]["short"] == ["query", "choices", "gold"]


def test_a_folder_without_a_word_on_where_texts_end_is_refused(tmp_path, data, capsys):
    model = plant(tmp_path / "bare")
    epath.Path(model / "tokenizer_config.json").write_text("{}")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    arguments = ["--folder", str(model), "--tasks", "arc_easy", "--data", str(data)]
    assert "says which token ends a text" in evaluate(capsys, *arguments, status=2)
