"""The triples of the page: which are chosen, from how few shards, and what is marked in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.report import triples as chosen
from sbp_jax.report import triples_page
from sbp_jax.report.excerpts import shared, windowed
from sbp_jax.report.triples import triples
from tests.test_report import _generated, _tables, pair_table

DOCUMENTS, PER_SHARD = 400, 20
COLUMNS = ("words", "copied", "repetition", "seed_overlap", "seed_common", "held_out", "similarity", "logprob")


def _inputs(folder: Path) -> tuple[Artifact, Artifact, Artifact]:
    """Synthetic documents, pairs and documents: each has two accepted pairs, and one that is nearer but rejected."""
    ordinals = np.arange(DOCUMENTS)
    real = pa.table(
        {"ordinal": ordinals, "id": [f"doc-{n}" for n in ordinals], "text": [f"text {n}" for n in ordinals]}
    )
    real = real.append_column("source", pa.array([f"source-{n % 3}" for n in ordinals]))
    documents = _tables(folder / "documents", [real.slice(at, PER_SHARD) for at in range(0, DOCUMENTS, PER_SHARD)])
    d1 = np.repeat(ordinals, 3)
    rank = np.tile([0, 1, 2], DOCUMENTS)
    d2 = (d1 + np.tile([7, 1, 150], DOCUMENTS)) % DOCUMENTS
    verdict = ["near_duplicate", "accepted", "accepted"] * DOCUMENTS
    table = pair_table(d1.tolist(), d2.tolist(), (0.9 - rank / 10).tolist(), verdict, rank=rank)
    pairs = _tables(folder / "pairs", [table.slice(at, 90) for at in range(0, len(d1), 90)])
    seeds = (np.arange(600) * 7 % DOCUMENTS).tolist()
    rows = _generated([f"written {seed}" for seed in seeds], seeds)
    rows |= {"sample": [place // DOCUMENTS for place in range(600)]}
    rows["id"] = [f"syn-{seed}-{sample}" for seed, sample in zip(seeds, rows["sample"], strict=True)]
    written = pa.table(rows)
    kept = np.arange(600) % 4 > 0
    rejected = written.filter(pa.array(~kept))
    reasons = ["loop" if place % 30 == 0 else "copied" for place in range(rejected.num_rows)]
    rejected = rejected.append_column("verdict", pa.array(reasons))
    accepted = written.filter(pa.array(kept))
    shards = [accepted.slice(at, 50) for at in range(0, accepted.num_rows, 50)]
    return _tables(folder / "synthetic", shards, rejected=rejected), pairs, documents


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Artifact]:
    return _inputs(tmp_path_factory.mktemp("triples"))


def test_a_triple_is_a_document_with_its_seed_and_its_nearest_accepted_pair(
    inputs: tuple[Artifact, Artifact, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the lineage: three texts that do belong together, the pair being the accepted one of least rank."""
    monkeypatch.setattr(chosen, "SHARDS", 100)
    found = triples(*inputs, 60)
    assert len(found) == 60
    for row in found:
        seed = int(row["seed_id"].removeprefix("doc-"))
        assert row["text"] == f"written {seed}" and row["seed_text"] == f"text {seed}"
        assert row["target_text"] == f"text {(seed + 1) % DOCUMENTS}" and row["pair_similarity"] == pytest.approx(0.8)
        assert row["source"] == f"source-{seed % 3}" and row["id"].startswith(f"syn-{seed}-")


def test_accepted_and_rejected_ones_of_every_kind_are_there(inputs: tuple[Artifact, Artifact, Artifact]) -> None:
    verdicts = [row["verdict"] for row in triples(*inputs, 30)]
    assert set(verdicts) == {"accepted", "loop", "copied"} and verdicts.count("accepted") == 20


