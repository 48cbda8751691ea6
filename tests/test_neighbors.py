"""Nearest neighbours: exact is exact, ScaNN finds nearly all of them, nobody is their own neighbour."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, parquet
from sbp_jax.config import Execution, MeshShape, Neighbors
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.search import exact, scann_search
from sbp_jax.search.ranking import MISSING
from sbp_jax.stages import neighbors as stage


def clustered(n: int, width: int = 32, clusters: int = 40, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters, as documents of topics are."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(clusters, width))[rng.integers(0, clusters, n)] + 0.5 * rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def straightforward(vectors: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(scores, order, axis=1)


def scann(vectors: np.ndarray, neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("scann")
    chosen = scann_search.settings(len(vectors), neighbors)
    index = scann_search.build(vectors, chosen)
    return scann_search.search(index, vectors, np.arange(len(vectors)), chosen)


def test_exact_search_over_blocks_is_a_full_sort(monkeypatch):
    """Guards the seams: last blocks that are moved back, padded queries, indices of a block."""
    monkeypatch.setattr(exact, "BLOCK", 64)
    monkeypatch.setattr(exact, "QUERIES", 56)
    vectors = clustered(201)
    indices, similarities = exact.search(vectors, np.arange(201), 7, build_mesh(MeshShape()))
    expected, expected_similarities = straightforward(vectors, 7)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)
    some = np.array([200, 3, 64])
    np.testing.assert_array_equal(exact.search(vectors, some, 7, build_mesh(MeshShape()))[0], expected[some])


def test_equal_similarities_come_by_rising_index_also_across_blocks(monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 4)
    vectors = np.eye(8, dtype=np.float32)[[0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 2]]
    indices, _ = exact.search(vectors, np.array([4, 10]), 3, build_mesh(MeshShape()))
    assert indices.tolist() == [[0, 2, 5], [0, 1, 2]]


@pytest.mark.parametrize("search", ["exact", "scann"])
def test_among_exact_duplicates_the_query_is_dropped_by_its_index(search):
    """Dropping the first result would drop a duplicate and keep the query as its own neighbour."""
    vectors = clustered(900)
    copies = np.arange(100, 130)
    vectors[copies] = vectors[7]
    if search == "exact":
        indices, similarities = exact.search(vectors, np.arange(900), 5, build_mesh(MeshShape()))
    else:
        indices, similarities = scann(vectors, Neighbors(top_k=5))
    assert not np.any(indices == np.arange(900)[:, None])
    for query in (7, *copies):
        assert set(indices[query]) <= {7, *copies} - {query}
        np.testing.assert_allclose(similarities[query], 1, atol=1e-5)
    assert all(len(set(row)) == 5 for row in indices.tolist())


def test_scann_finds_nearly_all_true_neighbours_with_true_similarities():
    vectors = clustered(2000)
    indices, similarities = scann(vectors, Neighbors(top_k=10))
    expected, _ = straightforward(vectors, 10)
    found = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(indices, expected, strict=True)])
    assert found > 0.95
    queries = np.arange(2000)[:, None]
    np.testing.assert_allclose(similarities, np.sum(vectors[queries] * vectors[indices], axis=-1), atol=1e-5)
    assert np.all(np.diff(similarities, axis=1) <= 0)


def test_places_that_scann_cannot_fill_are_missing_and_not_document_0():
    """ScaNN fills short results with index 0, which would make document 0 everybody's neighbour."""
    vectors = clustered(600, clusters=200)
    indices, similarities = scann(vectors, Neighbors(top_k=50, leaves_to_search=1))
    assert np.any(indices == MISSING)
    assert np.array_equal(indices == MISSING, np.isneginf(similarities))
    queries, places = np.nonzero(indices == 0)
    np.testing.assert_allclose(similarities[queries, places], vectors[queries] @ vectors[0], atol=1e-5)


BUILD_AND_PRINT = """
import hashlib, numpy as np
from sbp_jax.config import Neighbors
from sbp_jax.search import scann_search
from tests.test_neighbors import clustered
vectors = clustered(1500, width=384, clusters=300)
chosen = scann_search.settings(1500, Neighbors(top_k=10, leaves_to_search=2))
indices, similarities = scann_search.search(scann_search.build(vectors, chosen), vectors, np.arange(1500), chosen)
print(hashlib.sha256(indices.tobytes() + similarities.tobytes()).hexdigest())
"""


