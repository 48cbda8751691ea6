"""Nearest neighbours: exact is exact, ScaNN finds nearly all of them, nobody is their own neighbour."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Execution, MeshShape, Neighbors
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.search import backends, bucketed, exact, scann_search
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


def search_exactly(vectors: np.ndarray, queries: np.ndarray, top_k: int, **sizes: int):
    resident = exact.place(lambda a, b: vectors[a:b], 0, len(vectors), vectors.shape[1], build_mesh(MeshShape(**sizes)))
    return exact.search(resident, queries, top_k)


def scann(vectors: np.ndarray, neighbors: Neighbors) -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("scann")
    chosen = scann_search.settings(len(vectors), neighbors)
    index = scann_search.build(vectors, chosen)
    return scann_search.search(index, vectors, np.arange(len(vectors)), chosen)


@pytest.mark.parametrize("search", ["exact", "scann"])
def test_among_exact_duplicates_the_query_is_dropped_by_its_index(search):
    """Dropping the first result would drop a duplicate and keep the query as its own neighbour."""
    vectors = clustered(900)
    copies = np.arange(100, 130)
    vectors[copies] = vectors[7]
    if search == "exact":
        indices, similarities = search_exactly(vectors, np.arange(900), 5)
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
    assert scann_search.settings(1_000_000, Neighbors(top_k=200)) == scann_search.Settings(200, 1972, 61, 800, 157_760)
    assert scann_search.settings(600, Neighbors(top_k=20)) == scann_search.Settings(20, 24, 24, 84, 600)
    assert scann_search.settings(10, Neighbors(top_k=20)) == scann_search.Settings(9, 3, 3, 10, 10)
    assert scann_search.settings(5000, Neighbors(top_k=1)).reorder == 65  # few hashes name the nearest one
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


@pytest.mark.parametrize("sizes", [(0, 300), (200, 0, 100), (300, 0)])
def test_a_shard_without_documents_is_read_over(tmp_path, sizes):
    """A part of the corpus may hold no capped document."""
    vectors, first = clustered(300), 0
    output = Output(epath.Path(tmp_path / "gaps"), Recipe("embed", 1, {}, {}), "embed")
    for shard, size in enumerate(sizes):
        part = vectors[first : first + size]
        column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        table = pa.table({"ordinal": pa.array(3 * np.arange(first, first + size)), "embedding": column})
        output.shard(shard, ".parquet", lambda writing, table=table: parquet.write(writing, table))
        first += size
    found = Output(epath.Path(tmp_path / "found"), Recipe("neighbors", 1, {}, {}), "neighbors")
    made = stage.run(found, embeddings=output.finish(), neighbors=Neighbors("bucketed", top_k=4), execution=Execution())
    table, wanted = parquet.read(made), parquet.read(run(tmp_path, vectors, Neighbors("bucketed", top_k=4)))
    assert table.equals(wanted)


def run(folder, vectors: np.ndarray, neighbors: Neighbors, name: str = "neighbors", **options) -> Artifact:
    output = Output(epath.Path(folder / name), Recipe("neighbors", 1, {}, {}), "neighbors")
    made = embeddings(folder, vectors, name=f"embed_{name}")
    return stage.run(output, embeddings=made, neighbors=neighbors, execution=Execution(), **options)


def test_the_stage_writes_ordinals_and_a_killed_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "QUERIES_PER_SHARD", 40)
    vectors = clustered(100)
    whole = run(tmp_path, vectors, Neighbors(top_k=6), "whole")
    table = parquet.read(whole)
    expected, _ = straightforward(vectors, 6)
    assert table["query"].to_pylist() == np.repeat(3 * np.arange(100), 6).tolist()
    assert table["neighbor"].to_pylist() == (3 * expected.ravel()).tolist()
    assert whole.stats["backend"] == "exact" and "fewer than 4,096" in whole.stats["backend_reason"]
    assert whole.stats["recall_at_k"] == 1 and whole.stats["audited_queries"] == 100

    calls = []

    def dies(resident, queries, top_k):
        calls.append(len(queries))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(resident, queries, top_k)

    search = exact.search
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(exact, "search", dies)
        run(tmp_path, vectors, Neighbors(top_k=6), "killed")
    monkeypatch.setattr(backends, "EXACT_BELOW", 0)  # as on a machine that would choose another search
    resumed = run(tmp_path, vectors, Neighbors(top_k=6), "killed")
    assert calls == [40, 40]
    assert resumed.files == whole.files and resumed.stats == whole.stats


@pytest.mark.parametrize("backend", ["scann", "bucketed"])
def test_the_audit_notices_a_search_that_misses_neighbours(tmp_path, backend):
    if backend == "scann":
        pytest.importorskip("scann")
    vectors = clustered(1200, clusters=300)
    good = run(tmp_path, vectors, Neighbors(backend, top_k=10), "good")
    poor = run(tmp_path, vectors, Neighbors(backend, top_k=10, leaves=35, leaves_to_search=1), "poor")
    assert good.stats["backend"] == backend and good.stats["audited_queries"] == 500
    assert good.stats["recall_at_k"] > 0.95 > 0.8 > poor.stats["recall_at_k"]
    for name in ("recall_at_1", "recall_at_10"):
        assert good.stats[name] > poor.stats[name] > 0
    assert good.stats["recall_above"]["0.60"] > poor.stats["recall_above"]["0.60"] > 0
    assert not (good.path / stage.SCRATCH).exists()


def test_the_audit_counts_what_a_search_left_out(tmp_path, monkeypatch):
    """Every second query's nearest neighbour is left out of what is written: half of recall at 1, a tenth of at 10."""
    vectors = clustered(100)
    write = stage._write

    def leaves_out(writing, ordinals, start, indices, similarities):
        indices[::2, 0] = MISSING
        write(writing, ordinals, start, indices, similarities)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "_write", leaves_out)
        stats = run(tmp_path, vectors, Neighbors(top_k=20), "lossy").stats
    _, true = straightforward(vectors, 20)
    assert stats["recall_at_1"] == pytest.approx(0.5)
    assert stats["recall_at_10"] == pytest.approx(0.95)
    assert stats["recall_at_k"] == pytest.approx(0.975)
    wanted = {value: true >= np.float32(value) for value in stats["recall_above"]}
    wanted = {value: 1 - above[::2, 0].sum() / above.sum() for value, above in wanted.items()}
    off = np.array([abs(share - wanted[value]) for value, share in stats["recall_above"].items()])
    assert len(off) > 60 and np.count_nonzero(off > 1e-6) < 5 and off.max() < 0.01  # one may lie on a threshold


