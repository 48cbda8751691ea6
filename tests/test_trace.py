"""Tracing: every claim about where a document comes from, against planted lineage."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from sbp_jax import cli
from sbp_jax.artifacts import Artifact
from sbp_jax.config import Embedding, Execution
from sbp_jax.data.mixing import mix, places
from sbp_jax.data.rows import SYNTHETIC, RowSource
from sbp_jax.embedding import models
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.report import nearest, trace_text
from sbp_jax.report.takedown import derived
from sbp_jax.report.trace import trace
from sbp_jax.search import vectors as search_vectors
from sbp_jax.text.shingles import overlap, shingles
from tests.lineage import (
    BASE,
    BATCH,
    CAPPED,
    CONTEXT,
    EXPERIMENT,
    NODES,
    REAL,
    STEPS,
    TEXTS,
    TUNED,
    WRITTEN,
    make,
    plan_of,
    source_of,
    synthetic_tables,
    trail_of,
    words_of,
)
from tests.test_report import _tables


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return make(tmp_path_factory.mktemp("planted"))


def _one(made: dict[str, Artifact], asked: str, search: bool = False) -> dict[str, Any]:
    (document,) = trace(trail_of(made), asked, search)["documents"]
    return document


def test_an_accepted_document_tells_all_its_row_says(made: dict[str, Artifact]) -> None:
    told = _one(made, "synthetic:syn-3-0")
    assert (told["text"], told["verdict"], told["rule_version"]) == (WRITTEN[""][0][1], "accepted", 7)
    assert told["scores"] == {"words": 40, "copied": 0.25}
    assert (told["finish"], told["key"], told["engine"], told["logprob_per_token"]) == ("end", "0:3:0", "jax", -2.5)
    assert told["settings"] == pytest.approx({"temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_new_tokens": 64})
    assert [(entry["id"], entry["source"], entry["seed"]) for entry in told["read"]] == [
        ("doc-5", "source-2", False),
        ("doc-3", "source-0", True),
    ]
    assert told["read"][1]["text"] == TEXTS[3] and told["similarity"] == 0.75
    checkpoint = told["checkpoint"]
    assert (checkpoint["instance"], checkpoint["key"], checkpoint["step"]) == (
        "synthesizer",
        made["synthesizer"].key,
        20,
    )
    assert checkpoint["path"] == str(made["synthesizer"].path / "best")
    assert checkpoint["tuned_on"] == {"instance": "rows-pairs-train", "pairs": len(TUNED)}
    base = made[BASE]
    assert checkpoint["base"] == {
        **{"instance": BASE, "key": base.key},
        **{"path": str(base.path / "best"), "step": 20},
    }


def test_rejected_documents_and_those_without_a_seed_are_traced_too(made: dict[str, Artifact]) -> None:
    rejected = _one(made, "syn-4-0")
    assert rejected["verdict"] == "copied" and rejected["read"][0]["id"] == "doc-4"
    alone = _one(made, "syn-self-0", search=True)
    assert alone["instance"] == "synthetic-self" and alone["read"] == [] and alone["similarity"] is None
    assert alone["checkpoint"] == {
        **{"instance": BASE, "key": made[BASE].key, "path": str(made[BASE].path / "best")},
        **{"step": 20, "steps": STEPS, "tokens": 1000},
    }


def test_one_id_in_several_places_is_told_from_all_of_them(made: dict[str, Artifact]) -> None:
    """Guards real ids that look synthetic, and the control's documents, which have the ids of the others."""
    found = trace(trail_of(made), "syn-3-0", search=False)["documents"]
    assert [(told["instance"], told["text"]) for told in found] == [
        ("documents", TEXTS[9]),
        ("synthetic", WRITTEN[""][0][1]),
        ("synthetic-random", WRITTEN["-random"][0][1]),
    ]
    assert _one(made, "documents:syn-3-0")["split"] == "capped"
    assert _one(made, "synthesized-random:syn-3-0")["text"] == WRITTEN["-random"][0][1]
    assert _one(made, "synthetic-random:syn-3-0")["checkpoint"]["instance"] == "synthesizer-random"


