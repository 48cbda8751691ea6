"""The report: from artifacts with the real schemas to a page that a browser shows as it should."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Arm, Corpus, Execution, Experiment, MeshShape, Pairs
from sbp_jax.report import charts, source, summary, svg
from sbp_jax.report.examples import RUN, marked
from sbp_jax.report.results import rows_at
from sbp_jax.stages import report as stage
from sbp_jax.stages import synthesize

HOSTILE = '<script>alert("seed")</script> & <img src="https://example.com/x.png"> \x1b[31m'
TEXTS = [f"{HOSTILE} Document {number} is about ships and the sea. " * 3 for number in range(40)]
CONTEXT = 64
STEPS, BATCH = 40, 8
EXPERIMENT = Experiment(
    name="planted",
    corpus=Corpus(paths=("/somewhere/else/corpus.jsonl",)),
    pairs=Pairs(threshold=0.5),
    arms=(Arm("repetition"), Arm("sbp", synthetic_share=0.25), Arm("oracle", real="oracle")),
    seeds=(0, 1),
    note="A planted note: <b>not bold</b>.",
)
LOSSES = {"repetition": 4.2, "sbp": 4.17, "oracle": 4.1}


def _output(folder: Path, config: dict[str, Any] | None = None) -> Output:
    return Output(epath.Path(folder), Recipe(folder.name, 1, config or {}, {}), folder.name)


def _tables(
    folder: Path, shards: Sequence[pa.Table], stats: dict[str, Any] | None = None, rejected: pa.Table | None = None
) -> Artifact:
    output = _output(folder, {"files": [["corpus.jsonl", 1234, "ab" * 16]]})
    for index, table in enumerate(shards):
        output.shard(index, ".parquet", partial(parquet.write, table=table))
    if rejected is not None:
        output.shard(0, ".parquet", partial(parquet.write, table=rejected), prefix="rejected")
    return output.finish(stats)


def _trained(folder: Path, arm: Arm, seed: int, loss: float, synthetic_rows: int, overfitting: float = 0.0) -> Artifact:
    """A run whose validation loss falls towards `loss`, and then rises by `overfitting`."""
    random = np.random.default_rng([seed, len(arm.name)])
    output, rows = _output(folder), {"real": STEPS * BATCH - synthetic_rows, "synthetic": synthetic_rows}
    lines, validations = [], {}
    for step in range(1, STEPS + 1):
        done = step / STEPS
        clean = loss + 3.8 * np.exp(-7 * done) + overfitting * max(0.0, done - 0.6) / 0.4
        line = {"step": step, "loss": clean - 0.3 * done + random.normal(0, 0.06), "targets": BATCH * CONTEXT}
        line |= {"gradient_norm": 1.0, "parameter_norm": 50.0, "learning_rate": 1e-3, "time": 1.7e9 + step}
        if step % 4 == 0:
            line["validation"] = validations[step] = clean + random.normal(0, 0.002)
        lines.append(json.dumps(line) + "\n")
    ledger = {}
    for name, count in rows.items():
        if count:
            tokens = count * CONTEXT
            ledger[name] = {
                "planned_tokens": tokens,
                "tokens": tokens,
                "rows": count,
                "epochs": count / (400 if arm.real == "oracle" else 100),
            }
    for name, content in {
        "metrics.jsonl": "".join(lines),
        "ledger.json": json.dumps(ledger),
        "final/config.json": json.dumps({"vocab_size": 4096}),
    }.items():
        with output.writing(name) as writing:
            writing.path.write_text(content)
    best = min(validations, key=validations.__getitem__)
    stats = {"steps": STEPS, "tokens": STEPS * BATCH * CONTEXT, "best_step": best, "best_validation": validations[best]}
    return output.finish(stats)


def _scored(folder: Path, loss: float, seed: int, documents: int = 200) -> Artifact:
    """Test documents of their own difficulty, the same under every arm, around a mean of `loss`."""
    random, own = np.random.default_rng(7), np.random.default_rng([seed, int(loss * 1000)])
    targets = random.integers(60, 200, documents)
    nats = targets * (random.normal(0, 0.3, documents) + loss + own.normal(0, 0.02, documents))
    table = pa.table({"ordinal": np.arange(documents), "nats": nats, "targets": targets})
    mean = float(nats.sum() / targets.sum())
    stats = {"nats_per_token": mean, "bits_per_byte": mean / np.log(2) / 4.2, "targets": int(targets.sum())}
    return _tables(folder, [table], stats)


def pair_table(
    d1: Sequence[int], d2: Sequence[int], similarity: Sequence[float], verdict: Sequence[str], **columns: Any
) -> pa.Table:
    """Rows of the `pairs` artifact; what is not given is as of documents that have nothing to do with each other."""
    types: dict[str, Any] = {"d1": pa.int64(), "d2": pa.int64(), "similarity": pa.float32(), "verdict": pa.string()}
    types |= dict.fromkeys(("rank", "shared", "boilerplate", "tokens", "target_rank", "rule_version"), pa.int32())
    types |= dict.fromkeys(("containment", "jaccard", "length_ratio"), pa.float32())
    types |= dict.fromkeys(("mutual", "same_source", "same_language"), pa.bool_())
    columns |= {"d1": d1, "d2": d2, "similarity": similarity, "verdict": verdict}
    given = {name: columns.get(name, np.zeros(len(d1), kind.to_pandas_dtype())) for name, kind in types.items()}
    return pa.table({name: pa.array(given[name], kind) for name, kind in types.items()})


def _generated(texts: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Any]]:
    """Columns of `synthesize`'s table."""
    return {
        "ordinal": list(range(len(texts))),
        "id": [f"syn-{seed}-0" for seed in seeds],
        "text": list(texts),
        "seed": list(seeds),
        "seed_id": [f"doc-{seed}" for seed in seeds],
        "sample": [0] * len(texts),
        "key": [f"0:{seed}:0" for seed in seeds],
        "finish": ["end" if place % 5 else "length" for place in range(len(texts))],
        "new_tokens": [len(text) // 4 for text in texts],
        "logprob": [-2.9 * len(text) / 4 for text in texts],
        "synthesizer": ["0123456789abcdef"] * len(texts),
        "temperature": [1.0] * len(texts),
        "top_p": [0.9] * len(texts),
    }


def make(
    folder: Path,
    experiment: Experiment = EXPERIMENT,
    texts: Sequence[str] = TEXTS,
    synthetic: Sequence[str] = TEXTS[::-1],
    losses: dict[str, float] | None = None,
    share: float = 0.25,
    overfitting: float = 0.0,
) -> dict[str, Artifact]:
    """The inputs of the stage for `experiment`: a small corpus in two shards, and runs with the given losses."""
    random, count, losses = np.random.default_rng(0), len(texts), LOSSES if losses is None else losses
    ordinals, half = np.arange(count), count // 2
    split = np.array(["capped", "capped", "oracle", "validation", "test"])[ordinals * 5 // count]
    capped = ordinals[split == "capped"]
    real = pa.table({"ordinal": ordinals, "id": [f"doc-{number}" for number in ordinals], "text": list(texts)})
    splits = pa.table({"ordinal": ordinals, "split": split.tolist()})
    query = np.repeat(capped, 4)
    similarity = np.clip(random.normal(0.5, 0.12, len(query)), -1, 1).astype(np.float32)
    neighbor = (query + random.integers(1, len(capped), len(query))) % len(capped)
    near = pa.table({"query": query, "neighbor": neighbor, "similarity": similarity})
    chosen = similarity >= experiment.pairs.threshold
    outcomes = ("accepted", "accepted", "accepted", "near_duplicate", "too_long")
    verdicts = [outcomes[place % 5] for place in range(np.count_nonzero(chosen))]
    pairs = pair_table(query[chosen], neighbor[chosen], similarity[chosen], verdicts)
    screened = pa.table({"ordinal": capped, "source": ["a.org", HOSTILE] * (len(capped) // 2)})
    for name, value in (("words", 30), ("language", "en"), ("contaminated_by", ""), ("contaminated_item", "")):
        screened = screened.append_column(name, pa.array([value] * len(capped)))
    seeds = [int(capped[place % len(capped)]) for place in range(len(synthetic))]
    rows, nothing = _generated(synthetic, seeds), [None] * len(synthetic)
    generated = pa.table({name: rows.get(name, nothing) for name in synthesize.SCHEMA.names}, synthesize.SCHEMA)
    scores = {
        "words": pa.array([len(text.split()) for text in synthetic], pa.int32()),
        "repetition": pa.array(random.beta(1, 30, len(synthetic)), pa.float32()),
        "copied": pa.array(random.beta(1, 80, len(synthetic)), pa.float32()),
    }
    scored = generated
    for name, column in scores.items():
        scored = scored.append_column(name, column)
    kept = np.arange(len(synthetic)) % 5 > 0
    reasons = pa.array(["unfinished", "unfinished", "too_short", "repetition", "copied"] * len(synthetic), pa.string())
    rejected = scored.filter(~kept)
    rejected = rejected.append_column("verdict", reasons.slice(0, rejected.num_rows))
    accepted = scored.filter(kept)
    accepted = accepted.set_column(0, "ordinal", pa.array(range(accepted.num_rows), pa.int64()))
    inputs = {
        "documents": _tables(folder / "documents", [real.slice(0, half), real.slice(half)], {"skipped": 2}),
        "splits": _tables(folder / "splits", [splits.slice(0, half), splits.slice(half)]),
        "neighbors": _tables(folder / "neighbors", [near], {"backend": "scann", "recall_at_k": 0.978}),
        "screened": _tables(folder / "screened", [screened]),
        "pairs": _tables(folder / "pairs", [pairs]),
        "synthesizer": _trained(folder / "synthesizer", Arm("pairs"), 0, 3.9, 0),
    }
    if any(arm.synthetic_share for arm in experiment.arms):
        inputs["synthesized"] = _tables(folder / "synthesized", [generated])
        kept_shards = [accepted.slice(0, 7), accepted.slice(7)]
        inputs["synthetic"] = _tables(folder / "synthetic", kept_shards, rejected=rejected)
    for arm in experiment.arms:
        rows = round(STEPS * BATCH * share) if arm.synthetic_share else 0
        for seed in experiment.seeds:
            name, rise = f"train-{arm.name}-{seed}", overfitting if arm.name == "repetition" else 0.0
            inputs[f"trained/{arm.name}/{seed}"] = _trained(folder / name, arm, seed, losses[arm.name], rows, rise)
            inputs[f"scored/{arm.name}/{seed}"] = _scored(folder / f"score-{arm.name}-{seed}", losses[arm.name], seed)
    return inputs


def run(folder: Path, experiment: Experiment = EXPERIMENT, **planted: Any) -> tuple[dict[str, Any], str]:
    """Summary and page of the stage on the artifacts that `make` gives."""
    inputs = make(folder / "inputs", experiment, **planted)
    artifact = stage.run(
        _output(folder / "report"),
        **inputs,
        experiment=experiment,
        source=source.to_source(experiment),
        execution=Execution(),
    )
    return json.loads(artifact.file("summary.json").read_text()), artifact.file("report.html").read_text()


class _Page(HTMLParser):
    """Tags that are open, attributes and text of a page."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self, content: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.loads: list[str] = []
        self.text: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def _warned(summarized: dict[str, Any]) -> list[str]:
    """The warnings but that of the controls, which the planted experiment does without."""
    assert "random_pairs and self_samples" in summarized["warnings"][-1]
    return summarized["warnings"][:-1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return run(tmp_path_factory.mktemp("report"))


def test_the_page_is_whole_and_loads_nothing(results: tuple[dict[str, Any], str]) -> None:
    content = results[1]
    page = _Page(content)
    assert page.open == []  # every tag is closed, in order
    assert [load for load in page.loads if not load.startswith("#")] == ["data:,"]
    assert not re.search(r"url\(|@import", content)
    assert len(content.encode()) < 1_000_000
    assert page.seen.isdisjoint({"img", "iframe", "object"})
    assert content.count("<script") == 2 and content.count('<script type="application/json"') == 1


def test_documents_cannot_inject_markup(results: tuple[dict[str, Any], str]) -> None:
    """Guards the escaping of every text that comes from outside: documents, ids and the note."""
    summarized, content = results
    shown = "".join(_Page(content).text)
    assert "<script>alert" not in content and "<b>not bold" not in content
    assert '<script>alert("seed")</script> & <img' in shown and "<b>not bold</b>" in shown
    assert "\x1b" not in summary.text(summarized)  # a terminal obeys it


def test_every_arm_and_count_is_in_the_page_and_the_text(results: tuple[dict[str, Any], str]) -> None:
    summarized, content = results
    shown, told = " ".join("".join(_Page(content).text).split()), summary.text(summarized)
    for arm in summarized["arms"]:
        assert f"{arm['nats_per_token']:.4f}" in shown and f"{arm['nats_per_token']:.4f}" in told
        assert arm["seeds"] == 2 and arm["tokens"] == STEPS * BATCH * CONTEXT
    gap = summarized["gaps"][0]
    assert gap["arm"] == "sbp" and gap["low"] < gap["closed"] < gap["high"]
    assert gap["closed"] == pytest.approx(0.3, abs=0.05)  # (4.2 - 4.17) / (4.2 - 4.1)
    assert f"closed {gap['closed']:.0%}" in shown and f"closed {gap['closed']:.0%}" in told
    counts = summarized["counts"]
    assert counts["splits"] == {"capped": 16, "oracle": 8, "validation": 8, "test": 8}
    assert counts["accepted_pairs"] + sum(counts["rejected_pairs"].values()) == counts["candidates"]
    assert counts["candidates"] <= counts["neighbors"] == 64
    assert counts["accepted_synthetic"] == 32
    assert counts["rejected_synthetic"] == {"unfinished": 4, "too_short": 2, "repetition": 1, "copied": 1}
    assert [example["id"] for example in summarized["examples"]] == ["syn-7-0", "syn-5-0", "syn-1-0"]
    assert all(example["seed_text"] == TEXTS[example["seed"]] for example in summarized["examples"])
    assert all(line == line.rstrip() and len(line) <= 120 for line in told.splitlines())
    assert _warned(summarized) == []


def test_equal_arms_leave_the_gap_undefined_in_words(tmp_path: Path) -> None:
    """Guards against a gap closed made of noise over noise."""
    summarized, content = run(tmp_path, losses=dict.fromkeys(LOSSES, 4.2))
    assert all(gap["arm"] == "sbp" and gap["closed"] is gap["low"] is None for gap in summarized["gaps"])
    told, shown = summary.text(summarized), "".join(_Page(content).text)
    assert "gap closed is undefined" in told and "The gap is undefined" in shown
    assert "95% interval" in told and not re.search(r"\b(nan|None)\b", told)
    assert any("no gap to close" in warning for warning in summarized["warnings"])


@pytest.mark.parametrize("loss, verdict", [(4.25, "is worse than"), (LOSSES["repetition"], "cannot be told from")])
def test_an_arm_that_gained_nothing_is_not_sold_as_a_gap_closed(tmp_path: Path, loss: float, verdict: str) -> None:
    summarized, content = run(tmp_path, losses=LOSSES | {"sbp": loss})
    for told in (summary.text(summarized), "".join(_Page(content).text)):
        assert f"The sbp arm {verdict} repetition" in told and "arm closed" not in told


def test_a_share_that_fell_short_makes_a_warning(tmp_path: Path) -> None:
    summarized, content = run(tmp_path, share=0.21)
    (warning,) = _warned(summarized)
    assert warning.startswith("the sbp arm asked for 25.0% synthetic tokens and got 20.9%")
    assert warning in summary.text(summarized).replace("\n", " ") and warning[1:] in "".join(_Page(content).text)


def test_a_final_model_past_its_best_makes_a_warning(tmp_path: Path) -> None:
    summarized, _ = run(tmp_path, overfitting=0.5)
    assert [warning.split(" ends")[0] for warning in _warned(summarized)] == ["the repetition arm"]
    assert summarized["arms"][0]["best_step"] < STEPS


def test_without_synthetic_arms_the_page_leaves_their_sections_out(tmp_path: Path) -> None:
    arms = tuple(arm for arm in EXPERIMENT.arms if not arm.synthetic_share)
    summarized, content = run(tmp_path, replace(EXPERIMENT, arms=arms, seeds=(0,)))
    assert summarized["gaps"] == summarized["examples"] == []
    assert 'id="synthetic"' not in content and "luck of training" in summary.text(summarized)


def test_the_same_artifacts_give_the_same_bytes(results: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    """Guards against timestamps, unordered sets and paths in the report: another folder gives the same files."""
    execution = Execution(mesh=MeshShape(fsdp=2))
    again = run(tmp_path, replace(EXPERIMENT, corpus=Corpus(paths=("/other/corpus.jsonl",)), execution=execution))
    assert again == results
    assert "somewhere" not in results[1]


def test_the_configuration_in_the_page_makes_the_same_experiment() -> None:
    experiment = replace(EXPERIMENT, seeds=(3,), note="quotes ' and \" and \\")
    namespace: dict[str, Any] = {}
    exec(source.to_source(experiment), namespace)
    assert namespace["get_config"]() == replace(experiment, corpus=Corpus(paths=("corpus.jsonl",)))


def test_rows_are_found_by_ordinal_across_shards(tmp_path: Path) -> None:
    """Guards the pairing of seed and synthetic document: shards of unequal size, asked out of order and twice."""
    shards = [pa.table({"ordinal": range(first, last)}) for first, last in ((0, 3), (3, 4), (4, 9))]
    artifact = _tables(tmp_path / "documents", shards)
    assert [row["ordinal"] for row in rows_at(artifact, [8, 3, 0, 3, 4])] == [8, 3, 0, 3, 4]


def test_shared_words_are_marked_and_no_character_is_lost() -> None:
    run_of_words = "the quick Brown fox, jumps"
    assert len(run_of_words.split()) == RUN
    one, other = f"Once upon one harbour {run_of_words} over.", f"{run_of_words.upper().replace(',', '')}! The harbour"
    pieces = marked(one, other)
    assert "".join(piece for piece, _ in pieces) == one
    assert [piece for piece, kind in pieces if kind == "run"] == [run_of_words]
    assert [piece for piece, kind in pieces if kind == "word"] == ["harbour"]
    assert marked("", "x") == [] and marked("...", "x") == [("...", "")]


def test_a_run_with_one_validation_shows_a_point() -> None:
    point = charts.Series("sbp", 1, np.array([5.0]), np.array([4.0]))
    assert '<circle class="dot c1"' in charts.line_chart([point], "Validation loss", "tokens", "nats")


SPANS = [(0, 1), (4.101, 4.118), (-0.07, 0.02), (0, 3e12), (2.0, 2.0), (0.0, 0.0), (-1, 1)]


@pytest.mark.parametrize("low, high", SPANS)
def test_ticks_span_the_values_and_their_labels_differ(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
    assert len({svg.fixed(tick, found) for tick in found}) == len(found)
