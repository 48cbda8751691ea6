"""Calibration: its losses against the plain decoder, its documents against the run that it stands for."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax import cli
from sbp_jax.arms import SUFFIX
from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord, parquet
from sbp_jax.calibration import held_out, report
from sbp_jax.calibration.calibrate import Asked, calibrate
from sbp_jax.calibration.command import run as run_command
from sbp_jax.calibration.texts import Compared, accepted_tokens, scored, summary
from sbp_jax.config import Execution
from sbp_jax.data.groups import accepted
from sbp_jax.data.synthetic import SCHEMA
from sbp_jax.errors import SbpError
from sbp_jax.experiments import load
from sbp_jax.generation.requests import Completion
from sbp_jax.generation.run_requests import RunRequests
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import bind
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.pipeline import Pipeline
from sbp_jax.stages import filter as filter_stage
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.training.step import Setup
from tests.planted_topics import plant

DOCUMENTS = 31  # the whole run
ASKED = ["--calibrate", "--json", "--temperatures", "0,1", "--top-p", "1"]
PROGRAM = """
import contextlib, pathlib, sys
from sbp_jax import cli
config, work = sys.argv[1:]
def run(name, *arguments):
    with open(f"{work}/{name}", "w") as file, contextlib.redirect_stdout(file):
        assert cli.main([arguments[0], config, "--workdir", f"{work}/run", *arguments[1:]]) == 0
def files():
    return {path: path.stat().st_mtime_ns for path in pathlib.Path(work, "run").rglob("*")}
