"""Text sets, from the user's records to the nats of each: nothing is lost, counted twice or left unsaid."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from etils import epath
from flax import nnx

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, MeshShape, Model, TextSet, Tokenizer, Training
from sbp_jax.data import rows as packed_rows
from sbp_jax.data.rows import RowSource
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface
from sbp_jax.model.decoder import Decoder
from sbp_jax.stages import copies, score, texts, tokenize, window
from sbp_jax.text import tokenizer as text_tokenizer
from sbp_jax.text.record_text import Missing, NoText, parse
from sbp_jax.training.evaluation import spread

MODEL = Model(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)
SETTINGS = Tokenizer(vocab_size=300)
TRAINING = Training(context=32, batch_rows=4)
WORDS = "naïve Ünïcode 北京 \U0001f600 the of and water music".split()
ITEM = {"question": "Why?", "choices": ["rain", "sun"], "gold": 1, "more": {"label": ["A", "B"]}, "score": 0.5}


def output(folder: epath.Path, name: str) -> Output:
    return Output(folder / name, Recipe(name, 1, {}, {}), name)


def records(count: int = 40) -> list[dict]:
    random = np.random.default_rng(0)
    return [{"q": " ".join(random.choice(WORDS, size)), "a": [str(size)]} for size in random.integers(1, 90, count)]


def written(folder: Path, found: list[dict], name: str = "set.jsonl") -> TextSet:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found))
    return TextSet("mine", (str(folder / name),), "{q}\n{a[0]}")


def expected(found: list[dict]) -> list[str]:
    return [f"{record['q']}\n{record['a'][0]}" for record in found]


@pytest.fixture
def made(tmp_path) -> dict[str, Artifact]:
    return make(tmp_path)


def make(tmp_path: Path, stride: int = 32) -> dict[str, Artifact]:
    """A text set as rows, a tokenizer, and a random model."""
    folder = epath.Path(tmp_path)
    trained = output(folder, "trained")
    encoder = text_tokenizer.train(expected(records()), SETTINGS)
    weights = nnx.to_pure_dict(nnx.state(Decoder(MODEL, encoder.vocab_size, nnx.Rngs(0))))
    for name in huggingface.save(trained.path / "final", weights, MODEL, encoder.vocab_size, 32, 0):
        with trained.writing(f"final/{name}"):
            pass
    tokenizer = output(folder, "tokenizer")
    with tokenizer.writing("tokenizer.json") as writing:
        encoder.save(writing.path)
    found = {"trained": trained.finish(), "tokenizer": tokenizer.finish()}
    return found | rows_of(folder, written(tmp_path, records()), found["tokenizer"], stride)


def rows_of(folder: epath.Path, chosen: TextSet, tokenizer: Artifact, stride: int = 32) -> dict[str, Artifact]:
    made = {"documents": texts.run(output(folder, "texts"), texts=chosen, execution=Execution())}
    given = {"tokenizer": tokenizer, "settings": SETTINGS, "execution": Execution()}
    made["tokens"] = tokenize.run(output(folder, "tokens"), documents=made["documents"], **given)
    given |= {"context": 32, "stride": stride}
    made["rows"] = window.run(output(folder, "rows"), **made, **given)
    return made


def scored(
    folder: Path, made: dict[str, Artifact], name: str = "score", execution: Execution | None = None
) -> Artifact:
    given = {"model": MODEL, "training": TRAINING, "execution": execution or Execution()}
    return score.run(output(epath.Path(folder), name), trained=made["trained"], rows=made["rows"], **given)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{question}", "Why?"),
        ("{question} {choices[gold]}", "Why? sun"),
        ("{choices[0]}, {choices[1]}: {gold}", "rain, sun: 1"),
        ("{more.label[gold]} {more[label][0]}", "B A"),
        ("{{{question}}}", "{Why?}"),
        ("{score}", "0.5"),
    ],
)
def test_a_template_is_filled_from_the_fields_of_a_record(template, text):
    assert parse(template, "text").render(ITEM) == text


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{answer}", Missing, "answer is not there"),
        ("{choices[2]}", Missing, "the list has 2 entries"),
        ("{choices[answer]}", Missing, "answer is None"),
        ("{choices[question]}", Missing, "question is 'Why[?]'"),
        ("{question.deep}", Missing, r"question\[deep\] is not there"),
        ("{choices}", NoText, "choices is a list"),
    ],
)
def test_a_record_without_a_field_has_no_text(template, error, message):
    """Guards against "None" or "['rain', 'sun']" as text to be scored."""
    with pytest.raises(error, match=message):
        parse(template, "text").render(ITEM)


@pytest.mark.parametrize("template", ["{question", "question}", "{}", "{a..b}", "no field", "{choices[}"])
def test_a_template_that_is_none_is_refused(template):
    with pytest.raises(SbpError, match=r"evaluation.texts.x.text is '.*'"):
        parse(template, "evaluation.texts.x.text")


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "folder"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, kind):
    found = records()
    plain = written(tmp_path / "plain", found)
    path = tmp_path / f"set.{kind}"
    content = Path(plain.paths[0]).read_bytes()
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(content))
    elif kind == "jsonl.zst":
        path.write_bytes(zstandard.compress(content))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(found), path)
    else:
        path.mkdir()
        for place, text in enumerate(expected(found)):
            (path / f"{place:03d}.txt").write_text(text)
    chosen = replace(plain, paths=(str(path),), text="{text}" if kind == "folder" else plain.text)
    made = texts.run(output(epath.Path(tmp_path), "texts"), texts=chosen, execution=Execution())
    table = parquet.read(made)
    assert table["text"].to_pylist() == expected(found)
    assert table["ordinal"].to_pylist() == list(range(len(found)))
    assert made.stats == {"documents": len(found), "bytes": sum(len(t.encode()) for t in expected(found)), "skipped": 0}


def test_lists_and_records_in_parquet_are_read_as_in_json(tmp_path):
    """Guards columns that are read only for the place that they name, and keys of records that are no columns."""
    pq.write_table(pa.Table.from_pylist([ITEM]), tmp_path / "set.parquet")
    chosen = TextSet("mine", (str(tmp_path / "set.parquet"),), "{question} {choices[gold]} {more.label[gold]}")
    made = texts.run(output(epath.Path(tmp_path), "texts"), texts=chosen, execution=Execution())
    assert parquet.read(made)["text"].to_pylist() == ["Why? sun B"]
    with pytest.raises(SbpError, match="has no column 'absent'; the template may name one of: 'question'"):
        chosen = replace(chosen, text="{absent}")
        texts.run(output(epath.Path(tmp_path), "absent"), texts=chosen, execution=Execution())


def test_equal_records_are_all_kept_and_those_without_text_are_counted(tmp_path):
    """Guards what an average is over: a set with three equal items has three."""
    found = [{"id": "same", "q": "equal", "a": ["x"]}] * 3 + [
        {"q": "none"},
        {"q": None, "a": ["x"]},
        {"q": {}, "a": [1]},
    ]
    chosen = replace(written(tmp_path, found), max_skipped=0.6)
    made = texts.run(output(epath.Path(tmp_path), "texts"), texts=chosen, execution=Execution())
    assert parquet.read(made)["text"].to_pylist() == ["equal\nx"] * 3
    counts = {"skipped": 3, "skipped_no_text_field": 2, "skipped_text_not_a_string": 1}
    assert {name: made.stats[name] for name in counts} == counts
    skipped = [json.loads(line) for line in made.file("skipped.jsonl").read_text().splitlines()]
    assert [(record["line"], record["reason"]) for record in skipped] == [
        *((line, "no_text_field") for line in (4, 5)),
        (6, "text_not_a_string"),
    ]
    with pytest.raises(SbpError, match=r"3 of 6 records of the text set mine give no text.*set.jsonl, line 4: no_text"):
        texts.run(output(epath.Path(tmp_path), "strict"), texts=replace(chosen, max_skipped=0.4), execution=Execution())
    none = replace(chosen, text="{absent}", max_skipped=1.0)
    with pytest.raises(SbpError, match="6 of 6 records of the text set mine give no text"):
        texts.run(output(epath.Path(tmp_path), "none"), texts=none, execution=Execution())
    with pytest.raises(SbpError, match=r"evaluation.texts.mine.paths: nowhere.jsonl does not exist"):
        texts.files(replace(chosen, paths=("nowhere.jsonl",)))


def test_the_accounts_are_those_of_the_texts(tmp_path, made):
    """Guards targets, bytes and documents, and with them every rate: counted here from the records alone."""
    artifact = scored(tmp_path, made)
    tokenizer = text_tokenizer.load(made["tokenizer"].file("tokenizer.json"), SETTINGS)
    tokens = [len(ids) for ids in tokenizer.encode_batch(expected(records()))]
    sizes = [len(text.encode()) for text in expected(records())]
    assert max(tokens) > 2 * 32 > min(tokens), "some documents take several windows"
    table, stats = parquet.read(artifact), artifact.stats
    assert table["ordinal"].to_pylist() == list(range(40)) and table["bytes"].to_pylist() == sizes
    assert table["targets"].to_pylist() == [count + 1 for count in tokens]
    assert (stats["documents"], stats["targets"], stats["bytes"]) == (40, sum(tokens) + 40, sum(sizes))
    nats = sum(table["nats"].to_pylist())
    assert stats["nats_per_token"] == pytest.approx(nats / (sum(tokens) + 40), rel=1e-12)
    assert stats["perplexity"] == pytest.approx(math.exp(nats / (sum(tokens) + 40)))
    assert stats["bits_per_byte"] == pytest.approx(nats / sum(sizes) / math.log(2))


def test_another_mesh_gives_the_same_scores(tmp_path, made):
    one = parquet.read(scored(tmp_path, made, "one"))["nats"].to_numpy()
    mesh = Execution(mesh=MeshShape(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(parquet.read(scored(tmp_path, made, "other", mesh))["nats"].to_numpy(), one, rtol=2e-5)


@pytest.mark.parametrize("fault", ["twice", "lost", "end", "stranger"])
def test_a_target_that_is_counted_twice_or_lost_is_no_number(tmp_path, made, monkeypatch, fault):
    """Guards the accounts themselves: each of these would change the loss by a little and nobody would see."""
    plain = packed_rows.from_bytes

    def faulty(record):
        row = plain(record)
        mask, owners = row.mask.copy(), row.documents.copy()
        (ends,) = np.nonzero(row.mask & (row.tokens[1:] == 0))
        if fault == "twice":  # a target of one document is given to another that stands in the row
            owners[ends[0]] = owners[ends[-1]]
        elif fault == "lost":
            mask[ends[0] - 1] = False
        elif fault == "end":
            mask[ends[0]] = False
        else:
            owners[:] = 10**9
        return row._replace(mask=mask, documents=owners)

    class Faulty(RowSource):
        def __getitem__(self, index):
            record = self._records[index]
            row = plain(record)
            several = len(np.unique(row.documents[row.mask])) > 1
            return faulty(record) if several else row

    monkeypatch.setattr(score, "RowSource", Faulty)
    with pytest.raises(RuntimeError, match="targets, and|lack targets|not in the set"):
        scored(tmp_path, made)


def test_a_killed_run_scores_what_is_left_to_the_same_bits(tmp_path, made, monkeypatch):
    monkeypatch.setattr(window, "DOCUMENTS", 1)
    monkeypatch.setattr(window, "READ", 9)
    made |= rows_of(epath.Path(tmp_path) / "small", written(tmp_path, records()), made["tokenizer"])
    undisturbed = scored(tmp_path, made, "undisturbed")
    assert len(undisturbed.files) == 5
    write, written_shards = score._write, []

    def dying(out, shard, scores):
        if len(written_shards) == 3:
            raise KeyboardInterrupt
        written_shards.append(shard)
        write(out, shard, scores)

    monkeypatch.setattr(score, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path, made, "killed")
    batches = []
    monkeypatch.setattr(score, "_write", write)
    losses = score.target_losses
    monkeypatch.setattr(score, "target_losses", lambda *given: (batches.append(1) or each for each in losses(*given)))
    resumed = scored(tmp_path, made, "killed")
    assert 0 < len(batches) < len(RowSource(made["rows"])) / TRAINING.batch_rows, "what was done is not done again"
    assert [(file.name, file.checksum) for file in resumed.files] == [
        (file.name, file.checksum) for file in undisturbed.files
    ]
    assert resumed.stats == undisturbed.stats


def test_a_stride_gives_context_and_changes_no_account(tmp_path, made):
    wide = scored(tmp_path, made)
    made |= rows_of(epath.Path(tmp_path) / "close", written(tmp_path, records()), made["tokenizer"], stride=8)
    close = scored(tmp_path, made, "close-score")
    for name in ("documents", "targets", "bytes"):
        assert wide.stats[name] == close.stats[name]
    tables = parquet.read(wide), parquet.read(close)
    short = tables[0]["targets"].to_numpy() <= 32
    nats = [table["nats"].to_numpy() for table in tables]
    np.testing.assert_allclose(nats[0][short], nats[1][short], rtol=2e-5)
    assert not np.allclose(nats[0][~short], nats[1][~short], rtol=1e-4)


def test_rows_watched_while_training_are_spread_over_the_set(made):
    rows = RowSource(made["rows"])
    chosen = spread(rows, 5)
    assert len(chosen) == 5 and len(spread(rows, 10**6)) == len(rows)
    np.testing.assert_array_equal(chosen[0].tokens, rows[0].tokens)
    np.testing.assert_array_equal(chosen[-1].tokens, rows[len(rows) - 1].tokens)


def test_documents_that_stand_in_the_training_documents_are_counted(tmp_path, capsys):
    """Planted: a whole document and two thirds of one in the capped set, one in the oracle set, one held out."""
    random = np.random.default_rng(2)
    own = [" ".join(f"word{number}" for number in random.integers(0, 10**6, 60)) for _ in range(6)]
    folder, short = epath.Path(tmp_path), "only a few words"
    found = [{"q": text, "a": [""]} for text in [*own, short, "北京" * 20]]
    made = texts.run(output(folder, "texts"), texts=written(tmp_path, found), execution=Execution())
    words = own[1].split()
    corpus = {
        f"Before. {own[0].upper()}, after.": "capped",
        " ".join(words[:40] + ["else"] * 30): "capped",
        own[2]: "oracle",
        own[3]: "test",
        own[4]: "unused",
        " ".join(own[5].split()[:20]): "oracle",  # 8 of 48 shingles
    }
    documents, splits = output(folder, "documents"), output(folder, "splits")
    columns = {"ordinal": range(len(corpus)), "text": corpus.keys(), "split": corpus.values()}
    table = pa.table({name: list(values) for name, values in columns.items()})
    for artifact, names in ((documents, ["ordinal", "text"]), (splits, ["ordinal", "split"])):
        artifact.shard(0, ".parquet", lambda writing, names=names: parquet.write(writing, table.select(names)))
    given = {"documents": documents.finish(), "splits": splits.finish(), "execution": Execution()}
    told = copies.run(output(folder, "copies"), texts=made, **given)
    rows = parquet.read(told).to_pylist()
    assert [row["ordinal"] for row in rows] == list(range(8)) and rows[7]["words"] == 40
    assert [row["capped"] for row in rows] == pytest.approx([1, 28 / 48, 0, 0, 0, 0, 0, 0])
    assert [row["oracle"] for row in rows] == pytest.approx([1, 28 / 48, 1, 0, 0, 8 / 48, 0, 0])
    expected_counts = {"copied_capped": 2, "copied_oracle": 3, "too_short": 1, "documents": 8}
    assert {name: told.stats[name] for name in expected_counts} == expected_counts
    assert "training documents hold half or more of 3 of 8 (2 in the capped set)" in capsys.readouterr().err


def test_only_what_is_not_given_bears_loss_and_counts(tmp_path, made):
    """Guards a question that is scored with its answer, its bytes, and an end that nobody asked for."""
    found = records(12)
    chosen = replace(written(tmp_path / "given", found), given="{q}\n", text="{a[0]}")
    asked = made | rows_of(epath.Path(tmp_path / "asked"), chosen, made["tokenizer"], 16)
    whole = made | rows_of(epath.Path(tmp_path / "whole"), written(tmp_path / "plain", found), made["tokenizer"], 16)
    assert parquet.read(asked["documents"])["text"].to_pylist() == expected(found)
    stats = scored(tmp_path, asked, "given").stats
    answers = [record["a"][0] for record in found]
    assert stats["bytes"] == sum(map(len, answers)) and stats["documents"] == len(found)
    encoder = text_tokenizer.load(made["tokenizer"].file("tokenizer.json"), SETTINGS)
    ids = encoder.encode_batch(expected(found))
    sizes = [
        sum(len(encoder.decode(tokens[-n:])) <= len(answer) for n in range(1, len(tokens) + 1))
        for tokens, answer in zip(ids, answers, strict=True)
    ]
    assert stats["targets"] == sum(sizes) < scored(tmp_path, whole, "all").stats["targets"]
    masked = [row for row in RowSource(asked["rows"])]
    assert sum(int(row.mask.sum()) for row in masked) == sum(sizes)
    assert not any(np.any(row.tokens[1:][row.mask] == encoder.end_of_document) for row in masked)


def test_a_record_with_nothing_behind_what_is_given_is_skipped(tmp_path, made):
    found = [*records(3), {"q": "why?", "a": [" "]}]
    chosen = replace(written(tmp_path / "given", found), given="{q}", text="{a[0]}", max_skipped=0.5)
    read = texts.run(output(epath.Path(tmp_path), "read"), texts=chosen, execution=Execution())
    assert read.rows == 3 and read.stats["skipped_empty"] == 1
