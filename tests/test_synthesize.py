"""The synthesize stage, from made artifacts to shards, whole and resumed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Execution, MeshShape, Model, Synthesis, Tokenizer
from sbp_jax.data.budget import training_tokens
from sbp_jax.errors import SbpError
from sbp_jax.generation import replicas
from sbp_jax.generation.journal import Journal
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import initialize
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.stages import synthesize
from sbp_jax.text.template import prompt
from sbp_jax.text.tokenizer import load, train

DECODER = Model(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48)
SETTINGS = Tokenizer(vocab_size=280)
SYNTHESIS = Synthesis(max_new_tokens=12, documents_per_shard=10, oversample=1.0)
ONE = MeshShape(1, 1, 1)  # copies of the model
EXECUTION = Execution(slots=8, decode_steps=4, mesh=ONE)
CONTEXT = 96
KILLS = 10


def _output(path: Path, stage: str) -> Output:
    return Output(epath.Path(path), Recipe(stage, 1, {}, {}), stage)


def _made(path: Path, stats: dict) -> Artifact:
    return _output(path, path.name).finish(stats)


def _inputs(folder: Path, last: str = "tin oak") -> dict[str, Artifact]:
    """Documents of which the even ones are capped; the one of ordinal 4 leaves no room in the context."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["tin", "oak", "salt", "river"], n)) for n in random.integers(3, 9, 24)]
    texts[4], texts[22] = "a long text " * 40, last
    names = {name: name for name in ("tokenizer", "documents", "splits", "tokens", "pairs")} | {"model": "tune"}
    tokenizer_output, documents, splits, tokens, pairs, model = (
        _output(folder / name, stage) for name, stage in names.items()
    )
    tokenizer = train(texts, SETTINGS)
    with tokenizer_output.writing("tokenizer.json") as writing:
        tokenizer.save(writing.path)
    table = pa.table({"ordinal": range(24), "id": [f"doc{i}" for i in range(24)], "text": texts})
    documents.shard(0, ".parquet", lambda writing: parquet.write(writing, table))
    names = pa.table({"ordinal": range(24), "split": ["capped" if i % 2 == 0 else "oracle" for i in range(24)]})
    splits.shard(0, ".parquet", lambda writing: parquet.write(writing, names))
    records = [ids.astype("<i4").tobytes() for ids in tokenizer.encode_batch(texts)]
    tokens.shard(0, ".array_record", lambda writing: arrayrecord.write(writing, records))
    parameters = jax.device_get(initialize(DECODER, tokenizer.vocab_size, 0, build_mesh(MeshShape())))
    parameters = jax.tree.map(lambda array: array * 6, parameters)
    entries, end = tokenizer.vocab_size, tokenizer.end_of_document
    for name in huggingface.save(model.path / "best", parameters, DECODER, entries, CONTEXT, end):
        with model.writing(f"best/{name}"):
            pass
    # Of the capped documents, each with the next two; the documents from 18 on are in no pair.
    accepted = [(i, i + step, 0.95 - step / 20) for i in range(0, 18, 2) for step in (2, 4)] + [(16, 23, 0.5)]
    columns = [*zip(*accepted, strict=True), ["accepted"] * (len(accepted) - 1) + ["near_duplicate"]]
    judged = pa.table(dict(zip(("d1", "d2", "similarity", "verdict"), columns, strict=True)))
    judged = judged.set_column(2, "similarity", judged["similarity"].cast(pa.float32()))
    pairs.shard(0, ".parquet", lambda writing: parquet.write(writing, judged))
    capped = _made(folder / "capped", {"targets": 120, "documents": 12})
    oracle = _made(folder / "oracle", {"targets": 640, "documents": 24})
    outputs = {
        "tokenizer": tokenizer_output,
        "documents": documents,
        "splits": splits,
        "tokens": tokens,
        "model": model,
        "pairs": pairs,
    }
    return {name: output.finish({"best_step": 7}) for name, output in outputs.items()} | {
        "capped": capped,
        "oracle": oracle,
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _inputs(tmp_path_factory.mktemp("inputs"))


def _run(folder: Path, inputs: dict[str, Artifact], **changes: object) -> Artifact:
    settings = {"settings": SETTINGS, "decoder": DECODER, "synthesis": SYNTHESIS, "context": CONTEXT, "share": 0.5}
    settings |= {"conditioning": 1}
    settings |= {"training_tokens": None, "execution": EXECUTION}
    output = _output(folder, "synthesize")
    return synthesize.run(output, **inputs, **settings | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Artifact]) -> Artifact:
    return _run(tmp_path_factory.mktemp("whole"), inputs)


