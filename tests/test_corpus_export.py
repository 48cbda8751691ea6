"""Corpora taken away: the documents that an arm reads, whole, with lineage, in what `datasets` loads."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Arm, Experiment, Pairs, Tuning
from sbp_jax.data.corpus_export import export
from sbp_jax.data.synthetic import SCHEMA
from sbp_jax.errors import SbpError

SPLITS = ["capped", "oracle", "test", "capped", "validation", "oracle"]
REAL = [{"id": f"real-{n}", "source": "a | <b>" if n else "c", "text": f'Text {n}, "quoted"\nand ü.'} for n in range(6)]
EXPERIMENT = Experiment(
    name="test",
    arms=(Arm("repetition"), Arm("sbp", synthetic_share=0.375), Arm("all", synthetic_share=0.1, real="oracle")),
)


def artifact(folder: Path, name: str, tables: list[pa.Table], stats: dict | None = None) -> Artifact:
    output = Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)
    for number, table in enumerate(tables):
        output.shard(number, ".parquet", lambda writing, table=table: parquet.write(writing, table))
    return output.finish(stats)


def synthetic(first: int) -> pa.Table:
    rows = []
    for number in (first, first + 1):
        row = dict.fromkeys(SCHEMA.names)
        row |= {
            "ordinal": number,
            "id": f"syn-0-{number}",
            "text": f"Written {number}.",
            "seed": 0,
            "seed_id": "real-0",
        }
        rows.append(row | {"conditioning": [0], "conditioning_ids": ["real-0"], "temperature": 0.5})
    table = pa.Table.from_pylist(rows, SCHEMA)
    return table.append_column("verdict", [["accepted"] * 2]).append_column("copied", [[0.25, 0.5]])


@pytest.fixture
def find(tmp_path):
    real = [
        pa.Table.from_pylist([row | {"ordinal": n} for n, row in enumerate(REAL)][start : start + 3])
        for start in (0, 3)
    ]
    splits = [pa.table({"split": SPLITS[start : start + 3]}) for start in (0, 3)]
    stats = {"documents": 7, "accepted": 4, "rejected_loop": 1, "rejected_copied": 2, "rejected_held_out": 0}
    found = {
        "documents": artifact(tmp_path, "documents", real),
        "splits": artifact(tmp_path, "splits", splits),
        "synthetic": artifact(tmp_path, "synthetic", [synthetic(0), synthetic(2)], stats),
    }
    return found.get


def options(folder: Path, corpus: str = "sbp", kind: str = "mixed", form: str = "parquet") -> Namespace:
    return Namespace(corpus=corpus, to=str(folder), kind=kind, format=form)


def loaded(folder: Path) -> list[dict]:
    """As a stranger reads it, without a word about its files."""
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache")).to_list()


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize(("corpus", "splits"), [("sbp", ("capped",)), ("all", ("capped", "oracle"))])
def test_an_arms_documents_are_loaded_whole_each_once(tmp_path, find, form, corpus, splits):
    export(EXPERIMENT, find, options(tmp_path / "out", corpus, form=form))
    rows = loaded(tmp_path / "out")
    own = [row for row, split in zip(REAL, SPLITS, strict=True) if split in splits]
    real = [{name: row[name] for name in ("id", "source", "text")} for row in rows if row["kind"] == "real"]
    assert real == own
    made = [row for row in rows if row["kind"] == "synthetic"]
    assert [row["text"] for row in made] == [f"Written {number}." for number in range(4)]
    assert all(row["conditioning_ids"] == ["real-0"] and row["temperature"] == 0.5 for row in made)
    assert [row["copied"] for row in made] == [0.25, 0.5] * 2
    assert not {"ordinal", "seed", "conditioning", "verdict"} & set(rows[0]), "ordinals mean nothing elsewhere"


def test_the_card_counts_and_cannot_be_broken_by_the_corpus(tmp_path, find):
    export(EXPERIMENT, find, options(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    size = sum(len(row["text"].encode()) for row, split in zip(REAL, SPLITS, strict=True) if split == "capped")
    assert f"| real | 2 | {size} |" in card and "| synthetic | 4 | 40 |" in card
    assert "rejected copied 2, loop 1 |" in card and "held_out" not in card
    assert "| a \\| &lt;b> | 1 |" in card and "37.5%" in card and "Not measured" in card


def test_the_card_tells_what_was_measured(tmp_path, find):
    from sbp_jax.data.data_card import MEASURES

    measures = {name: {"label": name.upper(), "definition": f"what {name} is"} for name in MEASURES}
    rows = [
        {"group": group, "duplicates": value} for group, value in (("real", 0.01), ("accepted", 0.02), ("random", 1))
    ]
    output = Output(epath.Path(tmp_path / "quality"), Recipe("quality", 1, {}, {}), "quality")
    with output.writing("quality.json") as writing:
        writing.path.write_text(json.dumps({"measures": measures, "rows": rows}))
    measured = output.finish()
    export(EXPERIMENT, lambda name: measured if name == "quality" else find(name), options(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| measure | real | in this corpus |" in card and "| DUPLICATES | 0.01 | 0.02 |" in card
    assert "- **DUPLICATES**: what duplicates is." in card


@pytest.mark.parametrize(
    ("arm", "sets", "there", "not_there"),
    [
        ({}, {}, ["related documents", "similarity of 0.75 or more", "No other model"], ["control"]),
        ({"pairs": "random"}, {}, ["not related", "drawn at random"], ["similarity of"]),
        ({"pairs": "none"}, {}, ["without reading any"], ["similarity of", "passes over the pairs"]),
        ({}, {"pairs": Pairs(path="mine.jsonl")}, ["the user's own"], ["similarity of", "MiniLM"]),
        ({}, {"tuning": Tuning(base="/a/model")}, ["/a/model, which others"], ["No other model", "layers of width"]),
    ],
)
def test_the_card_says_of_each_kind_of_arm_what_is_true_of_it(tmp_path, find, arm, sets, there, not_there):
    experiment = replace(EXPERIMENT, arms=(Arm("sbp", synthetic_share=0.375, **arm),), **sets)

    def any_synthetic(name: str):
        return find("synthetic" if name.startswith("synthetic") else name)

    export(experiment, any_synthetic, options(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(text in card for text in there) and not any(text in card for text in not_there), card


def test_synthetic_documents_alone(tmp_path, find):
    files = export(EXPERIMENT, find, options(tmp_path / "out", kind="synthetic"))
    assert [file.name for file in files] == ["synthetic-00000.parquet", "synthetic-00001.parquet", "README.md"]
    assert len(loaded(tmp_path / "out")) == 4


def test_what_cannot_be_exported_says_why(tmp_path, find):
    with pytest.raises(SbpError, match="no arm repetition reads synthetic text; those that do are sbp, all"):
        export(EXPERIMENT, find, options(tmp_path / "out", "repetition"))
    with pytest.raises(SbpError, match="synthetic is not complete"):
        export(EXPERIMENT, lambda name: None, options(tmp_path / "out"))
    (tmp_path / "file").touch()
    with pytest.raises(SbpError, match="is not empty; name a new folder"):
        export(EXPERIMENT, find, options(tmp_path))
