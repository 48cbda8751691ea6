"""Takedown lists: everything that came from a real document, against planted lineage and against all batches."""

from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.data.mixing import mix
from sbp_jax.data.rows import SYNTHETIC, RowSource
from sbp_jax.data.stream_order import rows_of
from sbp_jax.errors import SbpError
from sbp_jax.report.takedown import derived
from sbp_jax.report.trace import trace
from sbp_jax.report.training_examples import times
from tests.lineage import (
    BATCH,
    NODES,
    REAL,
    STEPS,
    WRITTEN,
    make,
    output_of,
    plan_of,
    source_of,
    synthetic_tables,
    trail_of,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return make(tmp_path_factory.mktemp("planted"))


def test_rows_of_a_stream_are_found_by_its_order(made: dict[str, Artifact]) -> None:
    """Guards the bisection: for every document of every stream, the rows that a scan finds."""
    for name in ("rows-capped", "rows-oracle", *(f"rows-synthetic{suffix}" for suffix in WRITTEN)):
        source = RowSource(made[name])
        held = [set(source[row].documents.tolist()) for row in range(len(source))]
        for ordinal in range(REAL):
            assert list(rows_of(source, ordinal)) == [row for row, there in enumerate(held) if ordinal in there]


def test_everything_that_came_from_a_document_is_listed(made: dict[str, Artifact]) -> None:
    told = derived(trail_of(made), ["doc-3", "doc-29", "doc-7", "doc-3"])
    three, test, seven = told["documents"]
    assert [entry["id"] for entry in told["documents"]] == ["doc-3", "doc-29", "doc-7"]
    assert (three["split"], test["split"]) == ("capped", "test")
    sides = three["pairs"]["pairs"]
    assert [pair["id"] for pair in sides["as_d1"]["accepted"]] == ["doc-5", "doc-7"]
    assert sides["as_d1"]["rejected"] == {"hub": 1} and sides["as_d2"]["rejected"] == {"near_duplicate": 1}
    assert [pair["id"] for pair in sides["as_d2"]["accepted"]] == ["doc-5"]
    assert three["tuned"]["synthesizer"] == {
        "train": {"read": 2, "written": 1},
        "validation": {"read": 1, "written": 2},
    }
    assert [sum(part.values()) for part in seven["tuned"]["synthesizer"].values()] == [1, 1]
    assert not any(sum(part.values()) for part in test["tuned"]["synthesizer"].values())
    found = three["synthetic"]["synthetic"]
    assert [(entry["id"], entry["seed"]) for entry in found["accepted"]] == [("syn-3-0", True), ("syn-6-0", False)]
    assert [(entry["id"], entry["verdict"]) for entry in found["rejected"]] == [("syn-3-1", "too_short")]
    assert [entry["id"] for entry in three["synthetic"]["synthetic-random"]["accepted"]] == ["syn-3-0"]
    assert [entry["id"] for entry in seven["synthetic"]["synthetic"]["rejected"]] == ["syn-3-1"]
    assert test["pairs"]["pairs"]["as_d1"]["accepted"] == [] and test["trained"] == {}
    assert "synthetic" not in test["trained"] and not any(test["synthetic"]["synthetic"].values())


def test_the_steps_that_read_a_document_are_those_of_training(made: dict[str, Artifact]) -> None:
    """Guards the takedown list: the runs, rows and steps, against all batches of all runs."""
    (told,) = derived(trail_of(made), ["doc-3"])["documents"]
    # Ordinals of accepted ones.
    of_three: dict[str, list[int]] = {
        "documents": [3],
        "synthetic": [0, 3],
        "synthetic-random": [0],
        "synthetic-self": [],
    }
    found_in = Counter[str]()
    for run in [name for name in NODES if name.startswith("train-")]:
        plan, inputs = plan_of(made, run), NODES[run].inputs
        streams = {name: source_of(made, inputs[name]) for name in plan.rows}
        if "megadoc" in streams:  # cut to what is read
            streams["megadoc"] = RowSource(made["rows-megadoc"], plan.rows["megadoc"])
        batches = mix(streams, plan, BATCH, 0)
        expected: Counter[tuple[str, int, int, int]] = Counter()
        for step in range(STEPS):
            for place, (stream, owners) in enumerate(
                zip(batches[step]["stream"], batches[step]["documents"], strict=True)
            ):
                rows_name = inputs[list(plan.rows)[stream]]
                held, parents = set(owners.tolist()), NODES[rows_name].inputs
                for ordinal in of_three[parents["documents"]]:
                    if ordinal in held:
                        expected[rows_name, ordinal, step + 1, place] += 1
                for ordinal in of_three[parents["synthetic"]] if "synthetic" in parents else ():
                    if ordinal + SYNTHETIC in held:
                        expected[rows_name, ordinal, step + 1, place] += 1
        listed = Counter(
            (rows_name, entry["ordinal"], *time)
            for rows_name, entries in told["trained"][run].items()
            for entry in entries
            for time in entry["steps"]
        )
        assert listed == expected and len(expected) > 0
        found_in += Counter(rows_name for rows_name, *_ in expected)
    assert min(found_in[name] for name in ("rows-megadoc", "rows-capped-in-context")) > 1


def test_a_run_whose_rows_were_not_asked_for_is_not_searched(made: dict[str, Artifact]) -> None:
    assert times(trail_of(made), "train-sbp-0", {}) == {"rows-capped": {}, "rows-synthetic": {}}
    (told,) = derived(trail_of(made), ["doc-3"], quick=True)["documents"]
    assert all("steps" not in entry for entry in told["trained"]["train-sbp-0"]["rows-capped"])


def test_documents_that_quote_one_without_having_read_it_came_from_it_too(made: dict[str, Artifact]) -> None:
    """Guards passages that a model has learned by heart: 15 words of document 22 hold 3 shingles of 13."""
    told = {entry["id"]: entry for entry in derived(trail_of(made), ["doc-22", "doc-3", "doc-4"])["documents"]}
    quoting = {"id": "syn-7-1", "ordinal": 1, "verdict": "accepted", "read": False, "seed": False, "shared": 3}
    assert told["doc-22"]["synthetic"]["synthetic"] == {"accepted": [quoting], "rejected": [], "not_filtered": []}
    (trained,) = told["doc-22"]["trained"]["train-sbp-0"]["rows-synthetic"]
    assert (trained["id"], trained["rows"]) == ("syn-7-1", list(rows_of(RowSource(made["rows-synthetic"]), 1)))
    three, four = told["doc-3"]["synthetic"]["synthetic"], told["doc-4"]["synthetic"]["synthetic"]
    assert [(entry["id"], entry.get("shared")) for entry in three["accepted"]] == [("syn-3-0", 8), ("syn-6-0", None)]
    assert four["rejected"][0]["shared"] == 28 and four["accepted"] == []
    (quick,) = derived(trail_of(made), ["doc-22"], quick=True)["documents"]
    assert quick["synthetic"]["synthetic"]["accepted"] == []


def test_ids_that_are_of_no_real_document_are_refused(made: dict[str, Artifact]) -> None:
    with pytest.raises(SbpError, match="syn-6-0 is a synthetic document; `sbp trace ... syn-6-0`"):
        derived(trail_of(made), ["doc-3", "syn-6-0"])
    with pytest.raises(SbpError, match="no document has the id doc-33; did you mean doc-3"):
        derived(trail_of(made), ["doc-33"])
    with pytest.raises(SbpError, match="7 of 8 ids are of no real document: x0, x1, x2, x3, x4 and 2 others"):
        derived(trail_of(made), ["doc-3", *(f"x{place}" for place in range(7))])


_POOLS: list[pa.MemoryPool] = []  # what was allocated from one may be freed after the test, and needs it


def test_memory_does_not_grow_with_the_shards(made: dict[str, Artifact], tmp_path: Path) -> None:
    accepted, rejected, _ = synthetic_tables("", made["synthesizer"].key)
    big = (
        pa.concat_tables([rejected] * 2000)
        .drop_columns("verdict")
        .append_column("verdict", pa.array(["copied"] * (2000 * rejected.num_rows)))
    )
    big = big.set_column(big.schema.get_field_index("seed"), "seed", pa.array([11] * big.num_rows, pa.int64()))
    lists = pa.array([[11]] * big.num_rows, pa.list_(pa.int64()))
    big = big.set_column(big.schema.get_field_index("conditioning"), "conditioning", lists)

    def most(copies: int) -> int:
        """Bytes that Arrow held at once with `copies` large shards of documents that read others."""
        output = output_of(tmp_path / f"synthetic-{copies}")
        output.shard(0, ".parquet", partial(parquet.write, table=pa.concat_tables(accepted)))
        for index in range(copies):
            output.shard(index, ".parquet", partial(parquet.write, table=big), prefix="rejected")
        trail = trail_of(made | {"synthetic": output.finish()})
        before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
        _POOLS.append(pool)
        pa.set_memory_pool(pool)
        try:
            assert len(derived(trail, ["doc-3"])["documents"][0]["synthetic"]["synthetic"]["accepted"]) == 2
            trace(trail, "synthetic:syn-3-0", search=False)
        finally:
            pa.set_memory_pool(before)
        return pool.max_memory()

    assert most(10) < 1.5 * most(2)
