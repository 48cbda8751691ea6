"""Pairs that the user brings: joined by id, judged by the rules that are not about similarity, faults named."""

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.cli import main
from sbp_jax.config import Execution
from sbp_jax.errors import SbpError
from sbp_jax.stages import import_pairs

IDS = [f"doc {n}" for n in range(10)]
PAIRS = [("doc 3", "doc 1", 0.5), ("doc 0", "doc 8", 0.25), ("doc 3", "doc 2", 0.75), ("doc 0", "doc 1", 0.5)]
FOUND = [(0, 1, 0.5), (0, 8, 0.25), (3, 2, 0.75), (3, 1, 0.5)]  # by d1 and falling similarity


def output(folder: Path, name: str) -> Output:
    return Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)


def artifact(folder: Path, name: str, tables: list[pa.Table]) -> Artifact:
    made = output(folder, name)
    for number, table in enumerate(tables):
        made.shard(number, ".parquet", lambda writing, table=table: parquet.write(writing, table))
    return made.finish()


def imported(folder: Path, path: Path) -> Artifact:
    shards = [range(0, 4), range(4, 10)]
    documents = [pa.table({"ordinal": list(shard), "id": [IDS[n] for n in shard]}) for shard in shards]
    splits = [pa.table({"split": ["test" if n == 7 else "capped" for n in shard]}) for shard in shards]
    inputs = {"documents": artifact(folder, "documents", documents), "splits": artifact(folder, "splits", splits)}
    return import_pairs.run(output(folder, "found"), **inputs, path=str(path), execution=Execution())


def rows(made: Artifact) -> list[tuple]:
    return [tuple(row.values()) for row in parquet.read(made).to_pylist()]


def write(folder: Path, name: str, pairs: list[tuple], similarity: bool = True) -> Path:
    names = ("d1", "d2", "similarity") if similarity else ("d1", "d2")
    records = [dict(zip(names, pair, strict=False)) for pair in pairs]
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), file)
    else:
        file.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    return file


@pytest.mark.parametrize("kind", ["pairs.parquet", "pairs.jsonl", "pairs.jsonl.gz"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(import_pairs, "PAIRS_PER_SHARD", 1)
    made = imported(tmp_path, write(tmp_path, kind, PAIRS))
    assert rows(made) == FOUND
    assert len(made.shards(".parquet")) == 2, "the pairs of a document stand in one shard"


def test_a_folder_is_read_whole_and_without_similarities_all_are_alike(tmp_path):
    write(tmp_path, "some/a.jsonl", PAIRS[:2], similarity=False)
    write(tmp_path, "some/b.parquet", PAIRS[2:], similarity=False)
    assert rows(imported(tmp_path, tmp_path / "some")) == [(0, 1, 1.0), (0, 8, 1.0), (3, 1, 1.0), (3, 2, 1.0)]


def test_pairs_that_are_no_use_are_counted(tmp_path):
    extra = [("doc 7", "doc 1", 1.0), ("doc 1", "doc 7", 1.0), ("doc 4", "doc 4", 1.0), ("doc 3", "doc 1", 0.1)]
    made = imported(tmp_path, write(tmp_path, "pairs.jsonl", PAIRS + extra))
    assert rows(made) == FOUND
    assert made.stats["not_capped"] == 2 and made.stats["repeated"] == 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("doc 3", "doc x", 1.0)], r"1 ids that no document has \('doc x'\); check corpus.id_field"),
        ([("doc 3", "doc 1", float("nan"))], "similarity of pair 1 is no number"),
        ([("doc 7", "doc 1", 1.0)], "no pair of two documents of the capped set"),
    ],
)
def test_faults_are_named(tmp_path, pairs, message):
    with pytest.raises(SbpError, match=message):
        imported(tmp_path, write(tmp_path, "pairs.parquet", pairs))


def test_ids_are_text_whatever_they_look_like(tmp_path, monkeypatch):
    """A reader that guesses types takes some for dates and numbers."""
    ids = ["2020-01-01", "7", "1e5", "true", *IDS[4:]]
    monkeypatch.setattr(sys.modules[__name__], "IDS", ids)
    pairs = [("2020-01-01", "7"), ("1e5", "true")]
    assert rows(imported(tmp_path, write(tmp_path, "p.jsonl", pairs, similarity=False))) == [(0, 1, 1.0), (2, 3, 1.0)]
    (tmp_path / "q.jsonl").write_text('{"d1": "7", "d2": "1e5", "similarity": "high"}\n')
    with pytest.raises(SbpError, match="q.jsonl cannot be read"):
        imported(tmp_path, tmp_path / "q.jsonl")


def test_files_of_another_form_say_what_is_wanted(tmp_path):
    with pytest.raises(SbpError, match="must be a file, or a folder of files, of kind .parquet"):
        imported(tmp_path, tmp_path / "nothing.parquet")
    (tmp_path / "pairs.jsonl").write_text('{"a": "doc 1", "b": "doc 2"}\n')
    with pytest.raises(SbpError, match="no column d1, only .*; it must have d1 and d2"):
        imported(tmp_path, tmp_path / "pairs.jsonl")
    (tmp_path / "pairs.jsonl").write_text('{"d1": "doc 1", "d2"')
    with pytest.raises(SbpError, match="cannot be read"):
        imported(tmp_path, tmp_path / "pairs.jsonl")


def test_the_pipeline_judges_them_without_asking_for_similarity(tmp_path, capsys):
    """Documents that share no word are a pair because the user says so; a near-copy is none all the same."""
    words = [[f"w{n}x{place}" for place in range(40)] for n in range(40)]
    words[5] = words[4][:-2] + ["other", "words"]
    lines = [{"id": f"doc {n}", "text": " ".join(own), "split": "capped"} for n, own in enumerate(words)]
    lines[38]["split"], lines[39]["split"] = "validation", "test"
    corpus = tmp_path / "documents.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = write(tmp_path, "pairs.jsonl", [("doc 1", "doc 9"), ("doc 4", "doc 5"), ("doc 2", "doc 3")], similarity=False)
    sets = [f"corpus.paths={corpus}", "corpus.split_field=split", f"pairs.path={own}", "pairs.minimum=1"]
    sets += ["tokenizer.vocab_size=300"]
    options = [part for assignment in sets for part in ("--set", assignment)]
    command = ["configs/quickstart.py", *options, "--workdir", str(tmp_path / "run")]
    assert main(["run", *command, "--until", "pairs"]) == 0, capsys.readouterr().err
    table = parquet.table(epath.Path(next((tmp_path / "run").glob("artifacts/pairs/*/part-00000.parquet"))))
    verdicts = {(row["d1"], row["d2"]): row["verdict"] for row in table.to_pylist()}
    assert verdicts == {(1, 9): "accepted", (2, 3): "accepted", (4, 5): "near_duplicate"}
    assert not (tmp_path / "run/artifacts/embeddings").exists(), "nothing has to be embedded for that"
