"""The quickstart's tiny variant, from documents to a report, on the real components."""

import functools
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.data.rows import Row, RowSource
from sbp_jax.experiments import load
from sbp_jax.pipeline import Pipeline
from sbp_jax.report.takedown import derived
from sbp_jax.report.trace import trace
from sbp_jax.report.trail import Trail
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training.metrics import TIMING, read_metrics
from tests import recompute

CONFIG = "configs/quickstart.py"


def command(workdir: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sbp_jax", "run", CONFIG, "--tiny", "--workdir", str(workdir), *arguments]


def run(workdir: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(workdir, *arguments), capture_output=True, text=True)


def artifacts(workdir: Path) -> dict[str, Artifact]:
    pipeline = Pipeline(load(CONFIG, tiny=True), str(workdir))
    found = {name: pipeline.artifact(name) for name in pipeline.nodes}
    assert all(found.values()), [name for name, artifact in found.items() if artifact is None]
    return found


def trail_of(workdir: Path) -> Trail:
    pipeline = Pipeline(load(CONFIG, tiny=True), str(workdir))
    return Trail(pipeline.experiment, pipeline.nodes, functools.cache(pipeline.artifact), str(workdir))


def group_targets(row: Row) -> list[int]:
    """The documents that a row of groups writes, one for each group."""
    starts = np.flatnonzero(np.diff(row.segments, prepend=0) > 0)
    return row.documents[starts].tolist()


def numbers(made: dict[str, Artifact]) -> dict[str, object]:
    """Everything that must not depend on whether a run was killed: checksums, losses, ledgers, scores."""
    trained = [name for name in made if name.startswith("train-") or name == "synthesizer"]
    volatile = {"metrics.jsonl"}  # holds times; its losses are compared below
    result: dict[str, object] = {
        name: [(file.name, file.checksum) for file in artifact.files if file.name not in volatile]
        for name, artifact in made.items()
    }
    for name in trained:
        lines = read_metrics(made[name].path / "metrics.jsonl")
        result[f"losses of {name}"] = [{key: line[key] for key in line.keys() - TIMING} for line in lines]
    return result


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    (workdir / "stdout.txt").write_text(done.stdout)
    return workdir


def test_the_run_ends_with_the_arms_the_gap_three_examples_and_the_report(undisturbed):
    out = (undisturbed / "stdout.txt").read_text()
    for arm in ("repetition", "sbp", "oracle"):
        assert f"\n{arm} " in out
    assert "gap" in out and out.count("Synthetic document ") == 3
    report = Path(out.strip().splitlines()[-1].removeprefix("report: "))
    assert report.is_file() and "<html" in report.read_text()[:200]


def test_every_arm_saw_as_many_tokens_and_exactly_those_planned(undisturbed):
    made = artifacts(undisturbed)
    ledgers = {
        arm: json.loads(made[f"train-{arm}-0"].file("ledger.json").read_text())
        for arm in ("repetition", "sbp", "oracle")
    }
    totals = {arm: sum(stream["tokens"] for stream in ledger.values()) for arm, ledger in ledgers.items()}
    assert len(set(totals.values())) == 1
    synthetic = ledgers["sbp"]["synthetic"]
    assert 0 < synthetic["tokens"] == synthetic["planned_tokens"] and synthetic["epochs"] <= 1
    for arm, ledger in ledgers.items():
        targets = sum(line["targets"] for line in read_metrics(made[f"train-{arm}-0"].path / "metrics.jsonl"))
        assert targets == sum(stream["tokens"] for stream in ledger.values())


def test_synthetic_documents_can_be_traced_to_their_seeds(undisturbed):
    made = artifacts(undisturbed)
    rows = parquet.read(made["synthetic"]).to_pylist()
    splits = parquet.read(made["splits"])["split"].to_pylist()
    ids = parquet.read(made["documents"])["id"].to_pylist()
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert splits[row["seed"]] == "capped" and ids[row["seed"]] == row["seed_id"]
        assert row["synthesizer"] == made["synthesizer"].key and row["finish"] in ("end", "length")
    assert len({(row["seed"], row["sample"]) for row in rows}) == len(rows)


def test_every_trained_token_is_traced_to_its_document(undisturbed):
    """Guards the chain from a batch to texts: the tokens of a traced example are those of the documents it names."""
    trail, chance = trail_of(undisturbed), random.Random(0)
    made = artifacts(undisturbed)
    tokenizer = text_tokenizer.load(made["tokenizer"].file("tokenizer.json"), trail.experiment.tokenizer)
    steps, kinds = made["train-sbp-0"].stats["steps"], set()
    for _ in range(20):
        asked = f"train-sbp-0:{chance.randint(1, steps)}:{chance.randrange(trail.experiment.training.batch_rows)}"
        told = trace(trail, asked, search=False)
        row = RowSource(made[told["example"]["rows"]])[told["example"]["row"]]
        for document in told["documents"]:
            kinds.add(document["kind"])
            (tokens,) = tokenizer.encode_batch([document["text"]])
            start, stop = document["positions"]
            whole = np.concatenate([tokens, [tokenizer.end_of_document]]).astype("<i4").tobytes()
            assert row.tokens[start + 1 : stop + 1].astype("<i4").tobytes() in whole
    assert kinds == {"real", "synthetic"}


def test_what_came_from_a_document_is_what_its_artifacts_say(undisturbed):
    trail, made = trail_of(undisturbed), artifacts(undisturbed)
    accepted = parquet.read(made["synthetic"]).to_pylist()
    pairs = [row for row in parquet.read(made["pairs"]).to_pylist() if row["verdict"] == "accepted"]
    seeds = sorted({row["seed"] for row in accepted})[:3]
    ids = [row["seed_id"] for seed in seeds for row in accepted if row["seed"] == seed]
    told = derived(trail, ids)
    assert told["not_complete"] == [] and [entry["ordinal"] for entry in told["documents"]] == seeds
    source, packed = RowSource(made["rows-pairs-train"]), made["rows-pairs-train"].rows
    written = [group_targets(source[row]) for row in range(packed)]
    for entry in told["documents"]:
        ordinal, found = entry["ordinal"], entry["synthetic"]["synthetic"]
        read = [row["id"] for row in accepted if ordinal in (row.get("conditioning") or [row["seed"]])]
        assert [row["id"] for row in found["accepted"] if row["read"]] == read
        sides = entry["pairs"]["pairs"]
        for side, other in (("d1", "d2"), ("d2", "d1")):
            expected = sorted(row[other] for row in pairs if row[side] == ordinal)
            assert sorted(pair["ordinal"] for pair in sides[f"as_{side}"]["accepted"]) == expected
        assert set(entry["trained"]) == {"train-repetition-0", "train-sbp-0", "train-oracle-0"}
        targets = [documents for row in range(packed) for documents in written[row] if documents == ordinal]
        assert entry["tuned"]["synthesizer"]["train"]["written"] == len(targets)
    document = trace(trail, f"synthetic:{accepted[0]['id']}")["documents"][0]
    assert (
        document["nearest"]["by_meaning"]["ordinal"] >= 0 and document["checkpoint"]["key"] == made["synthesizer"].key
    )


def test_the_report_s_numbers_follow_from_the_raw_files(undisturbed):
    """The same without any code of this project, `tests/recompute.py`; more of it in `test_recompute.py`."""
    assert recompute.problems(recompute.Raw(undisturbed, "quickstart-tiny")) == []


def _first(change):
    """A fault in the first row of a table that is read."""

    def wrong(table):
        column, value = change
        values = table[column].to_pylist()
        values[0] = value(values[0])
        place = table.column_names.index(column)
        return table.set_column(place, column, pa.array(values, table.schema.field(column).type))

    return wrong


@pytest.mark.parametrize(
    "instance, wrong, found",
    [
        ("score-sbp-0", _first(("nats", lambda nats: nats * 1.01)), "test: sbp"),
        ("score-oracle-0", _first(("nats", lambda nats: nats + 1)), "gap of sbp at equal tokens"),
        ("score-oracle-0", _first(("bytes", lambda size: size + 1)), "test: bytes"),
        ("splits", _first(("split", lambda split: "unused")), "splits"),
        ("synthesized", _first(("new_tokens", lambda tokens: tokens + 1)), "sbp: operations of generation"),
        ("synthesized", _first(("conditioning", lambda read: [*read, 0])), "sbp: operations of generation"),
        ("synthetic", lambda table: table.slice(1), "accepted documents"),
    ],
)
def test_a_fault_in_a_raw_file_is_a_fault_of_the_report(undisturbed, monkeypatch, instance, wrong, found):
    """Guards the recomputation: it must not hold whatever the files say."""
    raw = recompute.Raw(undisturbed, "quickstart-tiny")
    table = raw.table
    monkeypatch.setattr(
        raw, "table", lambda name, *more: wrong(table(name)) if name == instance else table(name, *more)
    )
    assert any(problem.startswith(found) or found in problem for problem in recompute.problems(raw))


@pytest.mark.parametrize(
    "path, found",
    [
        (("arms", 1, "synthetic_tokens"), "sbp: synthetic tokens"),
        (("arms", 0, "real_epochs"), "repetition: epochs"),
        (("comparisons", 0, "difference"), "sbp minus repetition"),
        (("comparisons", 1, "low"), "oracle minus repetition"),
        (("compute", 1, "flops", "embedding"), "sbp: operations of embedding"),
        (("compute", 1, "flops", "total"), "sbp: operations of total"),
        (("oracle_gain", "nats_per_token"), "the oracle's gain"),
    ],
)
def test_a_wrong_number_in_the_report_is_found(undisturbed, path, found):
    raw = recompute.Raw(undisturbed, "quickstart-tiny")
    *way, last = path
    place = functools.reduce(lambda value, key: value[key], way, raw.summary)
    place[last] = place[last] * 1.001 + (1 if isinstance(place[last], int) else 0.01)
    assert any(found in problem for problem in recompute.problems(raw))


def test_a_second_run_does_nothing_again(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "artifacts").rglob("*") if path.is_file()}
    done = run(undisturbed)
    assert done.returncode == 0 and "..." not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in (undisturbed / "artifacts").rglob("*") if path.is_file()}
    assert before == after


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_numbers(undisturbed, tmp_path):
    """SIGKILL at random moments, until the run comes through."""
    seed = time.time_ns()
    print("random moments from seed", seed)
    chance = random.Random(seed)
    kills, returncode = 0, None
    while returncode is None:
        process = subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            # Later ever more time: on a machine with other work to do a stage takes longer to begin.
            _, err = process.communicate(timeout=chance.uniform(4, 25 + 5 * kills))
            returncode = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            assert kills < 40, "no progress between kills"
    assert returncode == 0 and kills >= 2, err
    assert numbers(artifacts(tmp_path)) == numbers(artifacts(undisturbed))