def _shards(folder: epath.Path | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("part-*.parquet"))}


def _texts(folder: epath.Path | Path) -> list[tuple]:
    tables = [pq.read_table(path) for path in sorted(Path(folder).glob("part-*.parquet"))]
    return [(row["ordinal"], row["text"]) for table in tables for row in table.to_pylist()]


def test_number_of_documents_seeds_and_lineage(whole: Artifact, inputs: dict[str, Artifact]) -> None:
    """Guards the budget, a pass that repeats or forgets a seed, and lineage that points to another document."""
    table = parquet.read(whole).to_pylist()
    assert whole.stats["documents"] == len(table) == 32  # 0.5 of 640 targets, 10 targets a document
    assert [row["ordinal"] for row in table] == list(range(32))
    seeds = [i for i in range(0, 24, 2) if i != 4]
    assert whole.stats["seeds_too_long"] == 1
    for number in range(2):
        one_pass = table[number * 11 : (number + 1) * 11]
        assert sorted(row["seed"] for row in one_pass) == seeds
        assert {row["sample"] for row in one_pass} == {number}
    assert [row["seed"] for row in table[:11]] != [row["seed"] for row in table[11:22]]
    assert all(row["seed_id"] == f"doc{row['seed']}" for row in table)
    assert all(row["id"] == f"syn-{row['seed']}-{row['sample']}" for row in table)
    assert all(row["key"] == f"0:{row['seed']}:{row['sample']}" for row in table)
    assert all(1 <= row["new_tokens"] <= 12 for row in table)
    assert len({row["text"] for row in table}) > 25
    assert whole.stats["finish_end"] + whole.stats["finish_length"] + whole.stats["finish_loop"] == 32
    assert whole.stats["new_tokens"] == sum(row["new_tokens"] for row in table)
    assert {row["synthesizer"] for row in table} == {inputs["model"].key}
    assert {row["step"] for row in table} == {7}
    assert all(row["conditioning"] == [row["seed"]] for row in table)
    assert all(row["conditioning_ids"] == [row["seed_id"]] for row in table)
    for row in table:
        assert row["similarity"] == (pytest.approx(0.85) if row["seed"] < 18 else None)


def test_deleted_shards_come_back_to_the_byte(tmp_path: Path, whole: Artifact, inputs: dict[str, Artifact]) -> None:
    """Guards against text that depends on which requests were generated together."""
    _run(tmp_path, inputs)
    assert _shards(tmp_path) == _shards(whole.path)
    kept = (tmp_path / "part-00001.parquet").stat().st_mtime_ns
    for name in ("part-00000.parquet", "part-00002.parquet", "part-00003.parquet", "manifest.json"):
        (tmp_path / name).unlink()
    again = _run(tmp_path, inputs)
    assert _shards(tmp_path) == _shards(whole.path)
    assert again.stats == whole.stats
    assert (tmp_path / "part-00001.parquet").stat().st_mtime_ns == kept