def test_the_nearest_document_by_words_is_that_of_a_plain_comparison(made: dict[str, Artifact]) -> None:
    """Guards shingles across the border of two documents, ties, and texts shorter than a shingle."""
    asked = [text for rows in WRITTEN.values() for _, text, _, _ in rows]
    asked += [
        words_of(TEXTS[17], 2, 8),
        words_of(TEXTS[25], 2, 5),
        "",
        " ".join((words_of(TEXTS[1], 34, 40), TEXTS[2][:40])),
    ]
    asked += [f"{words_of(TEXTS[12], 35, 40)} {words_of(TEXTS[13], 0, 5)}"]
    # One run of 13 words counts for more than two of 12.
    asked += [f"{words_of(TEXTS[19], 0, 12)} and {words_of(TEXTS[19], 20, 32)} and {words_of(TEXTS[27], 9, 22)}"]
    for text, found in zip(asked, nearest.by_words(made["documents"], asked), strict=True):
        length = max(len(text.split()), 1) if "<" not in text else 13
        counts = [
            tuple(overlap(shingles(other, min(size, length)), shingles(text, size)) for size in nearest.LENGTHS)
            for other in TEXTS
        ]
        best = max(range(REAL), key=lambda place: (counts[place], -place))
        if not any(counts[best]):
            assert found is None
        else:
            assert found is not None and (found["ordinal"], tuple(found["shared"].values())) == (best, counts[best])
    assert nearest.by_words(made["documents"], [TEXTS[4]]) == [
        {"ordinal": 4, "shared": {13: 28, 5: 36}, "shingles": {13: 28, 5: 36}}
    ]


def test_the_nearest_document_by_meaning_is_that_of_the_embedder(
    monkeypatch: pytest.MonkeyPatch, made: dict[str, Artifact], tmp_path: Path
) -> None:
    experiment = replace(EXPERIMENT, embedding=Embedding(max_tokens=32))
    embedder = models.load(experiment.embedding, one_host_mesh(Execution().mesh))
    vectors = embedder.embed(TEXTS[:CAPPED], 8)
    kind = pa.list_(pa.float32(), vectors.shape[1])
    table = pa.table({"ordinal": range(CAPPED), "embedding": pa.array(list(vectors), kind)})
    embeddings = _tables(tmp_path / "embeddings", [table.slice(0, 7), table.slice(7)])
    monkeypatch.setattr(search_vectors, "READ", 6 * vectors.shape[1])  # several blocks
    told = trace(trail_of(made | {"embeddings": embeddings}, experiment), "synthetic:syn-3-0")["documents"][0]
    scores = vectors @ embedder.embed([told["text"]], 8)[0]
    found = told["nearest"]["by_meaning"]
    assert found["ordinal"] == int(scores.argmax()) >= 6 and found["text"] == TEXTS[found["ordinal"]]
    assert found["similarity"] == pytest.approx(float(scores.max()), abs=1e-5)
    similar = [entry["similarity_to_text"] for entry in told["read"]]
    assert similar == pytest.approx([float(scores[5]), float(scores[3])], abs=1e-5)


@pytest.mark.parametrize(
    "change, reason",
    [({"vectors": "v.npy"}, "the user's own"), ({"whiten": True}, "whitened"), ({}, "until embeddings")],
)
def test_where_no_model_can_embed_the_text_the_reason_is_told(
    made: dict[str, Artifact], change: dict[str, Any], reason: str
) -> None:
    experiment = replace(EXPERIMENT, embedding=replace(EXPERIMENT.embedding, **change))
    told = trace(trail_of(made, experiment), "synthetic:syn-3-0")["documents"][0]["nearest"]
    assert told["by_meaning"] is None and reason in told["by_meaning_reason"] and told["by_words"]["id"] == "doc-3"


def test_every_example_of_a_run_is_traced_to_the_documents_that_it_trained_on(made: dict[str, Artifact]) -> None:
    """Guards the order of the mixture: each place of each batch, against the batches that training reads."""
    trail = trail_of(made)
    for run in ("train-sbp-0", "train-self-0", "train-staged-0", "train-in_context-0"):
        plan, inputs = plan_of(made, run), NODES[run].inputs
        sources = {name: source_of(made, inputs[name]) for name in plan.rows}
        batches = mix(sources, plan, BATCH, 0)
        assert len(batches) == STEPS
        for step in range(STEPS):
            for place in range(BATCH):
                told = trace(trail, f"{run}:{step + 1}:{place}", search=False)
                stream = list(plan.rows)[batches[step]["stream"][place]]
                assert told["example"]["rows"] == inputs[stream]
                owners = batches[step]["documents"][place]
                assert [entry["ordinal"] for entry in told["documents"]] == list(dict.fromkeys(owners.tolist()))
                for entry in told["documents"]:
                    assert entry["instance"] == NODES[inputs[stream]].inputs["documents"]
                    assert set(owners[slice(*entry["positions"])]) == {entry["ordinal"]}