"""
STEPS = f"""
run("log", "run", "--until", "synthesizer")
before = files()
run("told.json", "synthesize", "--documents", "{DOCUMENTS}", *{ASKED!r})
run("again.json", "synthesize", "--documents", "{DOCUMENTS}", *{ASKED!r})
assert files() == before
run("self.json", "synthesize", "--documents", "8", "--pairs", "none", *{ASKED!r})
run("log", "run", "--only", "synthesized")
run("log", "run", "--only", "synthetic")
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run on one device as far as the synthesizer, calibrated twice, then what the calibration foretells."""
    folder = tmp_path_factory.mktemp("planted")
    config = plant(folder)
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    arguments = [sys.executable, "-c", PROGRAM + STEPS, str(config), str(folder)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pipeline = Pipeline(load(str(config)), str(folder / "run"))
    made = {name: artifact for name in pipeline.nodes if (artifact := pipeline.artifact(name)) is not None}
    told, again, alone = (json.loads((folder / f"{name}.json").read_text()) for name in ("told", "again", "self"))
    return SimpleNamespace(
        config=config, folder=folder, pipeline=pipeline, made=made, told=told, again=again, alone=alone
    )


def _own(told: dict[str, Any]) -> dict[str, Any]:
    (row,) = (row for row in told["settings"] if row["own"])
    return row


def _tokenizer(planted: SimpleNamespace) -> text_tokenizer.TextTokenizer:
    return text_tokenizer.load(planted.made["tokenizer"].file("tokenizer.json"), planted.pipeline.experiment.tokenizer)


def _sizes(made: dict[str, Artifact]) -> Any:
    records = arrayrecord.source(made["tokens"])
    return lambda ordinal: len(records[ordinal]) // 4


def _choose(made: dict[str, Artifact], count: int, context: int = 128) -> held_out.Groups:
    return held_out.choose(made["groups"], made["pairs"], _sizes(made), context, count)


def test_losses_are_those_of_the_plain_decoder(planted: SimpleNamespace) -> None:
    """Guards what is summed: the target and its end, once, behind the whole prompt and nothing else."""
    made, experiment, tokenizer = planted.made, planted.pipeline.experiment, _tokenizer(planted)
    records, groups = arrayrecord.source(made["tokens"]), _choose(made, 9)
    tokens = lambda ordinal: np.frombuffer(records[ordinal], "<i4")  # noqa: E731
    alone: list[list[int]] = [[]] * len(groups.targets_G)
    cases, mesh = [groups.read, alone, groups.other], build_mesh(experiment.execution.mesh)
    for name, read in (("synthesizer", cases), ("train-repetition-0", [alone])):
        folder = made[name].folder("best")
        vocabulary = huggingface.inspect(folder).vocabulary
        parameters = huggingface.load(folder, experiment.model, vocabulary, mesh)
        setup = Setup(experiment.model, vocabulary, experiment.tuning, 0, 1, mesh, experiment.execution)
        nats, counts = held_out.losses(setup, parameters, read, groups.targets_G, tokens, tokenizer, "test")
        plain = bind(experiment.model, vocabulary, jax.tree.map(jnp.asarray, jax.device_get(parameters)))
        decoder = jax.jit(
            lambda tokens, plain=plain: plain(tokens, jnp.ones_like(tokens), jnp.arange(tokens.shape[1])[None])
        )
        for case, own in zip(nats, read, strict=True):
            for place, (documents, target) in enumerate(zip(own, groups.targets_G.tolist(), strict=True)):
                start = [tokenizer.end_of_document]
                for ordinal in documents:
                    start += [*tokens(ordinal), tokenizer.separator]
                written = [*tokens(target), tokenizer.end_of_document]
                padding = [0] * (128 - len(start) - len(written))  # behind what is looked at
                logits = decoder(jnp.array([[*start, *written, *padding]]))[0]
                places = np.arange(len(start) - 1, len(start) + len(written) - 1)
                nats_of_tokens = -jax.nn.log_softmax(logits)[places, np.array(written)]
                assert case[place] == pytest.approx(float(nats_of_tokens.sum()), rel=1e-4)
                assert counts[place] == len(written)


def test_reading_helps_where_it_must(planted: SimpleNamespace) -> None:
    """What is read tells the topic: guards documents that are confused, and losses of another case."""
    found = planted.told["held_out"]
    assert [part["from"] for part in found["buckets"]] == sorted(part["from"] for part in found["buckets"])
    assert sum(part["groups"] for part in found["buckets"]) == found["all"]["groups"] == found["groups_available"]
    for part in (found["all"], *(part for part in found["buckets"] if part["groups"] > 20)):
        bits = part["bits_per_token"]
        assert bits["d2_given_d1"] < bits["d2"] < bits["d2_given_random"] < bits["d2_of_base"]
        for name, (value, low, high) in part["saved"].items():
            assert 0 < low < value < high and value == pytest.approx(bits[name] - bits["d2_given_d1"])


def test_groups_are_read_with_another_one_that_is_strange_to_the_target(planted: SimpleNamespace) -> None:
    made, context = planted.made, 128
    sizes, everything = _sizes(made), _choose(made, 10_000)
    related = {pair for table in accepted(made["pairs"], ["d1", "d2", "similarity"]) for pair in _pairs_of(table)}
    rows = [row for row in parquet.read(made["groups"]).to_pylist() if row["part"] == "validation"]
    assert everything.available == len(rows) == len(everything.read)
    by_pair = {(row["seed"], row["target"]): row for row in rows}
    alike = []
    for place, (read, other) in enumerate(zip(everything.read, everything.other, strict=True)):
        seed, target = int(everything.seeds_G[place]), int(everything.targets_G[place])
        row = by_pair[seed, target]
        assert read == row["conditioning"] and everything.similarity_G[place] == row["similarity"]
        assert other in [other_row["conditioning"] for other_row in rows] and not set(other) & {target, *read}
        assert not {(target, ordinal) for ordinal in other} & related
        assert not {(ordinal, target) for ordinal in other} & related
        assert 1 + sum(map(sizes, other)) + len(other) + sizes(target) <= context
        alike.append(abs(sum(map(sizes, other)) - sum(map(sizes, read))))
    assert np.mean(alike) < 6
    few = _choose(made, 20)
    assert few.targets_G.tolist() == everything.targets_G[:20].tolist() and few.available == len(rows)
    assert len({tuple(other) for other in few.other}) > 5


def test_groups_of_several_documents_are_exchanged_whole(planted: SimpleNamespace, tmp_path: Path) -> None:
    """Guards prompts that mix related and random documents, and shards that change what is chosen."""
    rows = [row for row in parquet.read(planted.made["groups"]).to_pylist() if row["part"] == "validation"]
    capped = sorted({ordinal for row in rows for ordinal in (row["seed"], row["target"])})
    for place, row in enumerate(rows):
        further = capped[place % len(capped)]
        row["conditioning"] = [further, row["seed"]] if further not in (row["seed"], row["target"]) else [row["seed"]]
    made = []
    for cuts in ([0, len(rows)], [0, 5, 5, 60, len(rows)]):
        output = Output(epath.Path(tmp_path / str(len(cuts))), Recipe("group", 1, {}, {}), "groups")
        for index, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            table = pa.Table.from_pylist(rows[start:stop], parquet.read(planted.made["groups"]).schema)
            output.shard(index, ".parquet", partial(parquet.write, table=table))
        made.append(_choose(planted.made | {"groups": output.finish()}, 40, context=256))
    whole = [row["conditioning"] for row in rows]
    assert all(other in whole for other in made[0].other) and {len(other) for other in made[0].other} == {1, 2}
    assert made[0].other == made[1].other and made[0].read == made[1].read


def test_the_documents_are_those_of_the_run_with_the_verdicts_of_its_filters(planted: SimpleNamespace) -> None:
    """Guards other seeds, keys or prompts than the run's, and every number that is told of them."""
    own, synthesized = _own(planted.told), parquet.read(planted.made["synthesized"]).to_pylist()
    kept = parquet.read(planted.made["synthetic"]).to_pylist()
    rows = [*kept, *parquet.read(planted.made["synthetic"], prefix="rejected").to_pylist()]
    assert len(rows) == len(synthesized) == DOCUMENTS and 0 < len(kept) < DOCUMENTS
    mean = lambda name: sum(row[name] for row in rows) / DOCUMENTS  # noqa: E731
    assert (own["temperature"], own["top_p"], own["documents"]) == (0.9, 0.8, DOCUMENTS)
    assert own["new_tokens"] == sum(row["new_tokens"] for row in synthesized)
    assert own["mean_new_tokens"] == pytest.approx(mean("new_tokens"))
    for name in ("end", "length", "loop"):
        assert own["finish"][name] == sum(row["finish"] == name for row in rows) / DOCUMENTS
    for name in ("words", "repetition", "seed_common", "seed_overlap", "copied", "held_out"):
        assert own[name] == pytest.approx(mean(name)), name
    assert own["longest_seed_common"] == max(row["seed_common"] for row in rows) > 1
    assert own["accepted"] == len(kept) / DOCUMENTS
    verdicts = {row["verdict"] for row in rows} - {"accepted"}
    assert own["rejected"] == {name: sum(row["verdict"] == name for row in rows) / DOCUMENTS for name in verdicts}
    pieces = [text.split() for text in (row["text"] for row in rows)]
    grams = [tuple(words[place : place + 2]) for words in pieces for place in range(len(words) - 1)]
    assert own["distinct_2"] == pytest.approx(len(set(grams)) / len(grams), rel=0.02)  # bytes that are no UTF-8

    whole = own["whole_run"]
    sizes = [len(tokens) + 1 for tokens in _tokenizer(planted).encode_batch([row["text"] for row in kept])]
    needed, length = planted.told["needed"], planted.told["needed"]["mean_tokens"]
    assert whole["accepted_tokens_a_document"][0] == pytest.approx(sum(sizes) / DOCUMENTS)
    assert whole["configured"] | {"hours": 0} == {
        **{"oversample": 1.2, "documents": DOCUMENTS, "new_tokens": own["new_tokens"], "hours": 0},
        **{"prompt_tokens": round(whole["mean_prompt_tokens"] * DOCUMENTS), "accepted_tokens": sum(sizes)},
    }
    value, low, high = whole["oversample_needed"]
    assert low < value < high and value == pytest.approx(length * DOCUMENTS / sum(sizes))
    assert whole["suffices"] == (sum(sizes) >= needed["tokens"]) and needed["documents"] == DOCUMENTS
    advised = whole["advised"]
    assert high <= advised["oversample"] < high + 0.1 and advised["accepted_tokens"] > needed["tokens"]
    speed = planted.told["speed"]
    assert speed["slots"] == 8 and speed["new_tokens_a_second"] == pytest.approx(speed["tokens"] / speed["seconds"])
    for row in planted.told["settings"]:
        run = row["whole_run"]["configured"]
        assert run["hours"] * 3600 * speed["new_tokens_a_second"] == pytest.approx(run["new_tokens"], abs=1)


