"""The parts of the quality of synthetic text, each against a plain way to the same number."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from sbp_jax.quality import corpus, duplicates, grams, variety
from sbp_jax.quality.measures import MEASURES
from sbp_jax.quality.samples import spread
from sbp_jax.scoring.share import share
from sbp_jax.text.shingles import containment, shingle_sets, shingles, words


@pytest.mark.parametrize("degrees", [[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [2, 2, 2, 1, 1, 0], [5] * 6])
def test_duplicates_at_n_are_those_of_every_subset(degrees: list[int]) -> None:
    """Guards the formula, by listing all subsets; the copies of document i stand next to it in a circle or a clique."""
    groups = {0: [], 1: [[0, 1]], 2: [[0, 1, 2], [3, 4]], 5: [[0, 1, 2, 3, 4, 5]]}[max(degrees)]
    for drawn in range(1, 7):
        shares = []
        for subset in itertools.combinations(range(6), drawn):
            met = [any(i in group and len(set(group) & set(subset)) > 1 for group in groups) for i in subset]
            shares.append(np.mean(met))
        found = duplicates.probabilities(np.array(degrees), 6, drawn).mean()
        assert found == pytest.approx(np.mean(shares))


def test_duplicates_at_a_million_keep_their_digits() -> None:
    """Guards against products of many factors near 1, and degrees above what is left."""
    found = duplicates.probabilities(np.array([0, 1, 10_000_000 - 1]), 10_000_000, 1_000_000)
    assert found == pytest.approx([0, 999_999 / 9_999_999, 1], abs=1e-12)


def test_near_duplicates_are_those_of_comparing_all_pairs() -> None:
    """Guards the index behind the counts: passages of earlier texts, of many lengths, in batches."""
    random = np.random.default_rng(0)
    texts: list[str] = ["", "…", "one two three"]
    for _ in range(150):
        fresh = [f"w{n}" for n in random.integers(0, 5000, random.integers(5, 120))]
        if random.random() < 0.5:
            other = texts[random.integers(len(texts))].split()
            length = int(len(other) * random.uniform(0.3, 1))
            fresh = [*fresh[: len(other) // 3], *other[:length]]
        texts.append(" ".join(fresh))
    sets = [shingles(text) for text in texts]
    expected = [
        sum((containment(a, b) >= 0.5) or (not len(a) and not len(b)) for place, b in enumerate(sets) if place != own)
        for own, a in enumerate(sets)
    ]
    chosen = spread(len(texts), 70)
    found, counts = shingle_sets(words([texts[place] for place in chosen]))
    degrees = duplicates.Degrees(chosen, found, counts)
    for start in range(0, len(texts), 32):
        some = texts[start : start + 32]
        degrees.add(np.arange(start, start + len(some)), *shingle_sets(words(some)))
    assert degrees.size == len(texts)
    assert degrees.degrees().tolist() == [expected[place] for place in chosen] and sum(expected) > 30


@pytest.mark.parametrize("sparsity", [2, 0])
def test_hashes_that_drive_one_another_out_are_still_found(sparsity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "SPARSITY", sparsity)  # 0: nearly all share a place
    random = np.random.default_rng(0)
    keys = np.unique(random.integers(0, 2**64, 1000, np.uint64))
    asked = np.concatenate([random.choice(keys, 500), random.integers(0, 2**64, 500, np.uint64)])
    expected = [int(np.searchsorted(keys, value)) if value in set(keys.tolist()) else -1 for value in asked]
    assert grams.Table(keys).find(asked).tolist() == expected
    assert grams.Table(keys[:0]).find(asked).tolist() == [-1] * 1000


def test_documents_with_an_ngram_are_counted_once_each_and_the_first_are_named() -> None:
    """Guards an n-gram that one document has often, and one that more documents have than are counted."""
    seen = grams.Seen(np.array([0, 0, 1]), np.array([5, 7, 5], np.uint64), names=True)
    hit = seen.add(np.array([0, 0, 1, 2]), np.array([5, 5, 9, 5], np.uint64), np.array([10, 11, 12]))
    assert hit.tolist() == [0, 2]
    seen.add(np.array([0, 1, 2]), np.array([5, 5, 7], np.uint64), np.array([13, 14, 15]))
    assert seen.documents_K.tolist() == [3, 1]
    assert seen.first_KS is not None and seen.first_KS.tolist() == [[10, 12, 13], [15, -1, -1]]
    assert seen.others_G(np.array([True, False])).tolist() == [True, False, True]


def test_the_most_frequent_passage_is_counted_once_a_document() -> None:
    repeated = "a b c d e f g h " * 5
    texts = [repeated, "x one two three four five six seven eight y", "one two three four five six seven eight"]
    found = variety.variety(texts, variety.size(texts))
    assert found.passage == ("one two three four five six seven eight", 2)
    assert found.openings[0][1] == 1
    empty = variety.variety(["", "…"], variety.size(["", "…"]))
    assert (empty.passage, empty.openings, empty.distinct[2]) == (("", 0), [], None)


def test_a_measured_text_has_the_shingles_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "BATCH", 3)
    texts = [f"{number} and {number + 1} and so on" for number in range(10)]
    found = corpus.hashed(texts)
    assert [found.of(place).tolist() for place in range(10)] == [shingles(text).tolist() for text in texts]
    assert len(found.words) == 4


@pytest.mark.parametrize(
    ("having", "documents", "low", "high"),
    [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
)
def test_intervals_of_shares_are_wilsons(having: int, documents: int, low: float, high: float) -> None:
    """The values are those of Newcombe (1998), method 3, for 10 trials."""
    found = share(having, documents)
    assert (found.value, found.low, found.high) == pytest.approx((having / documents, low, high), abs=1e-4)


def test_every_measure_is_defined_in_the_docs() -> None:
    """Guards against a column that no page explains."""
    page = Path("docs/quality.md").read_text()
    assert not [name for name in MEASURES if f"`{name}`" not in page and f"`{name.rstrip('0123456789')}" not in page]
    assert all(entry.definition and entry.better in ("smaller", "greater", None) for entry in MEASURES.values())


def test_chosen_places_are_spread_evenly() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9] and spread(3, 10).tolist() == [0, 1, 2] and len(spread(0, 5)) == 0
    assert len(spread(10**7, 2000)) == 2000
