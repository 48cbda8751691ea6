"""Shingles: what counts as a copy of a text."""

import re
import unicodedata

import numpy as np
import pytest

from sbp_jax.text.near_duplicates import CopyIndex
from sbp_jax.text.shared_shingles import Gathered, shared
from sbp_jax.text.shingles import WORD, containment, jaccard, shingles, words


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of few distinct words, many with a passage of an earlier text or a shared licence in them."""
    rng = np.random.default_rng(seed)
    licence = " ".join(f"licence{i}" for i in range(30))
    texts: list[str] = []
    for _ in range(count):
        words = [f"w{i}" for i in rng.integers(0, 40, rng.integers(0, 60))]
        if texts and rng.random() < 0.5:
            other = texts[rng.integers(len(texts))].split()
            start = int(rng.integers(0, max(1, len(other))))
            words += other[start : start + int(rng.integers(5, 50))]
        texts.append(" ".join(words) + (f" {licence}" if rng.random() < 0.5 else ""))
    return texts


def grams(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    length = min(length, len(words))
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)} if words else set()


@pytest.mark.parametrize("length", [1, 3, 13])
def test_hashed_shingles_measure_what_sets_of_word_tuples_measure(length):
    """A rolling hash that ignores word order, or drops the last n-gram, gives other overlaps."""
    texts = [*random_texts(30), "", "one two three", "three two one", "One, TWO; three!", "a b a b a b"]
    hashed, exact = [shingles(text, length) for text in texts], [grams(text, length) for text in texts]
    for a, exact_a in zip(hashed, exact, strict=True):
        assert len(a) == len(exact_a)
        assert np.all(a[1:] > a[:-1])
        for b, exact_b in zip(hashed, exact, strict=True):
            shared = len(exact_a & exact_b)
            assert containment(a, b) == (shared / min(len(a), len(b)) if len(a) and len(b) else 0)
            assert jaccard(a, b) == (shared / len(exact_a | exact_b) if exact_a | exact_b else 0)


def test_a_text_of_fewer_words_is_one_shingle():
    assert len(shingles("only four words here")) == 1
    assert np.array_equal(shingles("Only four\nwords, here."), shingles("only four words here"))
    assert shingles("… !").dtype == np.uint64 and len(shingles("… !")) == 0


@pytest.mark.parametrize(
    "text",
    [
        "plain words_1 2",
        "Çà et là: naïve café",
        "我们在北京，2024年3月。ok吗",
        "カタカナとひらがな、漢字",
        "ภาษาไทย ok",
        "한국어 문장",
        "𠀀𠀁 x𠀂y",
    ],
)
def test_words_are_those_of_the_pattern_in_any_script(text):
    """Words of scripts without spaces, taken as runs, are whole sentences, of which no two texts share any."""
    found = words([text, "between", text])
    pattern = WORD.findall(text.lower())
    assert np.diff(found.offsets).tolist() == [len(pattern), 1, len(pattern)]
    hashes, again = found.hashes_W[found.text(0)], found.hashes_W[found.text(2)]
    assert np.array_equal(hashes, again)
    assert [hashes[i] == hashes[j] for i in range(len(hashes)) for j in range(i)] == [
        pattern[i] == pattern[j] for i in range(len(pattern)) for j in range(i)
    ]
    assert found.lettered_W[found.text(0)].tolist() == [any(map(str.isalpha, word)) for word in pattern]


def test_a_chinese_copy_with_an_edit_is_a_near_duplicate():
    text = "".join(chr(0x4E00 + number * 37 % 5000) for number in range(120))
    edited = text[:60] + "新" + text[60:]
    assert containment(shingles(text), shingles(edited)) > 0.8
    assert containment(shingles(text), shingles(text[::-1])) == 0


def test_accents_count_alike_however_they_are_encoded():
    text = "Les élèves préfèrent être à la plage où l'été déçoit rarement même les naïfs âgés"
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert np.array_equal(shingles(decomposed), shingles(text))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.8, 1.0, 1e-9])
def test_the_index_finds_what_comparing_all_pairs_finds(threshold):
    """A candidate filter that is too tight loses copies, silently."""
    texts = [shingles(text, 5) for text in random_texts(120)]
    queries = [shingles(text, 5) for text in random_texts(160)[100:]] + [shingles("", 5)]
    index = CopyIndex(enumerate(texts), threshold)
    removed = {3, 50, 51}
    for gone in (set(), removed):
        index.remove(gone)
        for query in queries:
            expected = [i for i, text in enumerate(texts) if i not in gone and containment(text, query) >= threshold]
            assert index.copies(query) == expected
        together = {number for query in queries for number in index.copies(query)}
        assert index.copies_of_any(np.concatenate(queries), np.array([len(query) for query in queries])) == together


def test_a_shared_licence_makes_no_candidates(monkeypatch):
    """Verifying every pair that shares boilerplate is quadratic in the corpus."""
    licence = " ".join(f"licence{i}" for i in range(40))
    texts = [shingles(" ".join(f"own{n}x{i}" for i in range(80)) + " " + licence) for n in range(50)]
    index = CopyIndex(enumerate(texts[1:]), 0.5)
    compared = []
    monkeypatch.setattr(
        "sbp_jax.text.near_duplicates.containment", lambda a, b: compared.append(1) or containment(a, b)
    )
    assert index.copies(texts[0]) == []
    assert not compared


@pytest.mark.parametrize("spread", [1, 2**54])
@pytest.mark.parametrize("sizes", [(0, 1), (0, 40), (30, 200)])
def test_shared_shingles_of_many_pairs_are_the_intersections(spread, sizes):
    """Crowded hashes share their low bits and, spread out, their high ones: places in the tables are fought over."""
    random = np.random.default_rng(sizes[1])

    def gathered(texts: list[np.ndarray], stored: np.ndarray) -> Gathered:
        return Gathered(np.concatenate(texts), np.array([len(text) for text in texts]), stored)

    def some() -> np.ndarray:
        values = random.integers(0, 300, random.integers(*sizes, endpoint=True))
        return np.unique(values.astype(np.uint64) * np.uint64(spread))

    first, second = [some() for _ in range(6)], [some() for _ in range(50)]
    which = np.sort(random.integers(0, 6, 50))
    at_a, at_b = 1000 * np.arange(6), 500 * np.arange(50)
    pairs, places_a, places_b = shared(gathered(first, at_a), which, gathered(second, at_b))
    for pair in range(50):
        a, b = first[which[pair]], second[pair]
        _, in_a, in_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
        of_pair = pairs == pair
        assert (np.sort(places_a[of_pair]) == at_a[which[pair]] + in_a).all()
        assert (np.sort(places_b[of_pair]) == at_b[pair] + in_b).all()
        assert np.count_nonzero(of_pair) == len(in_a)
