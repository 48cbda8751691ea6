"""The exact search: one program on a mesh equals a full sort, whatever the mesh, the blocks and the streaming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sbp_jax.config import MeshShape
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.planning.topology import get_topology
from sbp_jax.search import exact, ranking
from sbp_jax.search.ranking import MISSING
from tests.test_neighbors import clustered, search_exactly, straightforward


@pytest.mark.parametrize("n", [201, 200, 9])
def test_exact_search_over_blocks_is_a_full_sort(monkeypatch, n):
    """Guards the seams: padded blocks and queries, indices of a block and of a device."""
    monkeypatch.setattr(exact, "BLOCK", 16)
    monkeypatch.setattr(exact, "QUERIES", 56)
    exact.best_program.cache_clear()
    vectors = clustered(n)
    indices, similarities = search_exactly(vectors, np.arange(n), 7)
    expected, expected_similarities = straightforward(vectors, 7)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)
    some = np.array([n - 1, 3, 8])
    np.testing.assert_array_equal(search_exactly(vectors, some, 7)[0], expected[some])
    exact.best_program.cache_clear()


def test_the_mesh_changes_no_bit_of_the_result():
    vectors = clustered(1000)
    vectors[500:520] = vectors[3]
    shapes: list[dict[str, int]] = [{}, dict(data=1, fsdp=4, tensor=2), dict(data=2, fsdp=2, tensor=2)]
    results = [search_exactly(vectors, np.arange(300, 700), 9, **shape) for shape in shapes]
    for indices, similarities in results[1:]:
        np.testing.assert_array_equal(indices, results[0][0])
        np.testing.assert_array_equal(similarities, results[0][1])
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    resident = exact.place(lambda a, b: vectors[a:b], 0, 1000, 32, one)
    indices, similarities = exact.search(resident, np.arange(300, 700), 9)
    np.testing.assert_array_equal(indices, results[0][0])
    np.testing.assert_array_equal(similarities, results[0][1])


def test_a_streamed_scan_equals_the_search_of_resident_vectors(monkeypatch):
    monkeypatch.setattr(exact, "SLAB", 4 * 32 * 16)
    vectors, queries = clustered(700), np.array([0, 5, 333, 699])
    read = []

    def rows(start, stop):
        read.append(stop - start)
        return vectors[start:stop]

    found = exact.scan(rows, 700, queries, vectors[queries], 11, build_mesh(MeshShape()))
    expected = search_exactly(vectors, queries, 11)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert max(read) <= 16 and sum(read) == 700


def test_equal_similarities_come_by_rising_index_also_across_blocks(monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 8)
    vectors = np.eye(8, dtype=np.float32)[[0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 2]]
    indices, _ = search_exactly(vectors, np.array([4, 10]), 3)
    assert indices.tolist() == [[0, 2, 5], [0, 1, 2]]


@pytest.mark.parametrize(("columns", "k"), [(192, 3), (256, 4), (640, 10), (100, 5), (8, 8)])
def test_the_greatest_of_groups_are_those_of_a_full_top_k(columns, k):
    """Many equal scores: among them the first columns count."""
    scores = np.random.default_rng(0).integers(0, 12, (50, columns)).astype(np.float32)
    scores[0], scores[1, 5:] = 1.0, -np.inf
    expected_values, expected = jax.lax.top_k(scores, k)
    values, picked = ranking.largest(scores, k)
    np.testing.assert_array_equal(values, expected_values)
    np.testing.assert_array_equal(picked, expected)


def test_order_is_by_similarity_then_index_without_the_query_and_without_doubles():
    indices = np.array([[7, 3, 9, 3, MISSING, 1], [5, 5, 5, 5, 5, 2]])
    similarities = np.array([[0.5, -0.25, 0.5, -0.5, 2.0, np.float32(1e-30)], [0.1, 0.3, 0.2, 0.3, 0.1, -0.1]], "f4")
    found, values = ranking.ordered(indices, similarities, 4, np.array([9, 2]))
    assert found.tolist() == [[7, 1, 3, MISSING], [5, MISSING, MISSING, MISSING]]
    np.testing.assert_array_equal(values, np.array([[0.5, 1e-30, -0.25, -np.inf], [0.3] + 3 * [-np.inf]], "f4"))


def test_products_in_bfloat16_with_float32_scores_find_nearly_all():
    """What an accelerator runs, on a CPU: candidates are rounded, what is returned of them is not."""
    vectors = clustered(2000)
    resident = exact.place(lambda a, b: vectors[a:b], 0, 2000, 32, build_mesh(MeshShape()))
    rounded = dataclasses.replace(resident, scanned_ND=resident.vectors_ND.astype(jnp.bfloat16))
    indices, similarities = exact.search(rounded, np.arange(500), 10)
    expected, _ = straightforward(vectors, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(indices, expected[:500], strict=True)]) > 0.99
    true = np.sum(vectors[:500, None] * vectors[indices], axis=-1)
    np.testing.assert_allclose(similarities, true, atol=1e-6)


@pytest.mark.slow
def test_a_chip_holds_its_vectors_and_little_more_than_one_block_of_scores():
    """Guards against scores of a whole device, 4 GB, and against its vectors a second time cast in each call, 2 GB."""
    pytest.importorskip("libtpu")
    mesh = build_mesh(MeshShape(), get_topology("v5e:2x2").devices)
    program = exact.best_program(mesh, 209, approximate=True)
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    each, width = exact._padded(10**6), 1024
    arguments = (
        jax.ShapeDtypeStruct((each * mesh.size, width), np.float32, sharding=cut),
        jax.ShapeDtypeStruct((each * mesh.size, width), jnp.bfloat16, sharding=cut),
        jax.ShapeDtypeStruct((exact.QUERIES, width), np.float32, sharding=whole),
        jax.ShapeDtypeStruct((), np.int32, sharding=whole),
    )
    memory = program.lower(*arguments).compile().memory_analysis()
    assert memory.argument_size_in_bytes < 6.2e9
    assert memory.temp_size_in_bytes < 8 * 4 * exact.QUERIES * exact.BLOCK, memory