def test_the_backend_follows_from_size_settings_and_what_is_installed(monkeypatch):
    def chosen(n, backend="auto", memory=16 << 30):
        return backends.choose(n, 384, Neighbors(backend), 1, memory)

    assert chosen(1000).backend == "exact" and chosen(10**9).backend == "bucketed"
    assert chosen(100, "bucketed").backend == "bucketed"
    assert chosen(100, "scann").backend == "exact" and "fewer than 512" in chosen(100, "scann").reason
    pytest.importorskip("scann")
    assert chosen(10**5).backend == "scann" and chosen(10**5, memory=1 << 29).backend == "bucketed"
    assert chosen(10**7, memory=1 << 40).backend == "bucketed"
    assert chosen(10**5, "scann").settings["partitions"] == 1
    assert chosen(10**7, "scann").settings["partitions"] == 9  # five times 15.4 GB, in halves of 16 GiB
    monkeypatch.setitem(sys.modules, "scann", None)
    assert chosen(10**5, "scann").backend == "exact" and "cannot be imported" in chosen(10**5, "scann").reason
    assert chosen(10**5).backend == "exact" and chosen(300_000).backend == "bucketed"
    assert "cannot be imported" in chosen(300_000).reason and chosen(10**6, "scann").backend == "exact"


BACKENDS = ("exact", "scann", "bucketed")


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_neighbours_than_documents_gives_all_of_them(tmp_path, backend):
    assert run(tmp_path, clustered(5), Neighbors(backend, top_k=20)).rows == 5 * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_documents_all_get_others_and_the_same_ones_each_time(tmp_path, backend):
    """All similarities tie, buckets cannot be split, and a tree has one leaf that holds all."""
    if backend == "scann":
        pytest.importorskip("scann")
    vectors = np.repeat(clustered(1), 700, axis=0)
    made = [run(tmp_path, vectors, Neighbors(backend, top_k=7), f"{backend}{turn}") for turn in range(2)]
    table = parquet.read(made[0])
    query, neighbor = (table[name].to_numpy().reshape(700, 7) for name in ("query", "neighbor"))
    assert np.all(neighbor != query) and all(len(set(row)) == 7 for row in neighbor.tolist())
    np.testing.assert_allclose(table["similarity"].to_numpy(), 1, atol=1e-5)
    assert made[0].files == made[1].files


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_broken_embedding_is_named_by_its_ordinal(tmp_path, value, backend):
    """One vector that is not a number makes every similarity with it meaningless, silently."""
    vectors = clustered(600)
    vectors[521] = value
    with pytest.raises(SbpError, match="1 embeddings of .*00001.* are zero or not finite, .* ordinal 1563"):
        run(tmp_path, vectors, Neighbors(backend))


def test_one_document_has_no_neighbour(tmp_path):
    with pytest.raises(SbpError, match="fewer than two documents"):
        run(tmp_path, clustered(1), Neighbors())


@pytest.mark.parametrize("backend", ["scann", "bucketed"])
def test_an_index_of_other_vectors_is_refused(tmp_path, backend, monkeypatch):
    """Its neighbours would be those of other documents, and look like any."""
    if backend == "scann":
        pytest.importorskip("scann")

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage, "_write", dies)
        run(tmp_path, clustered(600), Neighbors(backend, top_k=5), "killed")
    output = Output(epath.Path(tmp_path / "killed"), Recipe("neighbors", 1, {}, {}), "neighbors")
    other = embeddings(tmp_path, clustered(600, seed=1), name="other")
    with pytest.raises(SbpError, match="built from other vectors"):
        stage.run(output, embeddings=other, neighbors=Neighbors(backend, top_k=5), execution=Execution())


