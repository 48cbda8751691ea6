"""The filter stage: planted faults, each rejected with its own reason."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, Filters
from sbp_jax.errors import SbpError
from sbp_jax.stages import filter as stage
from sbp_jax.text.repetition import repetition, words


def _text(seed: int, length: int = 60) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 10_000, length))


CAPPED, ORACLE = _text(100), _text(101)
CLEAN = (_text(0), _text(1), _text(2))
COPY = _text(3, 20) + " " + CAPPED.upper()
FAULTS = {
    "unfinished": _text(4),
    "too_short": _text(5, 19),
    "repetition": "the cat sat on the mat and " * 10,
    "copied": COPY,
    "duplicate": CLEAN[0],
}


def _artifact(path: Path, tables: list[pa.Table]) -> Artifact:
    output = Output(epath.Path(path), Recipe(path.name, 1, {}, {}), path.name)
    for index, table in enumerate(tables):
        output.shard(index, ".parquet", lambda writing, table=table: parquet.write(writing, table))  # type: ignore[misc]
    return output.finish()


def _run(
    folder: Path, shards: list[list[tuple[str, str]]], filters: Filters | None = None, output: str = "out"
) -> Artifact:
    """Filters shards of (text, finish)."""
    real = pa.table({"ordinal": [0, 1], "id": ["a", "b"], "text": [CAPPED, ORACLE]})
    splits = pa.table({"ordinal": [0, 1], "split": ["capped", "oracle"]})
    first, tables = 0, []
    for shard in shards:
        ordinals = list(range(first, first + len(shard)))
        columns = {"ordinal": ordinals, "id": [f"syn-{i}-0" for i in ordinals], "text": [text for text, _ in shard]}
        tables.append(pa.table(columns | {"seed": ordinals, "finish": [finish for _, finish in shard]}))
        first += len(shard)
    made = {"documents": [real], "splits": [splits], "synthesized": tables}
    inputs = {name: _artifact(folder / name, content) for name, content in made.items()}
    target = Output(epath.Path(folder / output), Recipe("filter", 1, {}, {}), "filter")
    return stage.run(target, **inputs, filters=Filters() if filters is None else filters, execution=Execution())


def _finish(reason: str) -> str:
    return "length" if reason == "unfinished" else "end"


def _shards() -> list[list[tuple[str, str]]]:
    faults = [(text, _finish(reason)) for reason, text in FAULTS.items()]
    return [[(CLEAN[0], "end"), *faults[:2]], [(CLEAN[1], "end"), *faults[2:], (CLEAN[2], "end")]]


def test_planted_faults_are_rejected_with_their_reason_and_clean_ones_kept(tmp_path: Path) -> None:
    artifact = _run(tmp_path, _shards())
    accepted = parquet.read(artifact).to_pylist()
    assert [row["text"] for row in accepted] == list(CLEAN)
    assert [row["ordinal"] for row in accepted] == [0, 1, 2]
    assert [row["seed"] for row in accepted] == [0, 3, 7]  # lineage stays
    assert all(row["words"] == 60 and row["repetition"] < 0.05 and row["copied"] == 0 for row in accepted)
    assert {row["rule_version"] for row in accepted} == {stage.VERSION}
    rejected = parquet.read(artifact, prefix="rejected").to_pylist()
    assert {row["verdict"]: row["text"] for row in rejected} == FAULTS
    stats = {"documents": 8, "accepted": 3, "bytes": sum(len(text.encode()) for text in CLEAN)}
    assert artifact.stats == stats | {f"rejected_{reason}": 1 for reason in FAULTS}


def test_scores_are_fractions_of_the_document(tmp_path: Path) -> None:
    """Guards the denominators: 80 words hold 68 shingles of 13, 48 of them whole inside the 60 copied words."""
    artifact = _run(tmp_path, [[(COPY, "end"), (CLEAN[0], "end")]], Filters(max_copied=1.0))
    assert parquet.read(artifact)["copied"].to_pylist() == pytest.approx([48 / 68, 0])


def test_only_the_capped_set_counts_as_a_source_of_copies(tmp_path: Path) -> None:
    """Guards against a filter that looks at documents which the capped arms never see."""
    assert _run(tmp_path, [[(ORACLE, "end")]]).stats["accepted"] == 1


def test_unfinished_documents_can_be_kept(tmp_path: Path) -> None:
    assert _run(tmp_path, [[(CLEAN[0], "length")]], Filters(unfinished="keep")).stats["accepted"] == 1


def test_a_resumed_run_gives_the_same_ordinals(tmp_path: Path) -> None:
    """Guards against ordinals that start again at 0 where shards were skipped."""
    _run(tmp_path, _shards())
    folder = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    for name in ("part-00001.parquet", "rejected-00000.parquet", "manifest.json"):
        (folder / name).unlink()
    stats = _run(tmp_path, _shards()).stats
    assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == before
    assert stats["accepted"] == 3 and stats["rejected_too_short"] == 1


def test_a_shard_without_accepted_documents_is_no_obstacle(tmp_path: Path) -> None:
    artifact = _run(tmp_path, [[("short", "end")], [(CLEAN[0], "end")]])
    assert parquet.read(artifact)["ordinal"].to_pylist() == [0]


def test_nothing_accepted_says_why_and_which_field_to_loosen(tmp_path: Path) -> None:
    shard = [(_text(7, 5), "end"), (_text(8, 5), "end"), (_text(9), "length")]
    with pytest.raises(SbpError, match=r"all 3 .* \(too_short 2, unfinished 1\); lower filters.min_words"):
        _run(tmp_path, [shard])


def test_no_documents_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SbpError, match="there are no synthetic documents"):
        _run(tmp_path, [[]])


def test_repetition_counts_ngrams_that_were_there_before() -> None:
    assert repetition(words("a b c d A, b; c d")) == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repetition(words("a b c")) == 0
    assert repetition(["x"] * 14) == pytest.approx(10 / 11)
