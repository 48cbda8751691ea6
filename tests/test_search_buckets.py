"""Buckets and partitions: what is found in parts and merged equals what is found at once, in bounded memory."""

import threading

import numpy as np
import pytest

from sbp_jax.config import MeshShape, Neighbors
from sbp_jax.errors import SbpError
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.search import bucketed, kmeans, partitioned, scann_search, shuffle
from sbp_jax.search.ranking import MISSING
from tests.test_neighbors import clustered, straightforward

MESH = build_mesh(MeshShape())


class InMemory:
    """Vectors with the interface of those that are stored."""

    fingerprint = "vectors"

    def __init__(self, vectors: np.ndarray, block: int = 100):
        self.vectors, self.block, self.width = vectors, block, vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, indices: np.ndarray) -> np.ndarray:
        return self.vectors[indices]

    def blocks(self, start: int = 0, stop: int | None = None):
        stop = len(self) if stop is None else stop
        for first in range(start, stop, self.block):
            yield first, self.vectors[first : min(first + self.block, stop)]


def join_all(folder, vectors: np.ndarray, chosen: bucketed.Settings) -> tuple[np.ndarray, np.ndarray]:
    joined = bucketed.Bucketed(InMemory(vectors), chosen, MESH, folder)
    joined.prepare()
    parts = [joined.search(start, min(start + 130, len(vectors))) for start in range(0, len(vectors), 130)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


@pytest.mark.parametrize("groups", [1, 3])
def test_documents_in_all_buckets_find_everything(tmp_path, groups):
    """With every document in every bucket the join is exact, and each pair is found in each bucket, once too often."""
    vectors = clustered(500)
    chosen = bucketed.Settings(top_k=9, buckets=3, spill=3, largest=1000, groups=groups, sample=300)
    indices, similarities = join_all(tmp_path, vectors, chosen)
    expected, expected_similarities = straightforward(vectors, 9)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-6)


@pytest.mark.parametrize("members", [2, 5, 300, 700])
def test_a_cpu_joins_a_bucket_as_an_accelerator_does(members):
    """The vectors are few and repeated, so that several tie for the last place."""
    vectors = clustered(40)[np.random.default_rng(members).integers(0, 40, members)]
    few = min(12, members - 1)
    expected, expected_products = straightforward(vectors, few)
    for find in (bucketed._join_here, bucketed._join_on_device):
        places, products = find(vectors, few)
        np.testing.assert_allclose(-np.sort(-products, axis=1), expected_products, atol=1e-6)
        for own in range(members):
            certain = expected_products[own] > expected_products[own, -1] + 1e-5  # the others tie for the last place
            assert set(expected[own][certain]) <= set(places[own])
            assert len(set(places[own])) == few and own not in places[own]


def test_spilling_finds_pairs_across_the_borders_of_buckets(tmp_path):
    vectors = clustered(3000, clusters=300)
    expected, _ = straightforward(vectors, 10)
    recalls = []
    for spill in (1, 2, 6):
        chosen = bucketed.settings(3000, 32, Neighbors(top_k=10, leaves=60, leaves_to_search=spill))
        indices, _ = join_all(tmp_path / str(spill), vectors, chosen)
        assert not np.any(indices == np.arange(3000)[:, None])
        recalls.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(indices, expected, strict=True)]))
    assert recalls[0] < recalls[1] < recalls[2] and recalls[2] > 0.97


def test_oversize_buckets_are_split_and_still_found(tmp_path, monkeypatch):
    """One bucket of everything would be compared with itself in full, at any size."""
    vectors = clustered(2000, clusters=100)
    sizes = []
    join = bucketed.join
    monkeypatch.setattr(bucketed, "join", lambda vectors, top_k: (sizes.append(len(vectors)), join(vectors, top_k))[1])
    chosen = bucketed.Settings(top_k=10, buckets=1, spill=1, largest=600, groups=1, sample=100)
    indices, _ = join_all(tmp_path, vectors, chosen)
    assert max(sizes) <= 600 and sum(sizes) > 2000
    expected, _ = straightforward(vectors, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(indices, expected, strict=True)]) > 0.9


