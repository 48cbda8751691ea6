"""The command line: one sentence for each error, no traceback, the right exit status."""

import json
from pathlib import Path

import pytest

from sbp_jax import cli
from sbp_jax.pipeline import ASKED_FOR

CONFIG = "configs/quickstart.py"


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *arguments: str) -> str:
    """The one line that a command prints when it refuses."""
    status, out, err = run(capsys, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in err, (status, out, err)
    return lines[0]


def ingest(capsys, tmp_path, file: Path, *assignments: str) -> str:
    sets = [part for assignment in (f"corpus.paths={file}", *assignments) for part in ("--set", assignment)]
    return refused(capsys, "run", CONFIG, "--tiny", "--workdir", str(tmp_path / "work"), "--until", "ingest", *sets)


def test_a_missing_config_is_named(capsys):
    assert "there is no config file nowhere.py" in refused(capsys, "run", "nowhere.py")


def test_a_config_that_does_not_run_says_why(capsys, tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    assert "does not run: ModuleNotFoundError" in refused(capsys, "config", str(tmp_path / "broken.py"))
    (tmp_path / "empty.py").write_text("")
    assert "has no function get_config()" in refused(capsys, "config", str(tmp_path / "empty.py"))


def test_an_error_inside_a_config_is_the_configs(capsys, tmp_path):
    (tmp_path / "typo.py").write_text("from sbp_jax.config import *\ndef get_config(): return Training(peek_lr=1)")
    assert "does not run: TypeError" in refused(capsys, "config", str(tmp_path / "typo.py"))


def test_a_tokenizer_that_is_missing_is_named(capsys, tmp_path):
    message = refused(capsys, "status", CONFIG, "--workdir", str(tmp_path), "--set", "tokenizer.path=nowhere.json")
    assert "nowhere.json is missing" in message


def test_a_bucket_as_work_folder_is_refused(capsys):
    assert "local folders" in refused(capsys, "status", CONFIG, "--workdir", "gs://bucket/run")


def test_an_unknown_field_names_the_nearest(capsys):
    assert "did you mean peak_lr" in refused(capsys, "run", CONFIG, "--set", "training.peek_lr=1")


def test_a_missing_corpus_is_named(capsys, tmp_path):
    assert "nowhere.jsonl" in ingest(capsys, tmp_path, tmp_path / "nowhere.jsonl")


def test_an_empty_corpus_is_an_error(capsys, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    assert "no document" in ingest(capsys, tmp_path, tmp_path / "empty.jsonl").lower()


def test_lines_that_are_not_json_are_named_by_file_and_line(capsys, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "text": "good"}\n{"id": "2", "text": \n')
    message = ingest(capsys, tmp_path, tmp_path / "bad.jsonl", "corpus.sample=1")
    assert "bad.jsonl, line 2: not_json" in message


def test_a_wrong_text_field_names_the_fields_there_are(capsys, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "body": "good"}\n')
    message = ingest(capsys, tmp_path, tmp_path / "c.jsonl", "corpus.sample=1")
    assert "body" in message and "corpus.text_field" in message


def test_a_few_bad_records_are_skipped_counted_and_recorded(capsys, tmp_path):
    lines = [json.dumps({"id": str(index), "text": f"document number {index}"}) for index in range(200)]
    lines[7] = "not json"
    lines[11] = json.dumps({"id": "3", "text": "an id twice"})
    encoded = "\n".join(lines).encode() + b'\n{"id": "x", "text": "\xff"}\n'
    (tmp_path / "c.jsonl").write_bytes(encoded)
    sets = [
        "--set",
        f"corpus.paths={tmp_path / 'c.jsonl'}",
        "--set",
        "corpus.sample=1",
        "--set",
        "corpus.max_skipped=0.02",
    ]
    arguments = ["run", CONFIG, "--tiny", "--workdir", str(tmp_path / "work"), "--until", "ingest", *sets]
    status, _, err = run(capsys, *arguments)
    assert status == 0, err
    (skipped,) = (tmp_path / "work").glob("artifacts/documents/*/skipped.jsonl")
    records = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert [(record["line"], record["reason"]) for record in records] == [
        (8, "not_json"),
        (12, "duplicate_id"),
        (201, "invalid_utf8"),
    ]


def test_status_and_config_speak_json(capsys, tmp_path):
    status, out, _ = run(capsys, "status", CONFIG, "--json", "--workdir", str(tmp_path))
    assert status == 0 and {row["state"] for row in json.loads(out)} == {"missing"}
    status, out, _ = run(capsys, "config", CONFIG, "--json", "--workdir", str(tmp_path), "--set", "training.tokens=1e6")
    resolved = json.loads(out)
    assert status == 0 and resolved["experiment"]["training"]["tokens"] == 1_000_000
    assert resolved["derived"]["steps"] == 1_000_000 // (4 * 256)


def test_a_fault_of_the_program_says_so_and_how_to_see_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_status", lambda options: 1 / 0)
    status, _, err = run(capsys, "status", CONFIG, "--workdir", str(tmp_path))
    assert status == 1 and "ZeroDivisionError" in err and "--debug" in err and "Traceback" not in err


@pytest.mark.parametrize("stage", cli.STAGES)
def test_every_stage_is_a_command(capsys, tmp_path, stage):
    """Run alone in an empty folder, each says which input it lacks, or the field that asks for it; the first runs."""
    arguments = [stage.replace("_", "-"), CONFIG, "--tiny", "--workdir", str(tmp_path)]
    if stage == "ingest":
        assert run(capsys, *arguments)[0] == 0
    else:
        told = f"where {ASKED_FOR[stage]} is set" if stage in ASKED_FOR else "which is not complete"
        assert told in refused(capsys, *arguments)


def test_the_engine_has_an_option_of_its_own(tmp_path: Path) -> None:
    """Guards against an option that is taken and not handed on."""
    arguments = ["run", "configs/quickstart.py", "--tiny", "--workdir", str(tmp_path), "--until", "documents"]
    options = cli._parser().parse_args([*arguments, "--engine", "vllm", "--vllm-python", "/opt/vllm/bin/python"])
    execution = cli._pipeline(options).experiment.execution
    assert (execution.engine, execution.vllm_python) == ("vllm", "/opt/vllm/bin/python")
