"""The user's own vectors: each goes to the document with its id, and what cannot be right is said with examples."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sbp_jax.artifacts import parquet
from sbp_jax.config import Embedding
from sbp_jax.embedding import own_vectors
from sbp_jax.errors import SbpError
from sbp_jax.stages import embed
from tests.test_embed import CAPPED, SPLITS, embedded, unit, vectors_of

DOCUMENTS, WIDTH = len(SPLITS), 6
VECTORS = np.random.default_rng(0).normal(0, 3, (DOCUMENTS, WIDTH)).astype(np.float32)
EXPECTED = np.stack([unit(VECTORS[ordinal]) for ordinal in CAPPED])
KINDS = {
    "list<float>": pa.list_(pa.float32()),
    "large_list<double>": pa.large_list(pa.float64()),
    "fixed_size_list<float>": pa.list_(pa.float32(), WIDTH),
    "list<halffloat>": pa.list_(pa.float16()),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Several shards, passes, batches and row groups, as a large corpus has them."""
    monkeypatch.setattr(embed, "DOCUMENTS_PER_SHARD", 4)
    monkeypatch.setattr(embed, "WINDOW", 2)
    monkeypatch.setattr(own_vectors, "SOUGHT", 5)
    monkeypatch.setattr(own_vectors, "READ", 3 * WIDTH)


