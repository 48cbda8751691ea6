"""The synthesize stage, from made artifacts to shards, whole and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Execution, MeshShape, Model, Synthesis, Tokenizer
from sbp_jax.data.budget import training_tokens
from sbp_jax.errors import SbpError
from sbp_jax.model import huggingface
from sbp_jax.model.parameters import initialize
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.stages import synthesize
from sbp_jax.text.tokenizer import train

DECODER = Model(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48)
SETTINGS = Tokenizer(vocab_size=280)
SYNTHESIS = Synthesis(max_new_tokens=12, documents_per_shard=10, oversample=1.0)
EXECUTION = Execution(slots=8, decode_steps=4)
CONTEXT = 96


def _output(path: Path, stage: str) -> Output:
    return Output(epath.Path(path), Recipe(stage, 1, {}, {}), stage)


def _made(path: Path, stats: dict) -> Artifact:
    return _output(path, path.name).finish(stats)


def _inputs(folder: Path) -> dict[str, Artifact]:
    """Documents of which the even ones are capped; the one of ordinal 4 leaves no room in the context."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["tin", "oak", "salt", "river"], n)) for n in random.integers(3, 9, 24)]
    texts[4] = "a long text " * 40
    tokenizer_output, documents, splits, tokens, model = (
        _output(folder / name, name) for name in ("tokenizer", "documents", "splits", "tokens", "model")
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
    capped = _made(folder / "capped", {"targets": 120, "documents": 12})
    oracle = _made(folder / "oracle", {"targets": 640, "documents": 24})
    outputs = {
        "tokenizer": tokenizer_output,
        "documents": documents,
        "splits": splits,
        "tokens": tokens,
        "model": model,
    }
    return {name: output.finish() for name, output in outputs.items()} | {"capped": capped, "oracle": oracle}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return _inputs(tmp_path_factory.mktemp("inputs"))


def _run(folder: Path, inputs: dict[str, Artifact], **changes: object) -> Artifact:
    settings = {"settings": SETTINGS, "decoder": DECODER, "synthesis": SYNTHESIS, "context": CONTEXT, "share": 0.5}
    settings |= {"training_tokens": None, "execution": EXECUTION}
    output = _output(folder, "synthesize")
    return synthesize.run(output, **inputs, **settings | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Artifact]) -> Artifact:
    return _run(tmp_path_factory.mktemp("whole"), inputs)


def _shards(folder: epath.Path | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("part-*.parquet"))}


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
    assert whole.stats["finish_end"] + whole.stats["finish_length"] == 32
    assert whole.stats["new_tokens"] == sum(row["new_tokens"] for row in table)
    assert {row["synthesizer"] for row in table} == {inputs["model"].key}


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


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, whole: Artifact, inputs: dict[str, Artifact]) -> None:
    """SIGKILL after the first shard; finished shards are not touched again."""
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
    assert _run(tmp_path, inputs).stats == whole.stats
    assert _shards(tmp_path) == _shards(whole.path)
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())


def test_a_context_without_room_is_an_error(tmp_path: Path, inputs: dict[str, Artifact]) -> None:
    with pytest.raises(SbpError, match="leaves room for 32 new tokens in a context of 33; raise tuning.context"):
        _run(tmp_path, inputs, context=33)


def test_the_budget_is_the_setting_or_one_pass_over_the_oracle_set(inputs: dict[str, Artifact]) -> None:
    assert training_tokens(None, inputs["oracle"]) == 640
    assert training_tokens(7, inputs["oracle"]) == 7