def test_a_killed_join_goes_on_with_its_groups(tmp_path, monkeypatch):
    vectors = clustered(900, clusters=100)
    chosen = bucketed.Settings(top_k=5, buckets=12, spill=2, largest=600, groups=4, sample=400)
    whole = join_all(tmp_path / "whole", vectors, chosen)
    joined, write = [], bucketed.write_run

    def dies(folder, group, found):
        joined.append(group)
        if len(joined) == 3:
            shuffle.run_marker(folder, group).write_text("")  # cut off
            raise KeyboardInterrupt
        write(folder, group, found)

    monkeypatch.setattr(bucketed, "write_run", dies)
    with pytest.raises(KeyboardInterrupt):
        join_all(tmp_path / "killed", vectors, chosen)
    resumed = join_all(tmp_path / "killed", vectors, chosen)
    assert joined == [0, 1, 2, 2, 3]
    np.testing.assert_array_equal(resumed[0], whole[0])
    np.testing.assert_array_equal(resumed[1], whole[1])


@pytest.mark.parametrize("search", ["bucketed", "partitioned"])
def test_hosts_divide_the_work_and_find_the_same(tmp_path, search):
    vectors = clustered(900, clusters=100)

    def host(folder, process: int = 0, processes: int = 1):
        if search == "partitioned":
            return partitioned.Partitioned(InMemory(vectors), Neighbors(top_k=5), 4, MESH, folder, process, processes)
        chosen = bucketed.Settings(top_k=5, buckets=12, spill=2, largest=600, groups=4, sample=400)
        return bucketed.Bucketed(InMemory(vectors), chosen, MESH, folder, process, processes)

    def together(folder, processes: int) -> list:
        hosts = [host(folder, process, processes) for process in range(processes)]
        threads = [threading.Thread(target=each.prepare, daemon=True) for each in hosts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return [each.search(0, 900) for each in hosts]

    whole = together(tmp_path / "one", 1)[0]
    for found in together(tmp_path / "three", 3):
        np.testing.assert_array_equal(found[0], whole[0])
        np.testing.assert_allclose(found[1], whole[1], atol=1e-6)  # products of other shapes round otherwise


def test_other_hosts_than_before_divide_the_vectors_anew(tmp_path):
    """What three hosts filled, read by two, would be a third of the entries twice or not at all."""
    vectors = clustered(900, clusters=100)
    chosen = bucketed.Settings(top_k=5, buckets=12, spill=2, largest=600, groups=4, sample=400)
    whole = join_all(tmp_path / "one", vectors, chosen)
    three = [bucketed.Bucketed(InMemory(vectors), chosen, MESH, tmp_path / "killed", own, 3) for own in range(3)]
    shuffle.claim(three[0].folder, {"vectors": "vectors", "settings": vars(chosen)}, 0)
    fillers = [threading.Thread(target=host._fill, daemon=True) for host in three]
    for thread in fillers:
        thread.start()
    for thread in fillers:
        thread.join(60)
    for group in (0, 1):  # joined before the kill
        shuffle.write_run(three[0].folder, group, three[0]._join_group(three[0]._shuffle.read(group)))
    np.testing.assert_array_equal(join_all(tmp_path / "killed", vectors, chosen)[0], whole[0])


@pytest.mark.parametrize("hosts", [1, 3])
def test_a_shuffle_brings_each_entry_to_its_group_with_its_vector(tmp_path, hosts):
    vectors = clustered(50)

    def place(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = np.arange(len(part)).repeat(2)
        groups = (np.argmax(part, axis=1).repeat(2) * np.tile([1, 3], len(part))) % 3
        return groups, rows, 10 * groups

    moved = [shuffle.Shuffle(tmp_path, 4, 32, own, hosts) for own in range(hosts)]
    threads = [threading.Thread(target=each.fill, args=(InMemory(vectors, 20), place)) for each in moved]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = [moved[0].read(group) for group in range(4)]
    for group, read in enumerate(found):
        np.testing.assert_array_equal(read.take(np.arange(len(read.indices_E))), vectors[read.indices_E])
        assert np.all(read.tags_E == 10 * group) and np.all(np.diff(read.indices_E) >= 0)
        own = np.argmax(vectors[read.indices_E], axis=1)
        assert np.all((own % 3 == group) | (group == 0))
    assert sorted(np.concatenate([read.indices_E for read in found])) == sorted(list(range(50)) * 2)
    assert len(found[3].indices_E) == 0


@pytest.mark.parametrize("merged", [1, 40, shuffle.MERGED])
def test_merging_runs_equals_one_sort_of_all_candidates(tmp_path, monkeypatch, merged):
    """Queries that are in one run, in several, twice in one, and in none; merged one, a few, or all at a time."""
    monkeypatch.setattr(shuffle, "MERGED", merged)
    monkeypatch.setattr(shuffle, "PIECE", 30 if merged == 40 else 1 << 20)  # candidates of six queries
    rng = np.random.default_rng(0)
    candidates = {query: {} for query in range(10)}
    for run in range(3):
        queries = np.delete(rng.integers(0, 10, 14), 0)
        queries = queries[queries != 4]
        indices = np.stack([rng.choice(30, 5, replace=False) for _ in queries])
        similarities = np.round(np.cos(queries[:, None] * 3.0 + indices), 3).astype(np.float32)
        shuffle.write_run(
            tmp_path, run, [(queries[:6], indices[:6], similarities[:6]), (queries[6:], indices[6:], similarities[6:])]
        )
        for query, row, values in zip(queries.tolist(), indices.tolist(), similarities.tolist(), strict=True):
            candidates[query] |= dict(zip(row, values, strict=True))
    for start, stop in ((0, 10), (3, 5), (4, 5)):
        found, values = shuffle.merge(tmp_path, range(3), start, stop, 7)
        for query in range(start, stop):
            best = sorted(candidates[query].items(), key=lambda entry: (-entry[1], entry[0]))[:7]
            kept = found[query - start] != MISSING
            assert list(zip(found[query - start][kept], values[query - start][kept], strict=True)) == best


def test_kmeans_is_lloyds_and_the_mesh_changes_little():
    vectors = clustered(803, clusters=12)
    centroids = vectors[np.linspace(0, 802, 12).astype(int)]
    for _ in range(4):
        nearest = np.argmax(vectors @ centroids.T, axis=1)
        sums = np.stack([vectors[nearest == place].sum(axis=0) for place in range(12)])
        centroids = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(kmeans.train(vectors, 12, MESH, rounds=4), centroids, atol=1e-5)
    nearest = kmeans.Assign(centroids, 3, MESH)(vectors)
    np.testing.assert_array_equal(nearest, np.argsort(-(vectors @ centroids.T), axis=1, kind="stable")[:, :3])


@pytest.mark.parametrize("size", [100, 600])
def test_partitions_find_nearly_what_one_index_finds(tmp_path, monkeypatch, size):
    """Guards the routing: with small partitions the search in each is exact, so what is missing was never asked for."""
    if size >= scann_search.SMALLEST:
        pytest.importorskip("scann")
    vectors = clustered(size * 4, clusters=40)
    parts = partitioned.Partitioned(InMemory(vectors), Neighbors(top_k=10), 4, MESH, tmp_path)
    parts.prepare()
    indices, similarities = parts.search(0, len(vectors))
    expected, expected_similarities = straightforward(vectors, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(indices, expected, strict=True)]) > 0.95
    assert not np.any(indices == np.arange(len(vectors))[:, None])
    np.testing.assert_allclose(similarities, np.sum(vectors[:, None] * vectors[indices], axis=-1), atol=1e-5)


def test_partitions_own_whole_leaves_of_about_even_weight_and_queries_do_not_ask_everywhere(tmp_path):
    vectors = clustered(4000, clusters=200)
    parts = partitioned.Partitioned(InMemory(vectors), Neighbors(top_k=10), 8, MESH, tmp_path)
    parts._divide()
    groups = [shuffle.Shuffle(tmp_path, 8, 32).read(group) for group in range(8)]
    inside = [int(np.count_nonzero(group.tags_E)) for group in groups]
    assert sum(inside) == 4000 and max(inside) < 1.5 * 500
    assert sum(len(group.indices_E) for group in groups) < 0.8 * 8 * 4000
    for group in groups:
        assert len(set(group.indices_E.tolist())) == len(group.indices_E)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    shuffle.check_stamp(tmp_path, {"vectors": "a"})
    (tmp_path / "kept").write_text("")
    shuffle.check_stamp(tmp_path, {"vectors": "a"})
    with pytest.raises(SbpError, match="other vectors"):
        shuffle.check_stamp(tmp_path, {"vectors": "b"})
    assert (tmp_path / "kept").exists()
