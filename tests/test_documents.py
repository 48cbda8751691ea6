"""Reading documents and the ingest stage: every record is kept or accounted for."""

import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Corpus, Execution
from sbp_jax.errors import SbpError
from sbp_jax.stages import ingest
from sbp_jax.text import documents
from sbp_jax.text.documents import Document, Skipped, content_id, read, source_files

RECORDS = [{"id": f"d{i}", "text": f"Text number {i}, naïve\nsecond line \u2028 end"} for i in range(500)]
JSONL = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def run(folder: Path, corpus: Corpus) -> Artifact:
    return ingest.run(
        Output(epath.Path(folder), Recipe("ingest", 1, {}, {}), "ingest"), corpus=corpus, execution=Execution()
    )


def all_of(path: Path, corpus: Corpus | None = None) -> list[Document | Skipped]:
    corpus = corpus or Corpus(paths=(str(path),))
    return [record for file in source_files([str(path)]) for record in read(file, corpus)]


def zstd_frames(content: bytes, size: int) -> bytes:
    return b"".join(zstandard.compress(content[i : i + size]) for i in range(0, len(content), size))


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSON", "a.ndjson.gz", "a.jsonl.zst", "a.parquet"])
def test_every_format_gives_the_same_documents(tmp_path, name):
    """Multi-frame .zst and multi-member .gz are what parallel compressors write; a reader may stop at the first."""
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(b"".join(gzip.compress(JSONL[i : i + 777]) for i in range(0, len(JSONL), 777)))
    elif name.endswith(".zst"):
        path.write_bytes(zstd_frames(JSONL, 777))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=64)
    else:
        path.write_bytes(b"\xef\xbb\xbf" + JSONL[:-1].replace(b"\n", b"\n\n", 1))  # BOM, a blank line, no last newline
    found = all_of(path)
    assert [(document.id, document.text) for document in found] == [(r["id"], r["text"]) for r in RECORDS]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_archive_is_an_error_that_names_it(tmp_path, suffix, keep):
    """zstandard reads a cut-off file to its cut and reports success."""
    content = gzip.compress(JSONL) if suffix == ".gz" else zstandard.compress(JSONL)
    path = tmp_path / f"cut.jsonl{suffix}"
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(SbpError, match="cut.jsonl"):
        all_of(path)


@pytest.mark.parametrize("name", ["junk.jsonl.gz", "junk.jsonl.zst", "junk.parquet"])
def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is no archive\n" * 9)
    with pytest.raises(SbpError, match=name):
        all_of(tmp_path / name)


BAD_LINES = [
    (b"{not json", "not_json"),
    (b"[" * 100_000, "not_json"),
    (b"9" * 5000, "not_json"),
    (b"[1]", "not_an_object"),
    (b'{"id": "x", "body": "t"}', "no_text_field"),
    (b'{"text": 5}', "text_not_a_string"),
    (b'{"text": null}', "text_not_a_string"),
    (b'{"text": " \\n\\t"}', "empty"),
    (b'{"text": "caf\xe9"}', "invalid_utf8"),
    (b'{"text": "half \\ud83d"}', "invalid_utf8"),
    (b'{"id": "\\udc00", "text": "t"}', "invalid_utf8"),
]