@pytest.mark.slow
def test_another_corpus_needs_only_its_path_and_field_names(tmp_path):
    """Documents as other people keep them: Parquet, no ids, another name for the text."""
    with gzip.open("data/wikipedia_vital/documents.jsonl.gz", "rt") as stream:
        texts = [json.loads(line)["text"] for line in stream][::16]
    pq.write_table(pa.table({"body": texts}), tmp_path / "corpus.parquet")
    fields = {"paths": tmp_path / "corpus.parquet", "text_field": "body", "id_field": "none", "sample": 1}
    sets = [part for name, value in fields.items() for part in ("--set", f"corpus.{name}={value}")]
    done = run(tmp_path / "work", *sets)
    assert done.returncode == 0, done.stderr
    assert "Synthetic document 3" in done.stdout


@pytest.mark.slow
def test_a_full_disk_stops_the_run_in_one_sentence_and_loses_nothing(undisturbed, tmp_path):
    """The corpus's tokens cannot be written; what was made before is kept, and the run goes on when there is room."""
    pipeline = Pipeline(load(CONFIG, tiny=True), str(tmp_path))
    shard = pipeline.path("tokens") / "part-00000.array_record"
    shard.parent.mkdir(parents=True)
    os.symlink("/dev/full", shard)
    done = run(tmp_path, "--until", "tokens")
    assert done.returncode == 2 and "the disk is full" in done.stderr and "Traceback" not in done.stderr
    shard.unlink()
    done = run(tmp_path, "--until", "tokens")
    assert done.returncode == 0 and "documents ..." not in done.stderr, "only the tokens are made again"
    assert pipeline.artifact("tokens").files == artifacts(undisturbed)["tokens"].files