@pytest.mark.parametrize("backend", ["scann", "bucketed"])
def test_a_killed_search_goes_on_with_what_it_had_built(tmp_path, backend, monkeypatch):
    if backend == "scann":
        pytest.importorskip("scann")
    monkeypatch.setattr(stage, "QUERIES_PER_SHARD", 400)
    neighbors = Neighbors(backend, top_k=5)
    whole = run(tmp_path, clustered(1000), neighbors, "whole")
    write = stage._write

    def dies(writing, ordinals, start, *rest):
        if start == 400:
            raise KeyboardInterrupt
        write(writing, ordinals, start, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stage, "_write", dies)
        run(tmp_path, clustered(1000), neighbors, "killed")

    def builds_again(*_):
        raise AssertionError("what a killed run had built was built again")

    monkeypatch.setattr(scann_search, "build", builds_again)
    monkeypatch.setattr(bucketed, "join", builds_again)
    resumed = run(tmp_path, clustered(1000), neighbors, "killed")
    assert resumed.files == whole.files and resumed.stats == whole.stats


def accepted(folder, pairs: list[tuple[int, int, str]]) -> Artifact:
    """Pairs as their stage writes them, in two shards, those of one d1 together."""
    output = Output(epath.Path(folder / "pairs"), Recipe("pairs", 1, {}, {}), "pairs")
    half = next(place for place, pair in enumerate(pairs) if 2 * place >= len(pairs) and pair[0] != pairs[place - 1][0])
    for shard, part in enumerate((pairs[:half], pairs[half:])):
        d1, d2, verdict = (list(column) for column in zip(*part, strict=True))
        table = pa.table({"d1": d1, "d2": d2, "verdict": verdict})
        output.shard(shard, ".parquet", lambda writing, table=table: parquet.write(writing, table))
    return output.finish()


def test_random_pairs_keep_the_number_of_each_seed_and_no_real_neighbour(tmp_path):
    """The control must differ from the method in nothing but which documents are paired."""
    vectors = clustered(400, clusters=4)
    indices, _ = straightforward(vectors, 6)
    pairs = [
        (3 * d1, 3 * int(d2), "accepted" if (d1 + rank) % 3 else "near_duplicate")
        for d1 in range(0, 400, 2)
        for rank, d2 in enumerate(indices[d1][: 1 + d1 % 6])
    ]
    like = accepted(tmp_path, pairs)
    made = run(tmp_path, vectors, Neighbors(), "control", threshold=0.4, like=like)
    table = parquet.read(made).to_pydict()
    assert table["query"] == [d1 for d1, _, verdict in pairs if verdict == "accepted"]
    d1, d2 = np.array(table["query"]) // 3, np.array(table["neighbor"]) // 3
    true = np.sum(vectors[d1] * vectors[d2], axis=1)
    np.testing.assert_allclose(table["similarity"], true, atol=1e-6)
    assert np.all(true < 0.4) and np.all(d1 != d2) and len(set(zip(d1, d2, strict=True))) == len(d1)
    assert len(set(d2.tolist())) > 150  # they are spread over the documents
    again = run(tmp_path, vectors, Neighbors(), "again", threshold=0.4, like=like)
    assert again.files == made.files and again.stats["undrawn"] == 0


def test_random_pairs_fit_a_row_of_the_synthesizer(tmp_path):
    """Pairs that are drawn too long are rejected later, and the control is then tuned on fewer than the method."""
    vectors, lengths = clustered(300, clusters=6), np.random.default_rng(1).integers(5, 60, 300)
    like = accepted(tmp_path, [(3 * d1, 3 * ((d1 + 1) % 300), "accepted") for d1 in range(0, 300, 3)])
    every = Output(epath.Path(tmp_path / "tokens"), Recipe("tokenize", 1, {}, {}), "tokens")
    ids = [np.zeros(lengths[place // 3] if place % 3 == 0 else 1, "<i4").tobytes() for place in range(900)]
    every.shard(0, ".array_record", lambda writing: arrayrecord.write(writing, ids))
    tokens = every.finish()
    fitting = run(tmp_path, vectors, Neighbors(), "fit", threshold=0.4, like=like, tokens=tokens, context=82)
    table = parquet.read(fitting).to_pydict()
    together = lengths[np.array(table["query"]) // 3] + lengths[np.array(table["neighbor"]) // 3]
    assert len(together) == 100 and together.max() + 3 == 83 and fitting.stats["undrawn"] == 0
    loose = parquet.read(run(tmp_path, vectors, Neighbors(), "any", threshold=0.4, like=like)).to_pydict()
    assert max(lengths[np.array(loose["query"]) // 3] + lengths[np.array(loose["neighbor"]) // 3]) + 3 > 83


def test_a_random_pair_is_given_up_where_all_documents_are_related(tmp_path):
    like = accepted(tmp_path, [(0, 3, "accepted"), (3, 0, "accepted")])
    made = run(tmp_path, np.repeat(clustered(1), 9, axis=0), Neighbors(), "none", like=like)
    assert made.rows == 0 and made.stats["undrawn"] == 2