def _pairs_of(table: pa.Table) -> Iterator[tuple[int, int]]:
    return zip(table["d1"].to_pylist(), table["d2"].to_pylist(), strict=True)


def test_planted_copies_have_the_scores_and_verdicts_of_the_filter_stage(
    planted: SimpleNamespace, tmp_path: Path
) -> None:
    """Guards columns that are exchanged, siblings across settings, and text that is judged before it is cut."""
    made, nodes, tokenizer = planted.made, planted.pipeline.nodes, _tokenizer(planted)
    experiment = planted.pipeline.experiment
    filters = replace(experiment.filters, unfinished="trim", max_seed_run=10)
    source = RunRequests(replace(experiment.synthesis, samples=4), tokenizer, made["tokens"], 128)
    source.condition(made["splits"], made["pairs"], 1, "test")
    texts, splits = (
        parquet.read(made["documents"])["text"].to_pylist(),
        parquet.read(made["splits"])["split"].to_pylist(),
    )
    long = [place for place, text in enumerate(texts) if len(text.split()) > 13 and splits[place] == "capped"]
    held = next(place for place, text in enumerate(texts) if splits[place] == "test")
    fresh = "these words are quite new and stand in no other document of all that there are"
    written = [
        texts[source.request(0).ordinal],
        texts[long[0]],
        texts[long[1]].upper(),
        texts[held],
        fresh,
        f"{fresh} yes",
    ]
    written += ["one two " * 12, "a b c", "cut. off here", f"{fresh} no", fresh[::-1], "round and round"]
    written += ["a b c"]  # a copy of a rejected one, which does not count against it
    finishes = ["end"] * 8 + ["length"] + ["end"] * 2 + ["loop", "end"]
    completions = [
        Completion(source.request(number), tokens, finish, -1.0)
        for number, (tokens, finish) in enumerate(zip(tokenizer.encode_batch(written), finishes, strict=True))
    ]
    real = {name: made[name] for name in ("documents", "splits", "screened")}
    rules = Compared(*real.values(), nodes["synthetic"].config["evaluations"], filters, nodes["synthetic"].version)
    scratch = Output(epath.Path(tmp_path / "scratch"), Recipe("test", 1, {}, {}), "test")
    first, second, third = scored(scratch, source, [completions, completions[4:6], completions[4:]], rules)

    rows = [
        source.lineage(completion.request) | {"ordinal": number, "id": str(number), "text": text, "finish": finish}
        for number, (completion, text, finish) in enumerate(zip(completions, written, finishes, strict=True))
    ]
    output = Output(epath.Path(tmp_path / "synthesized"), Recipe("synthesize", 1, {}, {}), "synthesized")
    output.shard(0, ".parquet", partial(parquet.write, table=pa.Table.from_pylist(rows, SCHEMA)))
    target = Output(epath.Path(tmp_path / "synthetic"), Recipe("filter", 1, {}, {}), "synthetic")
    inputs = real | {"synthesized": output.finish(), "evaluations": rules.evaluations, "filters": filters}
    stage = filter_stage.run(target, **inputs, execution=Execution())
    expected = [*parquet.read(stage).to_pylist(), *parquet.read(stage, prefix="rejected").to_pylist()]
    expected.sort(key=lambda row: int(row["id"]))
    found = first.to_pylist()
    columns = (*("text", "seed", "conditioning", "finish", "verdict", "rule_version", "copy_of"), *filter_columns())
    for row, other in zip(found, expected, strict=True):
        assert {name: row[name] for name in columns} == {name: other[name] for name in columns}
    assert {row["verdict"] for row in found} >= {
        "accepted",
        "seed_run",
        "copied",
        "held_out",
        "sibling",
        "loop",
        "too_short",
    }
    assert found[1]["copied"] == 1 and found[3]["held_out"] == 1 and found[0]["seed_overlap"] == 1
    assert [row["verdict"] for row in second.to_pylist()] == ["accepted", "sibling"] and second["copy"].to_pylist() == [
        False,
        True,
    ]
    for row, size in zip(found, map(len, tokenizer.encode_batch([row["text"] for row in found])), strict=True):
        assert row["accepted_tokens"] == (size + 1 if row["verdict"] == "accepted" else 0)
    assert summary(third, completions[0].request.sampling)["copies"] == third["copy"].to_pylist().count(True) / 9
    assert first["copy"].to_pylist()[-1] and found[-1]["copy_of"] is None
    owned = accepted_tokens(first)
    assert owned.value == pytest.approx(sum(first["accepted_tokens"].to_pylist()) / len(found))