def test_a_killed_run_resumes_to_the_same_bytes(
    tmp_path: Path, whole: Artifact, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL after the first shard; finished shards are not touched again, nor finished documents made again."""
    paths = {name: (str(artifact.path), artifact.key) for name, artifact in inputs.items()}
    program = "\n".join(
        (
            "import sys, time; from pathlib import Path; from etils import epath",
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
            "import test_synthesize as t; from sbp_jax.artifacts import find",
            "from sbp_jax.stages import synthesize",
            f"inputs = {{name: find(epath.Path(path), key) for name, (path, key) in {paths!r}.items()}}",
            "row = synthesize._row",
            "def slow(*arguments): time.sleep(0.1); return row(*arguments)",  # leaves time to be killed in
            "synthesize._row = slow",
            f"t._run(Path({str(tmp_path)!r}), inputs)",
        )
    )
    root = Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(root)})
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".done/*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "manifest.json").exists()
    markers = (tmp_path / ".done").glob("*.json")
    finished = {tmp_path / marker.stem: (tmp_path / marker.stem).stat().st_mtime_ns for marker in markers}
    assert 1 <= len(finished) < 4
    # A shard may have been finished whose journal still stood.
    journals = epath.Path(tmp_path / "journal").glob("*.jsonl")
    kept = sum(len(Journal(path).rows) for path in journals if tmp_path / f"{path.stem}.parquet" not in finished)
    asked: list[int] = []

    def counting(engines, work):  # type: ignore[no-untyped-def]
        for completion in whole_generate(engines, work):
            asked.append(completion.request.number)
            yield completion

    whole_generate = replicas.generate
    monkeypatch.setattr(replicas, "generate", counting)
    assert _run(tmp_path, inputs).stats == whole.stats
    left = 32 - sum(pq.read_metadata(path).num_rows for path in finished)
    assert len(asked) == len(set(asked)) == left - kept
    assert _shards(tmp_path) == _shards(whole.path)
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_and_nothing_done_twice(
    tmp_path: Path, whole: Artifact, inputs: dict[str, Artifact]
) -> None:
    """SIGKILL at random moments, in the middle of writing too, until a run gets through."""
    paths = {name: (str(artifact.path), artifact.key) for name, artifact in inputs.items()}
    program = "\n".join(
        (
            "import os, random, signal, sys; from pathlib import Path; from etils import epath",
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
            "import test_synthesize as t; from sbp_jax.artifacts import find; from sbp_jax.generation import journal",
            f"inputs = {{name: find(epath.Path(path), key) for name, (path, key) in {paths!r}.items()}}",
            "chance, add = random.Random(int(sys.argv[1])), journal.Journal.add",
            "def perilous(self, row):",
            "    if chance.random() < 0.2:",
            "        if chance.random() < 0.5: self._file.write(b'0123456789abcdef {\"ordinal\": ')",
            "        elif chance.random() < 0.5: add(self, row)",
            "        os.kill(os.getpid(), signal.SIGKILL)",
            "    add(self, row)",
            "journal.Journal.add = perilous",
            f"t._run(Path({str(tmp_path)!r}), inputs)",
        )
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    kills, before = 0, 0
    for turn in range(KILLS):
        status = subprocess.run([sys.executable, "-c", program, str(turn)], env=environment, check=False).returncode
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            break
        kills += 1
        done = sum(pq.read_metadata(path).num_rows for path in tmp_path.glob("part-*.parquet"))
        done += sum(len(Journal(path).rows) for path in epath.Path(tmp_path / "journal").glob("*.jsonl"))
        assert done >= before
        before = done
    assert kills > 2
    assert _run(tmp_path, inputs).stats == whole.stats
    assert _shards(tmp_path) == _shards(whole.path)


def test_a_journal_forgets_what_was_cut_off_and_goes_on_behind_what_was_whole(tmp_path: Path) -> None:
    """Guards against a half-written line that is read, or that swallows the next one."""
    path = epath.Path(tmp_path) / "journal" / "part-00000.jsonl"
    rows = [{"ordinal": number, "text": "one\ntwo \u2028 \ud800"} for number in range(4)]
    first = Journal(path)
    for row in rows[:3]:
        first.add(row)
    first.close()
    content = Path(path).read_bytes()
    for cut in (1, 10, len(content.splitlines(True)[-1])):
        Path(path).write_bytes(content[:-cut])
        again = Journal(path)
        assert list(again.rows.values()) == rows[:2]
        again.add(rows[3])
        again.close()
        assert list(Journal(path).rows) == [0, 1, 3]
    Path(path).write_bytes(content.replace(b'"ordinal":1', b'"ordinal":7'))
    assert list(Journal(path).rows) == [0]


def test_copies_of_the_model_side_by_side_write_what_one_does(
    tmp_path: Path, whole: Artifact, inputs: dict[str, Artifact]
) -> None:
    """Guards against requests that are lost or done twice between threads, and keys that know of devices."""
    copies = Execution(slots=8, decode_steps=4, mesh=MeshShape(-1, 1, 2))
    rows, expected = (parquet.read(made).to_pylist() for made in (_run(tmp_path, inputs, execution=copies), whole))
    same = [row["text"] == other["text"] for row, other in zip(rows, expected, strict=True)]
    assert np.mean(same) > 0.9  # the tensor axis rounds otherwise
    assert [row["key"] for row in rows] == [row["key"] for row in expected]


def test_two_copies_on_one_cpu_divide_the_slots_and_write_what_one_does(
    tmp_path: Path, whole: Artifact, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the layout of a machine with a single CPU device, which the eight of the tests would hide."""
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(replicas.os, "cpu_count", lambda: 2)
    assert len(replicas.meshes(MeshShape())) == 2
    _run(tmp_path, inputs, execution=replace(EXECUTION, slots=2 * EXECUTION.slots))
    assert _shards(tmp_path) == _shards(whole.path)


def test_an_error_of_one_copy_stops_all(inputs: dict[str, Artifact]) -> None:
    class Endless:
        def generate(self, requests):  # type: ignore[no-untyped-def]
            while True:
                time.sleep(0.01)
                yield 1

    class Broken:
        def generate(self, requests):  # type: ignore[no-untyped-def]
            raise SbpError("broken")

    with pytest.raises(SbpError, match="broken"):
        list(replicas.generate([Endless(), Broken()], [[], []]))


def test_without_memory_there_are_fewer_slots_and_the_run_says_so(
    tmp_path: Path,
    whole: Artifact,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    """Guards against documents that are lost or written twice when memory runs out, at the start or half-way."""
    build = synthesize.start

    def exhaust() -> None:
        jax.block_until_ready(jax.numpy.zeros(1 << 50, np.int8))

    class RunsOut:
        def __init__(self, engine: replicas.Generator):
            self.engine = engine

        def generate(self, requests):  # type: ignore[no-untyped-def]
            for count, completion in enumerate(self.engine.generate(requests)):
                if count == 12:
                    exhaust()
                yield completion

    def tight(*arguments: object) -> list:
        slots = arguments[-1]
        if slots == 32:
            exhaust()
        engines = build(*arguments)  # type: ignore[arg-type]
        return [RunsOut(engine) for engine in engines] if slots == 16 else engines  # type: ignore[misc]

    monkeypatch.setattr(synthesize, "start", tight)
    _run(tmp_path, inputs, execution=replace(EXECUTION, slots=32))
    said = capfd.readouterr().err
    assert "synthesize: not memory enough for 32 slots: going on with 16" in said
    assert "not memory enough for 16 slots: going on with 8; set execution.slots=8" in said
    assert _texts(tmp_path) == _texts(whole.path)


def test_without_memory_for_one_slot_there_is_an_error() -> None:
    def build(slots: int) -> list:
        return [jax.block_until_ready(jax.numpy.zeros(1 << 50, np.int8))]

    with pytest.raises(SbpError, match="not memory enough for a single slot; cut the model over more devices"):
        replicas.backing_off(2, build, lambda engines: None, lambda line: None)


def test_a_model_that_was_not_tuned_or_reads_other_tokens_is_an_error(
    tmp_path: Path, inputs: dict[str, Artifact]
) -> None:
    model = inputs["model"]
    trained = replace(model, recipe=model.recipe | {"stage": "train"})
    with pytest.raises(SbpError, match="was trained by train, not tuned on pairs"):
        _run(tmp_path, inputs | {"model": trained})
    other = tmp_path / "other"
    shutil.copytree(model.path, other)
    (other / "best" / "tokenizer.json").write_text("{}")
    with pytest.raises(SbpError, match="is not the tokenizer of this run"):
        _run(tmp_path / "out", inputs | {"model": replace(model, path=epath.Path(other), _verified=set())})


def test_control_tokens_that_a_document_spells_are_read_as_text(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    """Guards the template: a document that quotes the separator must not end where it does so."""
    tokenizer = load(inputs["tokenizer"].file("tokenizer.json"), SETTINGS)
    spelled = tokenizer.encode_batch([f"a {SETTINGS.separator} b {SETTINGS.end_of_document} c"])[0]
    read = prompt([spelled], tokenizer.end_of_document, tokenizer.separator)
    assert np.count_nonzero(read == tokenizer.separator) == np.count_nonzero(read == tokenizer.end_of_document) == 1


def test_a_seed_without_tokens_is_left_out_and_counted(tmp_path: Path) -> None:
    made = _run(tmp_path / "made", _inputs(tmp_path, last=""))
    assert (made.stats["seeds"], made.stats["seeds_empty"], made.stats["seeds_too_long"]) == (10, 1, 1)
    assert 22 not in parquet.read(made, ["seed"])["seed"].to_pylist()


def test_temperature_0_gives_every_sample_of_a_seed_the_same_text(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    greedy = replace(SYNTHESIS, temperature=0.0, samples=2)
    rows = parquet.read(_run(tmp_path, inputs, synthesis=greedy)).to_pylist()
    assert {row["temperature"] for row in rows} == {0.0}
    assert all(
        one["text"] == two["text"] and one["key"] != two["key"] for one, two in zip(rows[::2], rows[1::2], strict=True)
    )


def test_a_context_without_room_is_an_error(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    with pytest.raises(SbpError, match="leaves room for 32 new tokens in a context of 33; raise tuning.context"):
        _run(tmp_path, inputs, context=33)


def test_the_budget_is_the_setting_or_one_pass_over_the_oracle_set(inputs: dict[str, Artifact]) -> None:
    assert training_tokens(None, inputs["oracle"]) == 640
    assert training_tokens(7, inputs["oracle"]) == 7
