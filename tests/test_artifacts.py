"""Artifacts: nothing half-written is read, nothing finished is lost."""

import json
import os

import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Output, Recipe, arrayrecord, find, parquet
from sbp_jax.artifacts.artifact import Writing
from sbp_jax.artifacts.fingerprint import fingerprint
from sbp_jax.errors import SbpError

RECIPE = Recipe("stage", 1, {"a": 1}, {})


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path / "artifact")


def table(first: int) -> pa.Table:
    return pa.table({"ordinal": range(first, first + 10)})


def write_shards(folder, count: int = 3) -> Output:
    output = Output(folder, RECIPE, "stage")
    for index in range(count):
        output.shard(index, ".parquet", lambda writing, index=index: parquet.write(writing, table(index * 10)))
    return output


def test_an_artifact_without_a_manifest_is_not_complete(folder):
    output = write_shards(folder)
    assert find(folder, RECIPE.key) is None
    output.finish()
    assert parquet.read(find(folder, RECIPE.key))["ordinal"].to_pylist() == list(range(30))


def test_a_manifest_cut_off_in_the_middle_is_no_manifest(folder):
    write_shards(folder).finish()
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    assert find(folder, RECIPE.key) is None


def test_a_killed_stage_does_again_only_what_was_not_finished(folder):
    write_shards(folder, count=2)
    (folder / "part-00002.parquet").write_bytes(b"half a shard")  # was being written: no marker
    marker = folder / ".done" / "part-00001.parquet.json"
    marker.write_text(marker.read_text()[:10])  # the marker itself was being written
    written = []
    output = Output(folder, RECIPE, "stage")
    for index in range(3):

        def write(writing: Writing, index: int = index) -> None:
            written.append(index)
            parquet.write(writing, table(index * 10))

        output.shard(index, ".parquet", write)
    artifact = output.finish()
    assert written == [1, 2]
    assert parquet.read(artifact)["ordinal"].to_pylist() == list(range(30))


def test_a_corrupted_shard_is_an_error_that_names_it_and_alone_is_rebuilt(folder):
    artifact = write_shards(folder).finish()
    shard = folder / "part-00001.parquet"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(bytes(damaged))
    with pytest.raises(SbpError, match="part-00001.parquet is corrupted"):
        parquet.read(find(folder, RECIPE.key))
    shard.unlink()
    assert find(folder, RECIPE.key) is None, "an artifact with a missing file is partial"
    before = {path.name: path.stat().mtime for path in folder.glob("part-*")}
    rebuilt = write_shards(folder).finish()
    after = {path.name: path.stat().mtime for path in folder.glob("part-*") if path.name in before}
    assert before == after and rebuilt.files == artifact.files


def test_a_full_disk_leaves_no_finished_shard(folder):
    output = write_shards(folder, count=1)
    os.symlink("/dev/full", folder / "part-00001.parquet")
    with pytest.raises(OSError, match="No space left"):
        output.shard(1, ".parquet", lambda writing: parquet.write(writing, table(10)))
    os.unlink(folder / "part-00001.parquet")
    again = Output(folder, RECIPE, "stage")
    assert again.has("part-00000.parquet") and not again.has("part-00001.parquet")


def test_counts_of_shards_are_summed_and_array_records_keep_their_order(folder):
    output = Output(folder, RECIPE, "stage")
    for index in range(2):

        def write(writing: Writing, index: int = index) -> None:
            arrayrecord.write(writing, [bytes([index, record]) for record in range(5)])
            writing.stats["seen"] = 5 + index

        output.shard(index, ".array_record", write)
    artifact = output.finish({"other": 1})
    assert artifact.stats == {"seen": 11, "other": 1} and artifact.rows == 10
    source = arrayrecord.source(artifact)
    assert [source[index] for index in range(10)] == [bytes([i // 5, i % 5]) for i in range(10)]


def test_the_key_follows_stage_version_config_and_inputs():
    others = [
        Recipe("other", 1, {"a": 1}, {}),
        Recipe("stage", 2, {"a": 1}, {}),
        Recipe("stage", 1, {"a": 2}, {}),
        Recipe("stage", 1, {"a": 1}, {"tokens": "0123"}),
    ]
    assert len({RECIPE.key, *(other.key for other in others)}) == 5
    assert RECIPE.key == Recipe("stage", 1, json.loads('{"a": 1}'), {}).key


def test_a_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    memory = epath.Path(tmp_path / "memory.json")
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "documents.jsonl").write_text("one")
    files = [epath.Path(tmp_path / place / "documents.jsonl") for place in ("a", "b")]
    first, second = (fingerprint([file], memory) for file in files)
    assert first == second
    files[0].write_text("two")
    assert fingerprint([files[0]], memory) != first, "as many bytes, within the same second"
    with pytest.raises(SbpError, match="c.jsonl is missing"):
        fingerprint([epath.Path(tmp_path / "c.jsonl")], memory)


def test_files_that_processes_make_apart_are_all_in_the_manifest(tmp_path):
    """Two processes, the second of which starts again after a kill; neither makes a file twice."""
    path, recipe = epath.Path(tmp_path / "apart"), Recipe("embed", 1, {}, {})
    names = [f"part-{index:05d}.txt" for index in range(5)]

    def work(process: int, most: int = 5) -> tuple[Output, list[str]]:
        output = Output(path, recipe, "apart", writes=process == 0)
        missing = output.apart(names, process, 2)
        for name in missing[:most]:
            with output.writing(name) as writing:
                writing.path.write_text(f"{name} of {process}")
                writing.rows = 1
        return output, missing

    first, made = work(0)
    assert made == names[::2]
    assert work(1, most=1)[1] == names[1::2]
    second, rest = work(1)
    assert rest == names[3:4], "what it had finished before it was killed is kept"
    artifact = first.finish()
    assert second.finish().rows == artifact.rows == 5
    assert [artifact.file(name).read_text() for name in names] == [f"{n} of {i % 2}" for i, n in enumerate(names)]