def test_an_example_of_megadocs_tells_real_documents_from_synthetic_ones(made: dict[str, Artifact]) -> None:
    """Both count their ordinals from 0; a synthetic document that is told as a real one has no lineage."""
    trail, source = trail_of(made), RowSource(made["rows-megadoc"])
    plan, told_of = plan_of(made, "train-megadoc-0"), Counter[str]()
    order = places(plan, 0)
    for place in range(STEPS * BATCH):
        stream, row = order[place]
        if list(plan.rows)[stream] == "real":
            continue
        told = trace(trail, f"train-megadoc-0:{place // BATCH + 1}:{place % BATCH}", search=False)
        assert (told["example"]["rows"], told["example"]["row"]) == ("rows-megadoc", row)
        owners = source[row].documents
        for entry in told["documents"]:
            synthetic = entry["kind"] == "synthetic"
            assert entry["instance"] == ("synthetic" if synthetic else "documents")
            assert set(owners[slice(*entry["positions"])]) == {entry["ordinal"] + SYNTHETIC * synthetic}
            told_of[entry["id"]] += 1
    assert set(told_of) == {"syn-3-0", "doc-3", "syn-7-1"} and plan.rows["megadoc"] < len(source)


def test_a_position_of_a_row_is_one_document(made: dict[str, Artifact]) -> None:
    source, trail = RowSource(made["rows-synthetic"]), trail_of(made)
    for position in (0, CONTEXT - 1):
        (told,) = trace(trail, f"rows-synthetic:1:{position}", search=False)["documents"]
        assert told["ordinal"] == source[1].documents[position] and told["verdict"] == "accepted"
    last = len(source) - 1
    assert source[last].documents[-1] == -1
    with pytest.raises(SbpError, match="is padding"):
        trace(trail, f"rows-synthetic:{last}:{CONTEXT - 1}")


def test_an_example_of_tuning_is_what_was_read_and_what_was_written(made: dict[str, Artifact]) -> None:
    told = trace(trail_of(made), "rows-pairs-train:0", search=False)["documents"]
    assert [(entry["ordinal"], entry["bears_loss"]) for entry in told] == [(3, False), (5, True), (5, False), (3, True)]
    start = told[3]["positions"][0]
    of_position = trace(trail_of(made), f"rows-pairs-train:0:{start}", search=False)["documents"]
    assert [entry["ordinal"] for entry in of_position] == [5, 3]
    assert trace(trail_of(made), "synthesizer:1:0", search=False)["example"]["rows"] == "rows-pairs-train"


@pytest.mark.parametrize(
    "asked, said",
    [
        ("rows-synthetic:9999", "rows, counted from 0"),
        ("rows-synthetic:0:16", "16 positions, counted from 0"),
        ("rows-synthetic:0:1:2", "ROW or"),
        ("train-sbp-0:31:0", "30 steps, counted from 1"),
        ("train-sbp-0:0:0", "30 steps, counted from 1"),
        ("train-sbp-0:1:4", "4 rows, counted from 0"),
        ("train-sbp-0:1", "STEP:ROW"),
        ("rows-validation:0", "run `sbp run ... --until rows-validation`"),
        ("rows-synthetc:3", "did you mean rows-synthetic:3"),
        ("syn-3-7", "did you mean syn-3-"),
        ("DOC-17", "did you mean doc-17"),
    ],
)
def test_what_is_nowhere_is_refused_with_what_is_near(made: dict[str, Artifact], asked: str, said: str) -> None:
    with pytest.raises(SbpError) as refused:
        trace(trail_of(made), asked)
    assert said in str(refused.value)


def test_stages_that_have_not_run_are_named_with_their_command(made: dict[str, Artifact]) -> None:
    later = ("synthetic", "train", "synthesizer")
    written = {name: artifact for name, artifact in made.items() if not name.startswith(later)}
    (told,) = trace(trail_of(written), "syn-4-0", search=False)["documents"]
    assert told["verdict"] is None and told["instance"] == "synthesized" and told["scores"] == {}
    early = {name: made[name] for name in ("documents", "splits")}
    with pytest.raises(SbpError, match="`sbp run ... --until synthesized`, `sbp run ... --until synthesized-random`, "):
        trace(trail_of(early), "syn-4-0")
    with pytest.raises(
        SbpError, match="documents is not complete in runs/planted; run `sbp run ... --until documents`"
    ):
        trace(trail_of({}), "syn-4-0")
    with pytest.raises(SbpError, match="--until train-sbp-0"):
        trace(trail_of(written), "train-sbp-0:1:0")
    told = derived(trail_of(written), ["doc-3"])
    assert {"train-sbp-0", "synthetic", "score-sbp-0"} & set(told["not_complete"]) == {"train-sbp-0", "synthetic"}
    assert told["documents"][0]["tuned"] == told["documents"][0]["trained"] == {}
    found = told["documents"][0]["synthetic"]["synthesized"]
    assert [entry["id"] for entry in found["not_filtered"]] == ["syn-3-0", "syn-3-1", "syn-6-0"]