def write(path, order, vectors=VECTORS, kind=KINDS["list<float>"], ids=None):
    """A Parquet file with the documents in an order, four to a row group."""
    ids = [f"id{ordinal}" for ordinal in order] if ids is None else ids
    values = [None if vectors[ordinal] is None else list(vectors[ordinal]) for ordinal in order]
    if kind == KINDS["list<halffloat>"]:
        values = [[np.float16(number) for number in row] for row in values]
    pq.write_table(pa.table({"id": ids, "embedding": pa.array(values, kind)}), path, row_group_size=4)
    return Embedding(vectors=str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_in_any_order_reach_their_documents(tmp_path, kind):
    order = np.random.default_rng(1).permutation(DOCUMENTS)
    artifact = embedded(tmp_path, write(tmp_path / "own.parquet", order, kind=KINDS[kind]))
    assert parquet.read(artifact)["ordinal"].to_pylist() == CAPPED and artifact.stats["width"] == WIDTH
    np.testing.assert_allclose(vectors_of(artifact), EXPECTED, atol=2e-3 if "half" in kind else 1e-6)


def test_a_folder_of_files_with_vectors_of_other_documents_too(tmp_path):
    (tmp_path / "own").mkdir()
    write(tmp_path / "own" / "b.parquet", range(20, DOCUMENTS))
    write(tmp_path / "own" / "a.parquet", range(20))
    write(tmp_path / "own" / "c.parquet", range(8), ids=[f"other{number}" for number in range(8)])
    np.testing.assert_allclose(
        vectors_of(embedded(tmp_path, Embedding(vectors=str(tmp_path / "own")))), EXPECTED, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_an_array_are_documents_in_order(tmp_path, dtype):
    np.save(tmp_path / "own.npy", VECTORS.astype(dtype))
    found = vectors_of(embedded(tmp_path, Embedding(vectors=str(tmp_path / "own.npy"))))
    np.testing.assert_allclose(found, EXPECTED, atol=2e-3 if dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("file", ["own.npy", "own.parquet"])
def test_fewer_dimensions_are_the_first_ones_scaled_anew(tmp_path, file):
    np.save(tmp_path / "own.npy", VECTORS)
    write(tmp_path / "own.parquet", range(DOCUMENTS))
    artifact = embedded(tmp_path, Embedding(vectors=str(tmp_path / file), dimensions=4))
    expected = [unit(VECTORS[ordinal][:4]) for ordinal in CAPPED]
    np.testing.assert_allclose(vectors_of(artifact), expected, atol=1e-6)
    with pytest.raises(SbpError, match="embedding.dimensions is 7; the vectors in .* have 6"):
        embedded(tmp_path, Embedding(vectors=str(tmp_path / file), dimensions=7), "other")


def with_ids(ids: list[str], order=range(DOCUMENTS)) -> dict:
    return {"order": order, "ids": ids}


OWN_IDS = [f"id{ordinal}" for ordinal in range(DOCUMENTS)]
SHORT: list = [*VECTORS[:5], VECTORS[5][:3], *VECTORS[6:10], None, *VECTORS[11:]]
FAULTS = {
    "missing": (
        {"order": [ordinal for ordinal in range(DOCUMENTS) if ordinal not in (0, 2, 20, 27)]},
        r"4 documents have no vector in .*own.parquet \(ids id0, id2, id20, ...\); add them",
    ),
    "doubled": (
        with_ids(["id5" if ordinal in (7, 20) else text for ordinal, text in enumerate(OWN_IDS)]),
        r"2 documents have no vector .* \(ids id7, id20\)",
    ),
    "doubled with all there": (
        {"order": [*range(DOCUMENTS), 5, 5, 1]},
        r"2 vectors in .* are of documents that have one already \(ids id5, id5\); leave one for each",
    ),
    "another width, or none": (
        {"order": range(DOCUMENTS), "vectors": SHORT},
        r"2 vectors in .* are not 6 numbers long as the first one \(ids id5, id10\)",
    ),
    "zero": (
        {"order": range(DOCUMENTS), "vectors": np.where(np.arange(DOCUMENTS)[:, None] % 10 == 0, 0, VECTORS)},
        r"3 vectors in .* are zero or not finite \(ids id0, id10, id20\)",
    ),
    "not a number": (
        {"order": range(DOCUMENTS), "vectors": np.where(np.arange(DOCUMENTS)[:, None] == 12, np.nan, VECTORS)},
        r"1 vectors in .* are zero or not finite \(ids id12\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_parquet_file_are_counted_and_shown(tmp_path, fault):
    arguments, message = FAULTS[fault]
    with pytest.raises(SbpError, match=message):
        embedded(tmp_path, write(tmp_path / "own.parquet", **arguments))


def test_zero_rows_of_an_array_are_counted_and_shown(tmp_path):
    vectors = VECTORS.copy()
    vectors[CAPPED[-1]], vectors[CAPPED[3], 2], vectors[1] = 0, np.inf, np.nan
    np.save(tmp_path / "own.npy", vectors)
    with pytest.raises(SbpError, match=rf"2 vectors in .* \(ids id{CAPPED[3]}, id{CAPPED[-1]}\)"):
        embedded(tmp_path, Embedding(vectors=str(tmp_path / "own.npy")))


def test_an_array_of_another_shape_is_refused(tmp_path):
    for array, message in (
        (VECTORS[:-1], "has 29 rows for 30 documents; it needs one for each document that was ingested"),
        (VECTORS[0], r"holds float32 of shape \(6,\); it must be floats of two dimensions"),
        (VECTORS.astype(np.int8), "holds int8 of shape"),
        (np.array([{}]), "cannot be read as a .npy"),
    ):
        np.save(tmp_path / "own.npy", array)
        with pytest.raises(SbpError, match=message):
            embedded(tmp_path, Embedding(vectors=str(tmp_path / "own.npy")))


def test_a_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "own.parquet"
    settings = Embedding(vectors=str(path))
    with pytest.raises(SbpError, match="it must be a .npy, a .parquet or a folder of .parquet files"):
        embedded(tmp_path, settings)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(SbpError, match="cannot be read as Parquet"):
        embedded(tmp_path, settings)
    for columns, message in (
        ({"document": ["a"], "embedding": [[1.0]]}, "has no column id, only document, embedding"),
        ({"id": ["a"], "embedding": [["x"]]}, "column embedding of .* is list<.*string>; it must hold lists of floats"),
        ({"id": ["a"], "embedding": pa.array([[]], pa.list_(pa.float32()))}, "does not begin with a vector"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(SbpError, match=message):
            embedded(tmp_path, settings)


def test_row_groups_without_a_document_are_not_read(tmp_path, monkeypatch):
    """Most of a large file may be of documents that are in no pair."""
    settings = write(tmp_path / "own.parquet", [*range(DOCUMENTS)] + [0] * 80, ids=OWN_IDS + ["other"] * 80)
    read = set()

    class Spy(pq.ParquetFile):
        def iter_batches(self, size, groups=None, columns=None):
            read.update((group, *columns) for group in groups or [])
            return super().iter_batches(size, groups, columns)

    monkeypatch.setattr(own_vectors.pq, "ParquetFile", Spy)
    embedded(tmp_path, settings)
    assert {group for group, column in read if column == "id"} == set(range(28))
    assert {group for group, column in read if column == "embedding"} == set(range(7)), (
        "documents 28 and 29 are not capped"
    )


def test_a_disk_that_cannot_take_the_vectors_is_named_before_it_is_full(tmp_path, monkeypatch):
    """A write past the end of a disk through mapped memory ends the process without a word."""
    settings, usage = write(tmp_path / "own.parquet", range(DOCUMENTS)), shutil.disk_usage("/")
    monkeypatch.setattr(own_vectors.shutil, "disk_usage", lambda _: usage._replace(free=4 * DOCUMENTS * WIDTH - 1))
    with pytest.raises(SbpError, match="take 720 bytes of .*; set TMPDIR to a larger disk"):
        embedded(tmp_path, settings)


def test_finished_shards_need_no_vectors_any_more(tmp_path):
    settings = write(tmp_path / "own.parquet", range(DOCUMENTS))
    artifact = embedded(tmp_path, settings)
    first = artifact.files[0].name
    (artifact.path / first).unlink()
    write(tmp_path / "own.parquet", range(5))
    again = embedded(tmp_path, settings)
    assert [file.checksum for file in again.files] == [file.checksum for file in artifact.files]
