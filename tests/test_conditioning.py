"""Several conditioning documents, and none: from artifacts to synthetic documents, and a whole experiment."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sbp_jax.artifacts import Artifact, arrayrecord, parquet
from sbp_jax.config import Arm
from sbp_jax.data.rows import RowSource
from sbp_jax.experiments import check, load
from sbp_jax.pipeline import Pipeline
from tests.test_synthesize import CONTEXT, SYNTHESIS, _inputs, _run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _inputs(tmp_path_factory.mktemp("inputs"))


def test_further_documents_are_read_and_told_and_leave_room_for_what_is_written(tmp_path: Path, inputs) -> None:
    """What was read is the lineage of a document: all of it, and nothing that was not."""
    sizes = [len(record) // 4 for record in arrayrecord.source(inputs["tokens"])]
    ids = parquet.read(inputs["documents"])["id"].to_pylist()
    changes = {"synthesis": replace(SYNTHESIS, samples=2)}
    table = parquet.read(_run(tmp_path / "three", inputs, conditioning=3, **changes)).to_pylist()
    seen = set()
    for row in table:
        seed, sample = row["seed"], row["sample"]
        circle = [seed + 2, seed + 4] if seed < 18 else []
        fits, room = [], CONTEXT - SYNTHESIS.max_new_tokens - sizes[seed] - 2
        for other in circle:
            if sizes[other] + 1 <= room:
                fits.append(other)
                room -= sizes[other] + 1
        assert row["conditioning"] == [*fits[::-1], seed]
        assert row["conditioning_ids"] == [ids[ordinal] for ordinal in row["conditioning"]]
        assert row["similarity"] == (None if seed >= 18 else pytest.approx(0.85))
        assert row["new_tokens"] == SYNTHESIS.max_new_tokens or row["finish"] == "end"
        seen.add((len(fits), len(circle)))
        assert sample in (0, 1, 2, 3)
    assert {(2, 2), (0, 0)} <= seen and seen & {(1, 2), (0, 2)}
    assert [row["seed"] for row in table[::2]] == [row["seed"] for row in table[1::2]]
    two = parquet.read(_run(tmp_path / "two", inputs, conditioning=2, **changes)).to_pylist()
    by_sample = {(row["seed"], row["sample"]): row["conditioning"][:-1] for row in two}
    assert (by_sample[0, 0], by_sample[0, 1]) == ([2], []) and by_sample[6, 0] == [8] and by_sample[6, 1] == [10]
    texts = [{(row["seed"], row["sample"]): row["text"] for row in rows} for rows in (two, table)]
    assert all(texts[0][20, sample] == texts[1][20, sample] for sample in (0, 1))  # which has no partners
    assert texts[0][6, 0] != texts[1][6, 0]


@pytest.mark.slow
def test_a_whole_experiment_with_two_documents_and_the_control_of_self_samples(tmp_path: Path) -> None:
    """Pairs, groups, tuning, generation, arms and the report, on the tiny quickstart."""
    experiment = load("configs/quickstart.py", tiny=True)
    arms = (*experiment.arms, Arm("self_samples", synthetic_share=0.25, pairs="none"))
    experiment = replace(experiment, arms=arms, tuning=replace(experiment.tuning, conditioning=2))
    check(experiment)
    pipeline = Pipeline(experiment, str(tmp_path))
    pipeline.run(print)
    made = {name: pipeline.artifact(name) for name in pipeline.nodes}
    groups = {(row["seed"], row["target"]): row for row in parquet.read(made["groups"]).to_pylist()}
    pairs = parquet.read(made["pairs"]).to_pylist()
    accepted = {(row["d1"], row["d2"]) for row in pairs if row["verdict"] == "accepted"}
    assert made["groups"].stats["reads_1"] > 0 and made["groups"].stats["reads_2"] > 0
    held_out = {seed for (seed, _), row in groups.items() if row["part"] == "validation"}
    for (seed, target), row in groups.items():
        read = set(row["conditioning"])
        assert row["conditioning"][-1] == seed and target not in read and len(read) == len(row["conditioning"])
        assert {(seed, other) for other in (*read - {seed}, target)} <= accepted
        assert row["tokens"] <= experiment.tuning.context + 1
        assert row["part"] == "validation" or not held_out & (read | {target})
    separator = json.loads(made["tokenizer"].file("tokenizer.json").read_text())
    (separator,) = [t["id"] for t in separator["added_tokens"] if t["content"] == experiment.tokenizer.separator]
    rows = RowSource(made["rows-pairs-train"])
    assert sum(int((row.tokens == separator).sum()) for row in rows) == sum(
        len(row["conditioning"]) for row in groups.values() if row["part"] == "train"
    )
    written = parquet.read(made["synthesized"]).to_pylist()
    sizes = {len(row["conditioning"]) for row in written}
    assert sizes == {1, 2} and all(row["conditioning"][-1] == row["seed"] for row in written)
    assert all((row["seed"], other) in accepted for row in written for other in row["conditioning"][:-1])
    of_itself = parquet.read(made["synthesized-self"]).to_pylist()
    assert {row["seed"] for row in of_itself} == {None} and {row["synthesizer"] for row in of_itself} == {
        made["train-repetition-0"].key
    }
    summary = json.loads(made["report"].file("summary.json").read_text())
    assert {arm["arm"] for arm in summary["arms"]} == {"repetition", "sbp", "oracle", "self_samples"}
    assert {gap["arm"] for gap in summary["gaps"]} == {"sbp", "self_samples"}