def test_rows_with_fewer_columns_are_traced_as_far_as_they_go(made: dict[str, Artifact], tmp_path: Path) -> None:
    """Guards artifacts that were made before what is read was a list: the seed alone is known."""
    accepted, rejected, _ = synthetic_tables("", made["synthesizer"].key)
    gone = ["conditioning", "conditioning_ids", "similarity", "step", "engine", "top_k", "max_new_tokens"]
    shards = [table.drop_columns(gone) for table in accepted]
    old = _tables(tmp_path / "synthetic", shards, rejected=rejected.drop_columns(gone))
    told = _one(made | {"synthetic": old}, "synthetic:syn-3-0")
    assert [entry["id"] for entry in told["read"]] == ["doc-3"] and "similarity" not in told and "engine" not in told
    assert told["checkpoint"]["step"] == 20 and set(told["settings"]) == {"temperature", "top_p"}
    (from_seven,) = derived(trail_of(made | {"synthetic": old}), ["doc-7"])["documents"]
    assert [entry["id"] for entry in from_seven["synthetic"]["synthetic"]["accepted"]] == ["syn-7-1"]


def test_a_model_that_is_not_the_one_named_is_not_passed_off_as_it(made: dict[str, Artifact]) -> None:
    told = _one(made | {"synthesizer": made["synthesizer-random"]}, "synthetic:syn-3-0")["checkpoint"]
    assert told["key"] == made["synthesizer"].key and told["path"] is None and "another one now" in told["note"]


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("full", [False, True])
def test_a_terminal_of_any_width_shows_it_and_obeys_no_document(
    made: dict[str, Artifact], width: int, full: bool
) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), highlight=False)
    trail = trail_of(made)
    for asked in (
        "syn-3-0",
        "syn-4-0",
        "syn-3-1",
        "syn-6-0",
        "syn-self-0",
        "doc-6",
        "train-sbp-0:3:1",
        "rows-pairs-train:0",
    ):
        trace_text.show(trace(trail, asked), console, full)
    trace_text.show_derived(derived(trail, ["doc-3", "doc-6"]), console, full)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    told = " ".join(" ".join(lines).split())
    assert "\x1b" not in told and "<script>" in told
    for said in (
        "[[" + words_of(TEXTS[3], 5, 6),
        "syn-4-0 of synthetic, copied",
        "to its nearest partner 0.750",
        "none: nothing was read before it was written",
        "log-probability -2.500 nats a token",
        "doc-3 (source-0), which it read: has 8 of its 28 shingles of 13 words and 16 of its 36 shingles of 5 words",
        "no real document has a run of 5 of its words",
        "not told: embeddings is not complete",
        f"synthesizer {made['synthesizer'].key}, step 20 of 30",
        "3 pairs of rows-pairs-train",
        "train-sbp-0, step 3, row 1 of the batch",
        "read without loss",
        "tuning reads it 2 and writes it 1 times; validation reads it 1 and writes it 2 times",
        "1 rejected, too_short 1 (syn-3-1)",
    ):
        assert said in told, said


def _command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: dict[str, Artifact], *options: str
) -> tuple[int, str, str]:
    pipeline = SimpleNamespace(nodes=NODES, artifact=made.get, experiment=EXPERIMENT, workdir="runs/planted")
    monkeypatch.setattr(cli, "_pipeline", lambda _: pipeline)
    status = cli.main(["trace", "configs/quickstart.py", *options])
    return status, *capsys.readouterr()


def test_trace_is_a_command_for_people_and_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: dict[str, Artifact], tmp_path: Path
) -> None:
    command = partial(_command, monkeypatch, capsys, made)
    status, out, _ = command("--json", "syn-6-0", "train-sbp-0:1:0", "--quick")
    assert status == 0 and json.loads(out) == json.loads(
        json.dumps([trace(trail_of(made), asked, False) for asked in ("syn-6-0", "train-sbp-0:1:0")])
    )
    status, out, _ = command("syn-6-0")
    assert status == 0 and "syn-6-0 of synthetic, accepted" in out and "\x1b" not in out
    (tmp_path / "ids.txt").write_text("doc-3\n\n doc-7 \n")
    for arguments in (["--from", f"@{tmp_path}/ids.txt", "--json"], ["--json", "--from", "doc-3", "doc-7"]):
        status, out, _ = command(*arguments)
        assert status == 0 and json.loads(out) == json.loads(json.dumps(derived(trail_of(made), ["doc-3", "doc-7"])))
    status, out, _ = command("--from", "doc-3", "--quick")
    assert status == 0 and "1 document: 3 accepted pairs" in out
    status, _, err = command("--from", f"@{tmp_path}/nowhere.txt")
    assert status == 2 and "nowhere.txt: No such file" in err
    status, _, err = command("syn-6-9")
    assert status == 2 and "did you mean syn-6-0" in err