@pytest.mark.parametrize("line, reason", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_skipped_with_its_place_and_reason(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "also good"}\n')
    first, bad, last = all_of(path)
    assert isinstance(first, Document) and isinstance(last, Document)
    assert isinstance(bad, Skipped) and (bad.file, bad.line, bad.reason) == (str(path), 3, reason)
    json.dumps(vars(bad), ensure_ascii=False).encode()


def test_ids_are_text_and_missing_ones_are_hashes_of_the_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 7, "text": "a"}\n{"id": null, "text": "b"}\n{"text": "c"}\n{"id": "", "text": "d"}\n')
    assert [document.id for document in all_of(path)] == ["7", *map(content_id, "bcd")]
    assert [document.id for document in all_of(path, Corpus(id_field=None))] == [*map(content_id, "abcd")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_source_is_what_the_record_says_or_its_file(tmp_path, name):
    """Without it, mirrors of one site count as independent documents."""
    rows = [{"text": "a", "source": "site", "from": 7}, {"text": "b", "source": None}, {"text": "c", "source": ""}]
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def sources(**fields: str | None) -> list[str]:
        return [document.source for document in all_of(path, Corpus(**fields))]

    assert sources() == ["site", name, name]
    assert sources(source_field="from") == ["7", name, name]
    assert sources(source_field="absent") == sources(source_field=None) == [name] * 3
    assert sources(source_pattern="^..") == ["si", name, name]
    assert sources(source_pattern="nowhere") == sources()
    artifact = run(tmp_path / "out", Corpus(paths=(str(path),)))
    assert parquet.read(artifact)["source"].to_pylist() == ["site", name, name]


def test_parquet_rows_are_checked_like_lines(tmp_path):
    """Arrow hands out strings that are no UTF-8, and a missing column as a traceback."""
    path = tmp_path / "a.parquet"
    broken = pa.array([b"good", b"caf\xe9", None, b" "]).view(pa.string())
    pq.write_table(pa.table({"body": broken, "n": [1, 2, 3, 4]}), path)
    with pytest.raises(SbpError, match="'text'.*'body', 'n'"):
        all_of(path)
    good, *bad = all_of(path, Corpus(text_field="body", id_field="n"))
    assert good == Document("1", "good", 1, "a.parquet")
    assert [(record.line, record.reason) for record in bad] == [
        (2, "invalid_utf8"),
        (3, "text_not_a_string"),
        (4, "empty"),
    ]


def test_text_files_are_named_by_their_path_below_what_the_paths_share(tmp_path):
    """Two folders with a file of one name each must not give one id twice."""
    for name in ("a/x.txt", "b/x.txt", "b/deep/y.md", ".git/z.txt", "b/.hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(f"text of {name}")

    def ids(*paths: str) -> list[str]:
        corpus = Corpus(paths=tuple(str(tmp_path / path) for path in paths))
        return [document.id for file in source_files(corpus.paths) for document in read(file, corpus)]

    assert ids(".") == ["a/x.txt", "b/deep/y.md", "b/x.txt"]
    assert ids("b") == ["deep/y.md", "x.txt"]
    assert ids("b", "a") == ["b/deep/y.md", "b/x.txt", "a/x.txt"]
    assert ids("a/x.txt", "b/x.txt") == ["a/x.txt", "b/x.txt"]
    assert ids("*/x.txt") == ["a/x.txt", "b/x.txt"]
    assert ids("b", "b/x.txt") == ["deep/y.md", "x.txt"]


def test_a_readme_beside_data_files_is_no_document(tmp_path):
    (tmp_path / "README.md").write_text("about this data")
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    assert [file.name for file in source_files([str(tmp_path)])] == ["a.jsonl"]
    assert [file.name for file in source_files([str(tmp_path / "*")])] == ["a.jsonl"]


def test_paths_that_give_nothing_are_errors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("x")
    for paths in ([], ["missing.jsonl"], ["*.jsonl"], ["empty"], ["a.csv"]):
        with pytest.raises(SbpError, match=paths[0].replace("*", r"\*") if paths else "corpus.paths"):
            source_files([str(tmp_path / path) for path in paths])


def test_ingestion_numbers_documents_densely_over_shards_and_accounts_for_the_rest(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL + b'nonsense\n{"id": "d3", "text": "other"}\n' + b'{"text": "t"}\n' * 3)
    corpus = Corpus(paths=(str(tmp_path / "*.jsonl"),), documents_per_shard=64)
    artifact = run(tmp_path / "out", corpus)
    table = parquet.read(artifact)
    assert table["ordinal"].to_pylist() == list(range(501))
    assert table["text"].to_pylist() == [record["text"] for record in RECORDS] + ["t"]
    assert len(artifact.shards(".parquet")) == 8
    skipped = [json.loads(line) for line in artifact.file("skipped.jsonl").read_text().splitlines()]
    assert [(record["line"], record["reason"]) for record in skipped] == [
        (501, "not_json"),
        (502, "duplicate_id"),
        (504, "duplicate_text"),
        (505, "duplicate_text"),
    ]
    text_bytes = sum(len(text.encode()) for text in table["text"].to_pylist())
    assert artifact.stats == {
        "documents": 501,
        "bytes": text_bytes,
        "skipped": 4,
        "skipped_not_json": 1,
        "skipped_duplicate_id": 1,
        "skipped_duplicate_text": 2,
    }


def test_too_many_bad_records_stop_ingestion_with_the_first_place_and_the_remedy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(JSONL.replace(b'"text"', b'"body"', 20))
    with pytest.raises(SbpError, match=r"20 of 500 .*a.jsonl, line 1: no_text_field.*'id', 'body'.*corpus.text_field"):
        run(tmp_path / "out", Corpus(paths=(str(path),)))
    assert run(tmp_path / "out", Corpus(paths=(str(path),), max_skipped=0.04)).rows == 480


def test_repeated_texts_without_ids_are_no_bad_records(tmp_path):
    """Web text has more exact copies than the limit for bad records allows; they are left out and recorded."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n' * 5)
    artifact = run(tmp_path / "out", Corpus(paths=(str(tmp_path / "a.jsonl"),)))
    assert (artifact.rows, artifact.stats["skipped_duplicate_text"]) == (2, 8)


def test_ingestion_gives_up_early_when_not_one_record_is_a_document(tmp_path, monkeypatch):
    """With a wrong text field, reading a whole large corpus to say so wastes hours."""
    monkeypatch.setattr(ingest, "PROBE", 50)
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    with pytest.raises(SbpError, match="50 of 50 .*set corpus.text_field"):
        run(tmp_path / "out", Corpus(paths=(str(tmp_path / "a.jsonl"),), text_field="content"))


def test_no_documents_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(SbpError, match="no documents"):
        run(tmp_path / "out", Corpus(paths=(str(tmp_path / "a.jsonl"),)))


def test_a_sample_is_a_part_of_the_documents_whatever_their_order(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(JSONL.split(b"\n")[::-1]))
    kept = [
        set(
            parquet.read(run(tmp_path / f"out_{name}", Corpus(paths=(str(tmp_path / name),), sample=0.3)))[
                "id"
            ].to_pylist()
        )
        for name in ("a.jsonl", "b.jsonl")
    ]
    assert kept[0] == kept[1] and 100 < len(kept[0]) < 200


class Killed(Exception):
    """Stands for the death of the process."""


def test_a_killed_ingestion_resumes_to_the_same_bytes_and_keeps_finished_shards(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(JSONL)
    corpus = Corpus(paths=(str(tmp_path / "a.jsonl"),), documents_per_shard=100)
    whole = run(tmp_path / "whole", corpus)
    original = parquet.write

    def die_at_third(writing, table):
        if "00002" in writing.path.name:
            raise Killed
        original(writing, table)

    monkeypatch.setattr(parquet, "write", die_at_third)
    with pytest.raises(Killed):
        run(tmp_path / "resumed", corpus)
    monkeypatch.setattr(parquet, "write", original)
    before = (tmp_path / "resumed" / "part-00001.parquet").stat().st_mtime_ns
    resumed = run(tmp_path / "resumed", corpus)
    assert (tmp_path / "resumed" / "part-00001.parquet").stat().st_mtime_ns == before
    assert (resumed.files, resumed.stats) == (whole.files, whole.stats)


def test_a_corpus_repaired_between_two_runs_leaves_no_stale_shard(tmp_path):
    """Shards of the first, refused run are finished files; keeping them would mix two corpora."""
    path = tmp_path / "a.jsonl"
    corpus = Corpus(paths=(str(path),), documents_per_shard=100)
    path.write_bytes(JSONL.replace(b'"text"', b'"body"', 50))
    with pytest.raises(SbpError):
        run(tmp_path / "out", corpus)
    path.write_bytes(JSONL)
    assert parquet.read(run(tmp_path / "out", corpus))["id"].to_pylist() == [record["id"] for record in RECORDS]
    path.write_bytes(JSONL[: len(JSONL) // 2])
    with pytest.raises(SbpError, match="smaller"):
        run(tmp_path / "out", Corpus(paths=(str(path),), documents_per_shard=100, max_skipped=1.0))


def test_a_split_is_read_from_its_field_and_an_unknown_one_is_a_counted_skip(tmp_path):
    names = ["capped", None, "test", "train"]
    records = [{"id": f"{n}", "text": f"text {n}", "part": name} for n, name in enumerate(names)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    corpus = Corpus(paths=(str(tmp_path / "a.jsonl"),), split_field="part", max_skipped=0.5)
    table = parquet.read(artifact := run(tmp_path / "out", corpus))
    assert table["split"].to_pylist() == ["capped", None, "test"] and artifact.stats["skipped_unknown_split"] == 1
    with pytest.raises(SbpError, match="'train'; a split is validation, test, capped, oracle, unused"):
        run(tmp_path / "strict", replace(corpus, max_skipped=0.0))


def test_what_datasets_saves_is_read_and_its_own_json_is_not(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"id": f"row {n}", "text": f"text {n}", "metadata": {"url": f"site {n % 2}"}} for n in range(2500)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    corpus = Corpus(paths=(str(tmp_path / "saved"),), source_field="metadata.url")
    found = parquet.read(run(tmp_path / "out", corpus)).to_pylist()
    assert [(row["id"], row["text"], row["source"]) for row in found] == [
        (row["id"], row["text"], row["metadata"]["url"]) for row in rows
    ]


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_both_formats_of_arrow_are_read_and_damage_is_told(tmp_path, writer):
    table = pa.table({"id": [str(n) for n in range(5000)], "text": [f"text {n}" for n in range(5000)]})
    path = tmp_path / "a.arrow"
    with path.open("wb") as stream, writer(stream, table.schema) as written:
        written.write_table(table, max_chunksize=2000)
    assert parquet.read(run(tmp_path / "out", Corpus(paths=(str(path),))))["text"].to_pylist() == [
        f"text {n}" for n in range(5000)
    ]
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(SbpError, match="cannot be read to its end"):
        run(tmp_path / "damaged", Corpus(paths=(str(path),)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_field_inside_another_is_named_with_a_dot(tmp_path, kind):
    """As datatrove writes: the text and the id at the top, the rest under metadata."""
    rows = [
        {"text": "one", "id": "a", "metadata": {"url": "site", "n": 1}},
        {"text": "two", "id": "b", "metadata": None},
    ]
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = Corpus(paths=(str(tmp_path / f"a.{kind}"),), source_field="metadata.url", max_skipped=1.0)
    assert parquet.read(run(tmp_path / "out", corpus))["source"].to_pylist() == ["site", f"a.{kind}"]
    (found,) = run(tmp_path / "inside", replace(corpus, text_field="metadata.url")).files[0:1]
    assert found.rows == 1, "a text may be inside as well"


def test_long_documents_are_cut_between_paragraphs_and_lose_no_word(tmp_path):
    paragraphs = [f"Paragraph {n}. " + "word " * (4 + 7 * n % 8) for n in range(90)]
    texts = ["\n\n".join(paragraphs), "short", "x" * 1000]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts))
    )
    corpus = Corpus(paths=(str(tmp_path / "a.jsonl"),), max_characters=300)
    rows = parquet.read(run(tmp_path / "out", corpus)).to_pylist()
    assert all(len(row["text"]) <= 300 for row in rows)
    for number, text in enumerate(texts):
        own = [row for row in rows if row["id"].split("#")[0] == str(number)]
        assert "".join("".join(row["text"] for row in own).split()) == "".join(text.split())
        assert [row["id"] for row in own] == (
            [str(number)] if len(own) == 1 else [f"{number}#{n}" for n in range(len(own))]
        )
    assert all(row["text"].startswith("Paragraph") for row in rows if row["id"].startswith("0#"))


def test_a_tensorflow_dataset_is_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    import sys

    class Texts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path, url_infos = tmp_path, {}  # it has no source code to look beside

        def _info(self):
            text = tfds.features.Text()
            features = tfds.features.FeaturesDict({"text": text, "id": text, "meta": {"url": text}})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(2500), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for n in range(count):
                yield str(n), {"text": f"text {n} ü", "id": f"{n} of {count}", "meta": {"url": f"site {n % 2}"}}

    builder = Texts(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    train = f"{builder.data_dir}/*-train.array_record*"
    found = parquet.read(run(tmp_path / "out", Corpus(paths=(train,), source_field="meta.url"))).to_pylist()
    assert {(row["id"], row["text"], row["source"]) for row in found} == {
        (f"{n} of 2500", f"text {n} ü", f"site {n % 2}") for n in range(2500)
    }
    assert run(tmp_path / "all", Corpus(paths=(str(builder.data_dir),))).rows == 2503, "a folder is all of its splits"
    assert "tensorflow" not in sys.modules


def test_array_records_without_features_are_json_and_damage_is_told(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for record in (*RECORDS, "no object"):
        writer.write(json.dumps(record).encode())
    writer.close()
    (tmp_path / "dataset_info.json").write_text("[1]")
    artifact = run(tmp_path / "out", Corpus(paths=(str(tmp_path),), max_skipped=1.0))
    assert parquet.read(artifact)["id"].to_pylist() == [record["id"] for record in RECORDS]
    assert artifact.stats["skipped_not_an_object"] == 1
    (tmp_path / "a.array_record").write_bytes(b"x" * 100_000)
    with pytest.raises(SbpError, match="cannot be read to its end"):
        run(tmp_path / "damaged", Corpus(paths=(str(tmp_path),)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("last", [False, True])
def test_a_line_without_end_is_skipped_and_never_held(tmp_path, monkeypatch, name, last):
    """A bomb: a small file that decompresses to one line, longer than memory if it were written for that."""
    monkeypatch.setattr(documents, "LONGEST", 1 << 16)
    lines = [json.dumps(record).encode() for record in RECORDS]
    bomb = b'{"text": "' + b"a" * (1 << 24) + b'"}'
    content = b"\n".join([*lines, bomb] if last else [lines[0], bomb, *lines[1:]])
    packed = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rpartition(".")[2], bytes)(content)
    (tmp_path / name).write_bytes(packed)
    tracemalloc.start()
    found = list(read(epath.Path(tmp_path / name), Corpus()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [entry.id for entry in found if isinstance(entry, Document)] == [record["id"] for record in RECORDS]
    (skipped,) = (entry for entry in found if isinstance(entry, Skipped))
    assert (skipped.reason, skipped.line) == ("too_long", len(RECORDS) + 1 if last else 2)
    assert peak < (1 << 22) or name.endswith(".zst"), "zstd gives what a block holds in one piece"


def test_a_folder_of_several_kinds_is_read_whole_without_what_is_written_beside_tables(tmp_path):
    (tmp_path / "a").mkdir()
    table = pa.table({"id": ["arrow"], "text": ["one"]})
    with (tmp_path / "a" / "x.arrow").open("wb") as stream, pa.ipc.new_stream(stream, table.schema) as written:
        written.write_table(table)
    (tmp_path / "a" / "dataset_info.json").write_text("{}")
    (tmp_path / "y.jsonl").write_text('{"id": "lines", "text": "two"}\n')
    pq.write_table(pa.table({"id": ["parquet"], "text": ["three"]}), tmp_path / "z.parquet")
    found = parquet.read(run(tmp_path / "out", Corpus(paths=(str(tmp_path),))))
    assert found["id"].to_pylist() == ["arrow", "lines", "parquet"]