def test_two_processes_find_the_same_neighbours():
    """Random initial centres give other neighbours in each process, so that a resumed run would mix two indexes."""
    pytest.importorskip("scann")
    command = [sys.executable, "-c", BUILD_AND_PRINT]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    first, second = (process.communicate()[0] for process in running)
    assert len(first) == 65 and first == second


def test_settings_are_derived_from_the_number_of_documents_and_never_exceed_it():
    assert scann_search.settings(1_000_000, Neighbors(top_k=200)) == scann_search.Settings(200, 1000, 100, 800)
    assert scann_search.settings(600, Neighbors(top_k=20)) == scann_search.Settings(20, 24, 24, 80)
    assert scann_search.settings(10, Neighbors(top_k=20)) == scann_search.Settings(9, 3, 3, 10)
    assert scann_search.settings(5000, Neighbors(20, leaves=9, leaves_to_search=2, reorder=5)).reorder == 21


def embeddings(folder, vectors: np.ndarray, step: int = 3, name: str = "embed") -> Artifact:
    """Vectors as the embed stage writes them; ordinals are 0, 3, 6, ... since the capped set has gaps."""
    output = Output(epath.Path(folder / name), Recipe("embed", 1, {}, {}), "embed")
    for shard, first in enumerate(range(0, len(vectors), 512)):
        part = vectors[first : first + 512]
        ordinals = pa.array(step * np.arange(first, first + len(part)))
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        table = pa.table({"ordinal": ordinals, "embedding": column})
        output.shard(shard, ".parquet", lambda writing, table=table: parquet.write(writing, table))
    return output.finish()


def run(folder, vectors: np.ndarray, neighbors: Neighbors, name: str = "neighbors") -> Artifact:
    output = Output(epath.Path(folder / name), Recipe("neighbors", 1, {}, {}), "neighbors")
    made = embeddings(folder, vectors, name=f"embed_{name}")
    return stage.run(output, embeddings=made, neighbors=neighbors, execution=Execution())


def test_the_stage_writes_ordinals_and_a_killed_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "QUERIES_PER_SHARD", 40)
    vectors = clustered(100)
    whole = run(tmp_path, vectors, Neighbors(top_k=6), "whole")
    table = parquet.read(whole)
    expected, _ = straightforward(vectors, 6)
    assert table["query"].to_pylist() == np.repeat(3 * np.arange(100), 6).tolist()
    assert table["neighbor"].to_pylist() == (3 * expected.ravel()).tolist()
    assert whole.stats["backend"] == "exact" and "fewer than 512" in whole.stats["backend_reason"]
    assert whole.stats["recall_at_k"] == 1 and whole.stats["audited_queries"] == 100

    calls = []

    def dies(vectors, queries, top_k, mesh):
        calls.append(len(queries))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(vectors, queries, top_k, mesh)

    search = exact.search
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(exact, "search", dies)
        run(tmp_path, vectors, Neighbors(top_k=6), "killed")
    resumed = run(tmp_path, vectors, Neighbors(top_k=6), "killed")
    assert calls == [40, 40]
    assert resumed.files == whole.files and resumed.stats == whole.stats


def test_the_audit_notices_a_search_that_misses_neighbours(tmp_path):
    pytest.importorskip("scann")
    vectors = clustered(1200, clusters=300)
    good = run(tmp_path, vectors, Neighbors(top_k=10), "good")
    poor = run(tmp_path, vectors, Neighbors(top_k=10, leaves_to_search=1), "poor")
    assert good.stats["backend"] == "scann" and good.stats["settings"]["leaves"] == 35
    assert good.stats["recall_at_k"] > 0.95 > 0.8 > poor.stats["recall_at_k"]
    assert good.stats["audited_queries"] == 200


def test_where_scann_is_absent_the_search_is_exact_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann", None)
    artifact = run(tmp_path, clustered(600), Neighbors(top_k=3))
    assert artifact.stats["backend"] == "exact" and "cannot be imported" in artifact.stats["backend_reason"]
    assert artifact.stats["recall_at_k"] == 1


def test_more_neighbours_than_documents_gives_all_of_them(tmp_path):
    assert run(tmp_path, clustered(5), Neighbors(top_k=20)).rows == 5 * 4


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_broken_embedding_is_named_by_its_ordinal(tmp_path, value):
    """One vector that is not a number makes every similarity with it meaningless, silently."""
    vectors = clustered(40)
    vectors[21] = value
    with pytest.raises(SbpError, match="1 embeddings are zero or not finite, .* ordinal 63"):
        run(tmp_path, vectors, Neighbors())
    with pytest.raises(SbpError, match="fewer than two documents"):
        run(tmp_path, vectors[:1], Neighbors(), "one")
