"""Planted lineage: a small run whose every pair, group, synthetic document and training row is known."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord
from sbp_jax.config import Arm, Execution, Experiment, Tokenizer, Training, Tuning
from sbp_jax.data.mixing import plan_arm, plan_megadoc
from sbp_jax.data.rows import ROW_TARGETS, Row, RowSource, write_rows
from sbp_jax.data.synthetic import SCHEMA
from sbp_jax.graph import graph
from sbp_jax.report.trail import Trail
from sbp_jax.stages import pack, tokenize
from sbp_jax.text import tokenizer as text_tokenizer
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
        Arm("staged", synthetic_share=0.25, order="staged"),
        Arm("megadoc", synthetic_share=0.1, layout="megadoc"),
        Arm("in_context", layout="in_context"),
    ),
)
NODES = graph(EXPERIMENT)
REAL, CAPPED = 30, 20


def text_of(seed: int, length: int = 40) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 5000, length))


def words_of(text: str, start: int, stop: int) -> str:
    return " ".join(text.split()[start:stop])


TEXTS = [text_of(number) for number in range(REAL)]
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
        ("syn-3-0", f"{text_of(100, 20)} {words_of(TEXTS[3], 5, 25)}", [5, 3], "accepted"),
        ("syn-4-0", TEXTS[4], [4], "copied"),
        ("syn-7-1", f"{words_of(TEXTS[22], 0, 15)} {text_of(101, 20)} {words_of(TEXTS[22], 0, 15)}", [7], "accepted"),
        ("syn-8-0", text_of(102), [8], "accepted"),
        ("syn-3-1", f"{HOSTILE} {text_of(103, 4)}", [7, 3], "too_short"),
        ("syn-6-0", text_of(104), [3, 6], "accepted"),
    ],
    "-random": [("syn-3-0", text_of(105), [3], "accepted"), ("syn-5-0", text_of(107), [5], "accepted")],
    "-self": [
        ("syn-self-0", f"{text_of(106, 30)} alone", [], "accepted"),
        ("syn-self-1", text_of(108), [], "accepted"),
    ],
}


def output_of(folder: Path) -> Output:
    return Output(epath.Path(folder), Recipe(folder.name, 1, {}, {}), folder.name)


def synthetic_tables(suffix: str, synthesizer: str) -> tuple[list[pa.Table], pa.Table, list[pa.Table]]:
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


def make(folder: Path, experiment: Experiment = EXPERIMENT) -> dict[str, Artifact]:
    made: dict[str, Artifact] = {}
    how: dict[str, Any] = {"settings": experiment.tokenizer, "execution": Execution()}
    columns = {"ordinal": range(REAL), "id": IDS, "source": [f"source-{n % 3}" for n in range(REAL)], "text": TEXTS}
    real, splits = pa.table(columns), pa.table({"ordinal": range(REAL), "split": SPLIT})
    made["documents"] = _tables(folder / "documents", [real.slice(0, 8), real.slice(8)])
    made["splits"] = _tables(folder / "splits", [splits.slice(0, 8), splits.slice(8)])
    output = output_of(folder / "tokenizer")
    with output.writing("tokenizer.json") as writing:
        text_tokenizer.train(TEXTS, experiment.tokenizer).save(writing.path)
    made["tokenizer"] = output.finish()

    def rows(name: str, stream: str, documents: str, tokens: str, **more: str) -> None:
        inputs = {"documents": made[documents], "tokens": made[tokens], "tokenizer": made["tokenizer"]}
        inputs |= {role: made[other] for role, other in more.items()}
        if stream not in ("synthetic", "megadoc"):
            inputs["splits"] = made["splits"]
        made[name] = pack.run(output_of(folder / name), **inputs, stream=stream, context=CONTEXT, **how)

    tokenized = {"documents": made["documents"], "tokenizer": made["tokenizer"]}
    made["tokens"] = tokenize.run(output_of(folder / "tokens"), **tokenized, **how)
    for stream in ("capped", "oracle"):
        rows(f"rows-{stream}", stream, "documents", "tokens")

    d1, d2, verdicts = zip(*PAIRS, strict=True)
    pairs = pair_table(d1, d2, [0.5 + place / 10 for place in range(len(PAIRS))], verdicts)
    made["pairs"] = _tables(folder / "pairs", [pairs.slice(0, 2), pairs.slice(2)])
    near = pa.table({"query": sorted(d1), "neighbor": [d2[place] for place in np.argsort(d1, kind="stable")]})
    made["neighbors"] = _tables(folder / "neighbors", [near])
    rows("rows-capped-in-context", "capped", "documents", "tokens", neighbors="neighbors")
    loaded = text_tokenizer.load(made["tokenizer"].file("tokenizer.json"), experiment.tokenizer)
    records = arrayrecord.source(made["tokens"])
    table: dict[str, Any] = {"target": [5, 3, 5, 3, 3], "conditioning": [[3], [5], [7, 3], [3], [7]]}
    table |= {"part": ["train"] * 3 + ["validation"] * 2}
    for suffix in ("", "-random"):
        made[f"groups{suffix}"] = _tables(
            folder / f"groups{suffix}", [pa.table(table).slice(0, 2), pa.table(table).slice(2)]
        )
        output = output_of(folder / f"rows-pairs-train{suffix}")
        write_rows(output, _pair_rows(records, loaded.end_of_document, loaded.separator, 1024))
        made[f"rows-pairs-train{suffix}"] = output.finish({"pairs": len(TUNED)})
        made[f"synthesizer{suffix}"] = _trained(output_of(folder / f"synthesizer{suffix}"), {"pairs": 60})
    made[BASE] = _trained(output_of(folder / BASE), dict(plan_of(made, BASE).rows))
    for suffix in WRITTEN:
        model = made[NODES[f"synthesized{suffix}"].inputs["model"]]
        accepted, rejected, everything = synthetic_tables(suffix, model.key)
        made[f"synthesized{suffix}"] = _tables(folder / f"synthesized{suffix}", everything)
        made[f"synthetic{suffix}"] = _tables(folder / f"synthetic{suffix}", accepted, rejected=rejected)
        tokenized = {"documents": made[f"synthetic{suffix}"], "tokenizer": made["tokenizer"]}
        written = f"tokens-synthetic{suffix}"
        made[written] = tokenize.run(output_of(folder / written), **tokenized, **how)
        rows(f"rows-synthetic{suffix}", "synthetic", f"synthetic{suffix}", written)
    rows("rows-megadoc", "megadoc", "documents", "tokens", synthetic="synthetic", synthetic_tokens="tokens-synthetic")
    for arm in experiment.arms[1:]:
        name = f"train-{arm.name}-0"
        made[name] = _trained(output_of(folder / name), dict(plan_of(made, name).rows))
    return made


def plan_of(made: dict[str, Artifact], run: str) -> Any:
    inputs, config = NODES[run].inputs, NODES[run].config
    asked = STEPS * BATCH, CONTEXT, config["synthetic_share"], source_of(made, inputs["real"])
    if "megadoc" in inputs:
        packed = made[inputs["megadoc"]]
        return plan_megadoc(*asked, np.load(packed.file(ROW_TARGETS))[: packed.stats["full_rows"]])
    return plan_arm(*asked, source_of(made, inputs.get("synthetic")), config.get("order", "uniform"))


def source_of(made: dict[str, Artifact], name: str | None) -> Any:
    return None if name is None else RowSource(made[name], made[name].stats["full_rows"])


def trail_of(made: dict[str, Artifact], experiment: Experiment = EXPERIMENT) -> Trail:
    return Trail(experiment, NODES, made.get, "runs/planted")