def filter_columns() -> tuple[str, ...]:
    return (
        "words",
        "repetition",
        "repetition_2",
        "seed_common",
        "seed_overlap",
        "copied",
        "held_out",
        "sibling",
        "duplicate",
    )


def test_a_calibration_is_the_same_each_time_but_for_the_clock(planted: SimpleNamespace) -> None:
    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(inner) for name, inner in value.items() if name not in ("hours", "speed")}
        return [timeless(inner) for inner in value] if isinstance(value, list) else value

    assert timeless(planted.told) == timeless(planted.again)
    rows = [(row["temperature"], row["top_p"]) for row in planted.told["settings"]]
    assert rows == [(0.0, 1.0), (0.9, 0.8), (1.0, 1.0)]


def test_what_reads_nothing_has_no_seed_and_no_held_out_groups(planted: SimpleNamespace) -> None:
    assert planted.alone["held_out"] is None and planted.alone["model"]["instance"] == "train-repetition-0"
    for row in planted.alone["settings"]:
        assert row["seed_common"] is row["seed_overlap"] is row["longest_seed_common"] is None
        assert row["documents"] == 8 and row["whole_run"]["mean_prompt_tokens"] == 1


def test_the_text_has_the_numbers_of_every_setting_and_says_what_to_change(planted: SimpleNamespace) -> None:
    """Guards columns that are exchanged, settings that fall off the page, and runs of which nothing is left."""
    told = planted.told
    text, own = report.text(told), _own(told)
    lines = {line[:28].strip(): line[28:].split() for line in text.splitlines()}
    rows = told["settings"]
    assert lines["temperature"] == ["0", "0.9", "*", "1"] and lines["top-p"] == ["1", "0.8", "1"]
    assert lines["ended by itself"] == [f"{row['finish']['end']:.1%}" for row in rows]
    assert lines["accepted"] == [f"{row['accepted']:.1%}" for row in rows]
    assert lines["words in a row of the seed"] == [f"{row['seed_common']:.1f}" for row in rows]
    assert lines["rejected: too_short"] == [f"{row['rejected'].get('too_short', 0):.1%}" for row in rows]
    everything = told["held_out"]["all"]
    found = [f"{bits:.3f}" for bits in everything["bits_per_token"].values()]
    (line,) = (line.split() for line in text.splitlines() if line.startswith("all "))
    assert line[3:8] == [f"{everything['tokens']:,}", *found]
    assert "Reading the seed instead of a random document helps." in text
    value, low, high = own["whole_run"]["oversample_needed"]
    says = "is enough" if own["whole_run"]["suffices"] else "is not enough"
    assert (
        f"synthesis.oversample = 1.2 {says}: by these documents it takes {value:.2f} ({low:.2f} to {high:.2f})" in text
    )

    none = {"accepted_tokens_a_document": [0.0, 0.0, 0.0], "oversample_needed": [None] * 3, "advised": None}
    barren = own | {"whole_run": own["whole_run"] | none, "seed_common": None, "accepted": 0.0}
    many = [barren, *(rows[0] | {"temperature": place / 8} for place in range(11))]
    text = report.text(told | {"settings": many, "held_out": None})
    assert "They leave none of those written here" in text and "validation groups" not in text
    shown = [line.split()[1:] for line in text.splitlines() if line.startswith("temperature")]
    assert [len(line) for line in shown] == [9, 4] and max(map(len, text.splitlines()[:40])) <= 120
    assert shown[1] == ["0.875", "1", "1.125", "1.25"]


