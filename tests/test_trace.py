"""Tracing: every claim about where a document comes from, or what came from it, against planted lineage."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from etils import epath
from rich.console import Console

from sbp_jax import cli
from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Arm, Embedding, Execution, Experiment, Tokenizer, Training, Tuning
from sbp_jax.data.mixing import mix, plan_arm
from sbp_jax.data.rows import Row, RowSource, write_rows
from sbp_jax.data.stream_order import rows_of
from sbp_jax.data.synthetic import SCHEMA
from sbp_jax.embedding import models
from sbp_jax.errors import SbpError
from sbp_jax.graph import graph
from sbp_jax.parallel.mesh import one_host_mesh
from sbp_jax.report import nearest, trace_text
from sbp_jax.report.takedown import derived
from sbp_jax.report.trace import trace
from sbp_jax.report.trail import Trail
from sbp_jax.report.training_examples import times
from sbp_jax.search import vectors as search_vectors
from sbp_jax.stages import pack, tokenize
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.text.shingles import overlap, shingles
from tests.test_report import HOSTILE, _tables, pair_table

CONTEXT, BATCH, STEPS = 16, 4, 30
BASE = "train-repetition-0"
EXPERIMENT = Experiment(
    name="planted",
    tokenizer=Tokenizer(vocab_size=600),
    training=Training(context=CONTEXT, batch_rows=BATCH),
    tuning=Tuning(context=128, batch_rows=2),
    arms=(
        Arm("repetition"),
        Arm("sbp", synthetic_share=0.25),
        Arm("control", synthetic_share=0.25, pairs="random"),
        Arm("self", synthetic_share=0.25, pairs="none"),
        Arm("oracle", real="oracle"),
    ),
)
NODES = graph(EXPERIMENT)
REAL, CAPPED = 30, 20


def _text(seed: int, length: int = 40) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 5000, length))


def _words(text: str, start: int, stop: int) -> str:
    return " ".join(text.split()[start:stop])


TEXTS = [_text(number) for number in range(REAL)]
TEXTS[6] = f"{HOSTILE} {TEXTS[6]}"
IDS = [f"doc-{number}" for number in range(REAL)]
IDS[11] = "doc-11 \x1b[31m"  # which a terminal would obey
IDS[9] = "syn-3-0"  # a real document whose id looks like a synthetic one's
SPLIT = ["capped"] * CAPPED + ["oracle"] * 6 + ["validation"] * 2 + ["test"] * 2
PAIRS = [(3, 5, "accepted"), (5, 3, "accepted"), (3, 7, "accepted"), (3, 8, "hub"), (7, 3, "near_duplicate")]
PAIRS += [(6, 11, "accepted")]
TUNED = [((3,), 5), ((5,), 3), ((7, 3), 5)]  # what is read, and what is written

# id, text, what was read (the seed last), verdict
WRITTEN: dict[str, list[tuple[str, str, list[int], str]]] = {
    "": [
        ("syn-3-0", f"{_text(100, 20)} {_words(TEXTS[3], 5, 25)}", [5, 3], "accepted"),
        ("syn-4-0", TEXTS[4], [4], "copied"),
        ("syn-7-1", f"{_words(TEXTS[22], 0, 15)} {_text(101, 20)} {_words(TEXTS[22], 0, 15)}", [7], "accepted"),
        ("syn-8-0", _text(102), [8], "accepted"),
        ("syn-3-1", f"{HOSTILE} {_text(103, 4)}", [7, 3], "too_short"),
        ("syn-6-0", _text(104), [3, 6], "accepted"),
    ],
    "-random": [("syn-3-0", _text(105), [3], "accepted"), ("syn-5-0", _text(107), [5], "accepted")],
    "-self": [("syn-self-0", f"{_text(106, 30)} alone", [], "accepted"), ("syn-self-1", _text(108), [], "accepted")],
}


def _output(folder: Path) -> Output:
    return Output(epath.Path(folder), Recipe(folder.name, 1, {}, {}), folder.name)


def _synthetic_tables(suffix: str, synthesizer: str) -> tuple[list[pa.Table], pa.Table, list[pa.Table]]:
    """The accepted documents in two shards, the rejected ones, and all that was written in two shards."""
    written: list[dict[str, Any]] = []
    for ordinal, (name, text, read, verdict) in enumerate(WRITTEN[suffix]):
        seed = read[-1] if read else None
        row = dict.fromkeys(SCHEMA.names) | {"ordinal": ordinal, "id": name, "text": text, "verdict": verdict}
        row |= {"seed": seed, "seed_id": None if seed is None else IDS[seed], "conditioning": read}
        row |= {"conditioning_ids": [IDS[other] for other in read], "similarity": None if seed in (None, 8) else 0.75}
        row |= {"sample": 0, "key": f"0:{seed}:0", "finish": "end", "new_tokens": 40, "logprob": -100.0}
        row |= {"synthesizer": synthesizer, "step": 20, "engine": "jax", "temperature": 1.0, "top_p": 0.9, "top_k": 0}
        written.append(row | {"max_new_tokens": 64, "words": len(text.split()), "copied": 0.25, "rule_version": 7})
    schema = pa.schema([*SCHEMA, ("words", pa.int32()), ("copied", pa.float32()), ("rule_version", pa.int32())])
    kept = [row for row in written if row["verdict"] == "accepted"]
    kept = [row | {"ordinal": ordinal} for ordinal, row in enumerate(kept)]
    half = len(kept) // 2
    accepted = [pa.Table.from_pylist(rows, schema) for rows in (kept[:half], kept[half:])]
    rejected = pa.Table.from_pylist(
        [row for row in written if row["verdict"] != "accepted"], schema.append(pa.field("verdict", pa.string()))
    )
    everything = pa.Table.from_pylist(written, SCHEMA)
    return accepted, rejected, [everything.slice(0, half), everything.slice(half)]


def _pair_rows(records: Any, end: int, separator: int, context: int) -> Iterator[Row]:
    """Rows of two groups E d1 S ... S target E; the rest is padding."""
    for start in range(0, len(TUNED), 2):
        row = Row(
            np.full(context + 1, end, np.int32),
            *(np.zeros(context, np.int32) for _ in range(2)),
            np.full(context, -1, np.int64),
            np.zeros(context, bool),
        )
        place = 0
        for segment, (read, target) in enumerate(TUNED[start : start + 2], 1):
            parts = [np.array([end], np.int32)]
            for ordinal in read:
                parts += [np.frombuffer(records[ordinal], "<i4"), np.array([separator], np.int32)]
            parts.append(np.frombuffer(records[target], "<i4"))
            whole = np.concatenate(parts)
            row.tokens[place : place + len(whole)] = whole
            row.segments[place : place + len(whole)] = segment
            row.documents[place : place + len(whole)] = target
            row.mask[place + len(whole) - len(parts[-1]) - 1 : place + len(whole)] = True
            place += len(whole)
        yield row


def _trained(output: Output, rows: dict[str, int], stats: dict[str, Any] | None = None) -> Artifact:
    entries = {name: {"rows": count, "planned_rows": count} for name, count in rows.items()}
    with output.writing("ledger.json") as writing:
        writing.path.write_text(json.dumps(entries))
    return output.finish({"steps": STEPS, "tokens": 1000, "best_step": 20} | (stats or {}))


def _make(folder: Path, experiment: Experiment = EXPERIMENT) -> dict[str, Artifact]:
    made: dict[str, Artifact] = {}
    how: dict[str, Any] = {"settings": experiment.tokenizer, "execution": Execution()}
    columns = {"ordinal": range(REAL), "id": IDS, "source": [f"source-{n % 3}" for n in range(REAL)], "text": TEXTS}
    real, splits = pa.table(columns), pa.table({"ordinal": range(REAL), "split": SPLIT})
    made["documents"] = _tables(folder / "documents", [real.slice(0, 8), real.slice(8)])
    made["splits"] = _tables(folder / "splits", [splits.slice(0, 8), splits.slice(8)])
    output = _output(folder / "tokenizer")
    with output.writing("tokenizer.json") as writing:
        text_tokenizer.train(TEXTS, experiment.tokenizer).save(writing.path)
    made["tokenizer"] = output.finish()

    def rows(name: str, stream: str, documents: str, tokens: str) -> None:
        inputs = {"documents": made[documents], "tokens": made[tokens], "tokenizer": made["tokenizer"]}
        if stream != "synthetic":
            inputs["splits"] = made["splits"]
        made[name] = pack.run(_output(folder / name), **inputs, stream=stream, context=CONTEXT, **how)

    tokenized = {"documents": made["documents"], "tokenizer": made["tokenizer"]}
    made["tokens"] = tokenize.run(_output(folder / "tokens"), **tokenized, **how)
    for stream in ("capped", "oracle"):
        rows(f"rows-{stream}", stream, "documents", "tokens")

    d1, d2, verdicts = zip(*PAIRS, strict=True)
    pairs = pair_table(d1, d2, [0.5 + place / 10 for place in range(len(PAIRS))], verdicts)
    made["pairs"] = _tables(folder / "pairs", [pairs.slice(0, 2), pairs.slice(2)])
    loaded = text_tokenizer.load(made["tokenizer"].file("tokenizer.json"), experiment.tokenizer)
    records = arrayrecord.source(made["tokens"])
    table: dict[str, Any] = {"target": [5, 3, 5, 3, 3], "conditioning": [[3], [5], [7, 3], [3], [7]]}
    table |= {"part": ["train"] * 3 + ["validation"] * 2}
    for suffix in ("", "-random"):
        made[f"groups{suffix}"] = _tables(
            folder / f"groups{suffix}", [pa.table(table).slice(0, 2), pa.table(table).slice(2)]
        )
        output = _output(folder / f"rows-pairs-train{suffix}")
        write_rows(output, _pair_rows(records, loaded.end_of_document, loaded.separator, 1024))
        made[f"rows-pairs-train{suffix}"] = output.finish({"pairs": len(TUNED)})
        made[f"synthesizer{suffix}"] = _trained(_output(folder / f"synthesizer{suffix}"), {"pairs": 60})
    made[BASE] = _trained(_output(folder / BASE), dict(_plan(made, BASE).rows))
    for suffix in WRITTEN:
        model = made[NODES[f"synthesized{suffix}"].inputs["model"]]
        accepted, rejected, everything = _synthetic_tables(suffix, model.key)
        made[f"synthesized{suffix}"] = _tables(folder / f"synthesized{suffix}", everything)
        made[f"synthetic{suffix}"] = _tables(folder / f"synthetic{suffix}", accepted, rejected=rejected)
        tokenized = {"documents": made[f"synthetic{suffix}"], "tokenizer": made["tokenizer"]}
        made["tokens-synthetic"] = tokenize.run(_output(folder / f"tokens-synthetic{suffix}"), **tokenized, **how)
        rows(f"rows-synthetic{suffix}", "synthetic", f"synthetic{suffix}", "tokens-synthetic")
    for arm in experiment.arms[1:]:
        name = f"train-{arm.name}-0"
        made[name] = _trained(_output(folder / name), dict(_plan(made, name).rows))
    return made


def _plan(made: dict[str, Artifact], run: str) -> Any:
    inputs, share = NODES[run].inputs, NODES[run].config["synthetic_share"]
    return plan_arm(STEPS * BATCH, CONTEXT, share, *(_source(made, inputs.get(role)) for role in ("real", "synthetic")))


def _source(made: dict[str, Artifact], name: str | None) -> Any:
    return None if name is None else RowSource(made[name], made[name].stats["full_rows"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _make(tmp_path_factory.mktemp("planted"))


def _trail(made: dict[str, Artifact], experiment: Experiment = EXPERIMENT) -> Trail:
    return Trail(experiment, NODES, made.get, "runs/planted")


def _one(made: dict[str, Artifact], asked: str, search: bool = False) -> dict[str, Any]:
    (document,) = trace(_trail(made), asked, search)["documents"]
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
    found = trace(_trail(made), "syn-3-0", search=False)["documents"]
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
    asked += [_words(TEXTS[17], 2, 8), _words(TEXTS[25], 2, 5), "", " ".join((_words(TEXTS[1], 34, 40), TEXTS[2][:40]))]
    asked += [f"{_words(TEXTS[12], 35, 40)} {_words(TEXTS[13], 0, 5)}"]
    # One run of 13 words counts for more than two of 12.
    asked += [f"{_words(TEXTS[19], 0, 12)} and {_words(TEXTS[19], 20, 32)} and {_words(TEXTS[27], 9, 22)}"]
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
    told = trace(_trail(made | {"embeddings": embeddings}, experiment), "synthetic:syn-3-0")["documents"][0]
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
    told = trace(_trail(made, experiment), "synthetic:syn-3-0")["documents"][0]["nearest"]
    assert told["by_meaning"] is None and reason in told["by_meaning_reason"] and told["by_words"]["id"] == "doc-3"


def test_every_example_of_a_run_is_traced_to_the_documents_that_it_trained_on(made: dict[str, Artifact]) -> None:
    """Guards the order of the mixture: each place of each batch, against the batches that training reads."""
    trail = _trail(made)
    for run in ("train-sbp-0", "train-self-0"):
        plan, inputs = _plan(made, run), NODES[run].inputs
        sources = {name: _source(made, inputs[name]) for name in plan.rows}
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


def test_a_position_of_a_row_is_one_document(made: dict[str, Artifact]) -> None:
    source, trail = RowSource(made["rows-synthetic"]), _trail(made)
    for position in (0, CONTEXT - 1):
        (told,) = trace(trail, f"rows-synthetic:1:{position}", search=False)["documents"]
        assert told["ordinal"] == source[1].documents[position] and told["verdict"] == "accepted"
    last = len(source) - 1
    assert source[last].documents[-1] == -1
    with pytest.raises(SbpError, match="is padding"):
        trace(trail, f"rows-synthetic:{last}:{CONTEXT - 1}")


def test_an_example_of_tuning_is_what_was_read_and_what_was_written(made: dict[str, Artifact]) -> None:
    told = trace(_trail(made), "rows-pairs-train:0", search=False)["documents"]
    assert [(entry["ordinal"], entry["bears_loss"]) for entry in told] == [(3, False), (5, True), (5, False), (3, True)]
    start = told[3]["positions"][0]
    of_position = trace(_trail(made), f"rows-pairs-train:0:{start}", search=False)["documents"]
    assert [entry["ordinal"] for entry in of_position] == [5, 3]
    assert trace(_trail(made), "synthesizer:1:0", search=False)["example"]["rows"] == "rows-pairs-train"


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
        trace(_trail(made), asked)
    assert said in str(refused.value)


def test_stages_that_have_not_run_are_named_with_their_command(made: dict[str, Artifact]) -> None:
    later = ("synthetic", "train", "synthesizer")
    written = {name: artifact for name, artifact in made.items() if not name.startswith(later)}
    (told,) = trace(_trail(written), "syn-4-0", search=False)["documents"]
    assert told["verdict"] is None and told["instance"] == "synthesized" and told["scores"] == {}
    early = {name: made[name] for name in ("documents", "splits")}
    with pytest.raises(SbpError, match="`sbp run ... --until synthesized`, `sbp run ... --until synthesized-random`, "):
        trace(_trail(early), "syn-4-0")
    with pytest.raises(
        SbpError, match="documents is not complete in runs/planted; run `sbp run ... --until documents`"
    ):
        trace(_trail({}), "syn-4-0")
    with pytest.raises(SbpError, match="--until train-sbp-0"):
        trace(_trail(written), "train-sbp-0:1:0")
    told = derived(_trail(written), ["doc-3"])
    assert {"train-sbp-0", "synthetic", "score-sbp-0"} & set(told["not_complete"]) == {"train-sbp-0", "synthetic"}
    assert told["documents"][0]["tuned"] == told["documents"][0]["trained"] == {}
    found = told["documents"][0]["synthetic"]["synthesized"]
    assert [entry["id"] for entry in found["not_filtered"]] == ["syn-3-0", "syn-3-1", "syn-6-0"]


def test_rows_of_a_stream_are_found_by_its_order(made: dict[str, Artifact]) -> None:
    """Guards the bisection: for every document of every stream, the rows that a scan finds."""
    for name in ("rows-capped", "rows-oracle", *(f"rows-synthetic{suffix}" for suffix in WRITTEN)):
        source = RowSource(made[name])
        held = [set(source[row].documents.tolist()) for row in range(len(source))]
        for ordinal in range(REAL):
            assert list(rows_of(source, ordinal)) == [row for row, there in enumerate(held) if ordinal in there]


def test_everything_that_came_from_a_document_is_listed(made: dict[str, Artifact]) -> None:
    told = derived(_trail(made), ["doc-3", "doc-29", "doc-7", "doc-3"])
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
    (told,) = derived(_trail(made), ["doc-3"])["documents"]
    # Ordinals of accepted ones.
    of_three: dict[str, list[int]] = {
        "documents": [3],
        "synthetic": [0, 3],
        "synthetic-random": [0],
        "synthetic-self": [],
    }
    for run in (BASE, "train-sbp-0", "train-control-0", "train-self-0", "train-oracle-0"):
        plan, inputs = _plan(made, run), NODES[run].inputs
        batches = mix({name: _source(made, inputs[name]) for name in plan.rows}, plan, BATCH, 0)
        expected: Counter[tuple[str, int, int, int]] = Counter()
        for step in range(STEPS):
            for place, (stream, owners) in enumerate(
                zip(batches[step]["stream"], batches[step]["documents"], strict=True)
            ):
                rows_name = inputs[list(plan.rows)[stream]]
                for ordinal in of_three[NODES[rows_name].inputs["documents"]]:
                    if ordinal in owners:
                        expected[rows_name, ordinal, step + 1, place] += 1
        listed = Counter(
            (rows_name, entry["ordinal"], *time)
            for rows_name, entries in told["trained"][run].items()
            for entry in entries
            for time in entry["steps"]
        )
        assert listed == expected and len(expected) > 0


def test_a_run_whose_rows_were_not_asked_for_is_not_searched(made: dict[str, Artifact]) -> None:
    assert times(_trail(made), "train-sbp-0", {}) == {"rows-capped": {}, "rows-synthetic": {}}
    (told,) = derived(_trail(made), ["doc-3"], quick=True)["documents"]
    assert all("steps" not in entry for entry in told["trained"]["train-sbp-0"]["rows-capped"])


def test_documents_that_quote_one_without_having_read_it_came_from_it_too(made: dict[str, Artifact]) -> None:
    """Guards passages that a model has learned by heart: 15 words of document 22 hold 3 shingles of 13."""
    told = {entry["id"]: entry for entry in derived(_trail(made), ["doc-22", "doc-3", "doc-4"])["documents"]}
    quoting = {"id": "syn-7-1", "ordinal": 1, "verdict": "accepted", "read": False, "seed": False, "shared": 3}
    assert told["doc-22"]["synthetic"]["synthetic"] == {"accepted": [quoting], "rejected": [], "not_filtered": []}
    (trained,) = told["doc-22"]["trained"]["train-sbp-0"]["rows-synthetic"]
    assert (trained["id"], trained["rows"]) == ("syn-7-1", list(rows_of(RowSource(made["rows-synthetic"]), 1)))
    three, four = told["doc-3"]["synthetic"]["synthetic"], told["doc-4"]["synthetic"]["synthetic"]
    assert [(entry["id"], entry.get("shared")) for entry in three["accepted"]] == [("syn-3-0", 8), ("syn-6-0", None)]
    assert four["rejected"][0]["shared"] == 28 and four["accepted"] == []
    (quick,) = derived(_trail(made), ["doc-22"], quick=True)["documents"]
    assert quick["synthetic"]["synthetic"]["accepted"] == []


def test_ids_that_are_of_no_real_document_are_refused(made: dict[str, Artifact]) -> None:
    with pytest.raises(SbpError, match="syn-6-0 is a synthetic document; `sbp trace ... syn-6-0`"):
        derived(_trail(made), ["doc-3", "syn-6-0"])
    with pytest.raises(SbpError, match="no document has the id doc-33; did you mean doc-3"):
        derived(_trail(made), ["doc-33"])
    with pytest.raises(SbpError, match="7 of 8 ids are of no real document: x0, x1, x2, x3, x4 and 2 others"):
        derived(_trail(made), ["doc-3", *(f"x{place}" for place in range(7))])


def test_rows_with_fewer_columns_are_traced_as_far_as_they_go(made: dict[str, Artifact], tmp_path: Path) -> None:
    """Guards artifacts that were made before what is read was a list: the seed alone is known."""
    accepted, rejected, _ = _synthetic_tables("", made["synthesizer"].key)
    gone = ["conditioning", "conditioning_ids", "similarity", "step", "engine", "top_k", "max_new_tokens"]
    shards = [table.drop_columns(gone) for table in accepted]
    old = _tables(tmp_path / "synthetic", shards, rejected=rejected.drop_columns(gone))
    told = _one(made | {"synthetic": old}, "synthetic:syn-3-0")
    assert [entry["id"] for entry in told["read"]] == ["doc-3"] and "similarity" not in told and "engine" not in told
    assert told["checkpoint"]["step"] == 20 and set(told["settings"]) == {"temperature", "top_p"}
    (from_seven,) = derived(_trail(made | {"synthetic": old}), ["doc-7"])["documents"]
    assert [entry["id"] for entry in from_seven["synthetic"]["synthetic"]["accepted"]] == ["syn-7-1"]


def test_a_model_that_is_not_the_one_named_is_not_passed_off_as_it(made: dict[str, Artifact]) -> None:
    told = _one(made | {"synthesizer": made["synthesizer-random"]}, "synthetic:syn-3-0")["checkpoint"]
    assert told["key"] == made["synthesizer"].key and told["path"] is None and "another one now" in told["note"]


_POOLS: list[pa.MemoryPool] = []  # what was allocated from one may be freed after the test, and needs it


def test_memory_does_not_grow_with_the_shards(made: dict[str, Artifact], tmp_path: Path) -> None:
    accepted, rejected, _ = _synthetic_tables("", made["synthesizer"].key)
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
        output = _output(tmp_path / f"synthetic-{copies}")
        output.shard(0, ".parquet", partial(parquet.write, table=pa.concat_tables(accepted)))
        for index in range(copies):
            output.shard(index, ".parquet", partial(parquet.write, table=big), prefix="rejected")
        trail = _trail(made | {"synthetic": output.finish()})
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


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("full", [False, True])
def test_a_terminal_of_any_width_shows_it_and_obeys_no_document(
    made: dict[str, Artifact], width: int, full: bool
) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), highlight=False)
    trail = _trail(made)
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
        "[[" + _words(TEXTS[3], 5, 6),
        "syn-4-0, copied",
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
        json.dumps([trace(_trail(made), asked, False) for asked in ("syn-6-0", "train-sbp-0:1:0")])
    )
    status, out, _ = command("syn-6-0")
    assert status == 0 and "syn-6-0, accepted" in out and "\x1b" not in out
    (tmp_path / "ids.txt").write_text("doc-3\n\n doc-7 \n")
    for arguments in (["--from", f"@{tmp_path}/ids.txt", "--json"], ["--json", "--from", "doc-3", "doc-7"]):
        status, out, _ = command(*arguments)
        assert status == 0 and json.loads(out) == json.loads(json.dumps(derived(_trail(made), ["doc-3", "doc-7"])))
    status, out, _ = command("--from", "doc-3", "--quick")
    assert status == 0 and "1 document: 3 accepted pairs" in out
    status, _, err = command("--from", f"@{tmp_path}/nowhere.txt")
    assert status == 2 and "nowhere.txt: No such file" in err
    status, _, err = command("syn-6-9")
    assert status == 2 and "did you mean syn-6-0" in err