def test_few_shards_are_read(inputs: tuple[Artifact, Artifact, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the report of a large run: seeds and true pairs lie in `SHARDS` shards, spread over the corpus."""
    monkeypatch.setattr(chosen, "SHARDS", 4)
    found = triples(*inputs, 60)
    ordinals = [int(row[name].removeprefix("doc-")) for row in found for name in ("seed_id", "target_id")]
    assert len(found) > 20
    assert {ordinal // PER_SHARD for ordinal in ordinals} == {0, 6, 12, 19}


def test_the_choice_does_not_depend_on_the_shards(
    inputs: tuple[Artifact, Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "SHARDS", 100)
    _, pairs, documents = inputs
    first = triples(*inputs, 40)
    synthetic = inputs[0]
    rejected = parquet.read(synthetic, prefix="rejected")
    whole = _tables(tmp_path / "synthetic", [parquet.read(synthetic)], rejected=rejected)
    assert triples(whole, pairs, documents, 40) == first


def test_a_seed_without_a_pair_has_no_target(tmp_path: Path) -> None:
    """Guards documents for which nothing was read, and seeds whose pairs were all rejected."""
    real = pa.table({"ordinal": [0, 1], "id": ["a", "b"], "text": ["first", "second"]})
    documents = _tables(tmp_path / "documents", [real])
    pairs = _tables(tmp_path / "pairs", [pair_table([0], [1], [0.9], ["too_long"])])
    rows = _generated(["one", "two"], [0, 1])
    table = pa.table(rows | {"seed": pa.array([0, None], pa.int64()), "seed_id": pa.array(["a", None], pa.string())})
    synthetic = _tables(
        tmp_path / "synthetic", [table], rejected=table.slice(0, 0).append_column("verdict", pa.array([], pa.string()))
    )
    found = {row["id"]: row for row in triples(synthetic, pairs, documents)}
    assert found["syn-0-0"]["seed_text"] == "first" and found["syn-1-0"]["seed_text"] is None
    assert all(row["target_text"] is None and row["pair_similarity"] is None for row in found.values())


RUN = "one two three four five six seven eight"


def test_runs_of_eight_words_are_marked_by_whom_they_are_shared_with() -> None:
    """Guards the length: eight words in a row are a run, seven are none; and no character is lost."""
    text = f"Start {RUN.upper()}, and then eins zwei drei vier fünf sechs sieben acht; end."
    other = f"x {RUN.replace(' ', ', ')} y"
    third = f"eins zwei drei vier fu\u0308nf sechs sieben acht {RUN}"
    pieces = shared(text, [("seed", other), ("pair", third)], 8)
    assert "".join(piece for piece, _ in pieces) == text
    assert [entry for entry in pieces if entry[1]] == [
        (RUN.upper(), "seed pair"),
        ("eins zwei drei vier fünf sechs sieben acht", "pair"),
    ]
    assert [kind for _, kind in shared(RUN, [("seed", RUN[:-1])], 8)] == [""]
    assert shared("", [("seed", RUN)], 8) == [] and shared("...", [("seed", None)], 8) == [("...", "")]


def test_a_run_far_down_a_long_text_is_shown() -> None:
    """Guards the excerpt: the beginning, what is left out, and the text around the first run that is shared."""
    text = "word " * 1000 + RUN + " word" * 1000
    pieces = windowed(shared(text, [("seed", RUN)], 8), 600)
    assert (RUN, "seed") in pieces and sum(len(piece) for piece, kind in pieces if kind != "gap") <= 700
    left_out = [int("".join(filter(str.isdigit, piece))) for piece, kind in pieces if kind == "gap"]
    assert len(text) == sum(left_out) + sum(len(piece) for piece, kind in pieces if kind != "gap")


def test_the_data_hold_no_tag_and_no_more_than_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triples_page, "BYTES", 20_000)
    row: dict[str, Any] = dict.fromkeys((*COLUMNS, *chosen.LINEAGE), None)
    row |= {"id": "a", "text": "</script><!-- &\u2028" * 40, "verdict": "accepted", "finish": "end", "seed_id": "b"}
    row |= {"seed_text": "seed", "source": None, "target_id": None, "target_text": None, "pair_similarity": None}
    row |= {"logprob": -6.0, "new_tokens": 3, "temperature": 1.0, "top_p": 0.9}
    kept, data = triples_page.shown([row] * 100)
    assert 3 < len(kept) < 100 and len(data.encode()) < 20_010
    assert not set("<>&\u2028") & set(data)
    assert kept[0]["numbers"]["logprob"] == -2.0