def _refused(planted: SimpleNamespace, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    arguments = ["synthesize", str(planted.config), "--workdir", str(planted.folder / "run"), *options]
    assert cli.main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--calibrate", "--temperatures", "0.7,-1"], "--temperatures has -1; 0 takes the most probable"),
        (["--calibrate", "--temperatures", "nan"], "--temperatures has nan"),
        (["--calibrate", "--temperatures", "hot"], "--temperatures is 'hot'; give numbers"),
        (["--calibrate", "--top-p", "0,1"], "--top-p has 0; it is a probability above 0"),
        (["--calibrate", "--top-p", "1.5"], "--top-p has 1.5"),
        (["--calibrate", "--documents", "0"], "--documents is 0; it must be at least 1"),
        (["--calibrate", "--groups", "-3"], "--groups is -3"),
        (["--calibrate", "--groups", "5"], "of the 151 validation groups 5 can be compared"),
        (["--calibrate", "--pairs", "random"], "no arm of planted reads documents of pairs = random; give --pairs rel"),
        (["--documents", "5", "--json"], "--documents, --json belongs to --calibrate"),
        (
            ["--calibrate", "--set", "tuning.epochs=3"],
            "synthesizer: not complete in",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    planted: SimpleNamespace, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert said in _refused(planted, capsys, *options)
    assert not list((planted.folder / "run").glob("calibration-*"))


def test_the_commands_that_make_what_is_missing_are_named(planted: SimpleNamespace) -> None:
    pipeline = planted.pipeline
    options = cli._parser().parse_args(["synthesize", "mine.py", "--calibrate"])

    def refused(*missing: str) -> str:
        find = lambda name: None if name in missing else planted.made.get(name)  # noqa: E731
        with pytest.raises(SbpError) as error:
            run_command(options, pipeline.experiment, pipeline.nodes, SUFFIX, find, "there")
        return str(error.value)

    assert refused(*pipeline.nodes).endswith("not complete in there; run `sbp run mine.py --until synthesizer`")
    assert "run `sbp run mine.py --until rows-capped` and `sbp run mine.py --until groups`" in refused(
        "groups", "rows-capped"
    )


def test_too_few_groups_and_a_model_that_was_not_tuned_are_errors(planted: SimpleNamespace, tmp_path: Path) -> None:
    table = parquet.read(planted.made["groups"])
    for rows, said in ((7, "there are 7 validation groups"), (0, "there are 0 validation groups")):
        output = Output(epath.Path(tmp_path / said), Recipe("group", 1, {}, {}), "groups")
        some = table.filter(pa.compute.equal(table["part"], "validation")).slice(0, rows)
        output.shard(0, ".parquet", partial(parquet.write, table=some))
        with pytest.raises(SbpError, match=said):
            _choose(planted.made | {"groups": output.finish()}, 10)
    nodes, experiment = planted.pipeline.nodes, planted.pipeline.experiment
    made = {role: planted.made[name] for role, name in nodes["synthesized"].inputs.items()}
    made |= {"model": planted.made["train-repetition-0"]}
    with pytest.raises(SbpError, match="not tuned on pairs"):
        calibrate(experiment, nodes, "", made, Asked(1, 10, (1.0,), (1.0,)), str(tmp_path))
