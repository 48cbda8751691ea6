"""The scores of synthetic documents against plain ways to compute them, and the indexes that they are looked up in."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from sbp_jax.artifacts import Output, Recipe
from sbp_jax.data import by_hash, earlier_copies, shingle_index
from sbp_jax.data.screened import Ragged, save
from sbp_jax.text.common_runs import Sequences, common
from sbp_jax.text.repetition import repetition
from sbp_jax.text.sentences import last_end
from sbp_jax.text.shingles import containment, shingle_sets, shingles, words


def _random_texts(count: int, seed: int, vocabulary: int = 6, longest: int = 90) -> list[str]:
    """Texts of few distinct words, so that runs of many lengths are common by chance."""
    random = np.random.default_rng(seed)
    return [
        " ".join(f"w{n}" for n in random.integers(0, vocabulary, random.integers(0, longest))) for _ in range(count)
    ]


def _longest_run(a: list[str], b: list[str]) -> int:
    """By the table of all pairs of places."""
    before, best = [0] * (len(b) + 1), 0
    for word in a:
        before = [0, *(before[place] + 1 if word == other else 0 for place, other in enumerate(b))]
        best = max(best, *before)
    return best


@pytest.mark.parametrize("vocabulary", [1, 2, 6, 1000])
def test_the_longest_common_run_is_that_of_comparing_all_places(vocabulary: int) -> None:
    """Guards against a run that crosses from one text into the next, and against a length that is skipped."""
    texts = _random_texts(40, vocabulary, vocabulary)
    others = _random_texts(40, vocabulary + 1, vocabulary)
    for place in range(0, 40, 2):  # with passages of every length
        middle = others[place].split()
        others[place] = " ".join([*middle[: len(middle) // 2], *texts[place].split()[place // 4 :], "x"])
    read = [[place, *range(place % 4)] if place % 5 else [] for place in range(40)]
    found, stored = words(texts), words([others[other] for several in read for other in several])
    owners = np.repeat(np.arange(40), [len(several) for several in read])
    own = Sequences(found.hashes_W, np.diff(found.offsets), np.arange(40))
    shared = common(own, Sequences(stored.hashes_W, np.diff(stored.offsets), owners), 40)
    for place, several in enumerate(read):
        mine = texts[place].split()
        assert shared.longest_T[place] == max((_longest_run(mine, others[o].split()) for o in several), default=0)
        theirs = {tuple(o[i : i + 13]) for n in several for o in [others[n].split()] for i in range(len(o) - 12)}
        assert shared.shingles_T[place] == len({tuple(mine[i : i + 13]) for i in range(len(mine) - 12)} & theirs)


def test_shingle_sets_are_the_shingles_of_each_text() -> None:
    texts = ["", *_random_texts(30, 0, 3), "one two", "one two"]
    hashes, counts = shingle_sets(words(texts))
    expected = [shingles(text) for text in texts]
    assert counts.tolist() == list(map(len, expected))
    np.testing.assert_array_equal(hashes, np.concatenate(expected))


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_repetition_counts_ngrams_that_were_there_before(length: int) -> None:
    texts = ["a b c d A, b; c d", "a b c", "", "x " * 14, *_random_texts(30, 1)]
    expected = []
    for text in texts:
        found = re.findall(r"\w+", text.lower())
        grams = [tuple(found[i : i + length]) for i in range(len(found) - length + 1)]
        expected.append(1 - len(set(grams)) / len(grams) if grams else 0)
    np.testing.assert_allclose(repetition(words(texts), length), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two! Thr", "One. Two!"),
        ('He said "yes." And th', 'He said "yes."'),
        ("It costs 3.14 and mo", ""),
        ("这是一句话。这是第二", "这是一句话。"),
        ("Is it?", "Is it?"),
        ("", ""),
    ],
)
def test_the_last_sentence_ends_where_a_reader_ends_it(text: str, kept: str) -> None:
    assert text[: last_end(text)] == kept


def _scratch(folder: Path, name: str = "scratch") -> Output:
    return Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)


@pytest.mark.parametrize("shards", [1, 5])
def test_the_filter_misses_nothing_and_errs_as_often_as_it_says(
    tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the stated error rate, and blocks at the seams of ranges and chunks."""
    monkeypatch.setattr(by_hash, "RANGE", 50_000)
    monkeypatch.setattr(shingle_index, "AT_ONCE", 1000)
    random = np.random.default_rng(0)
    values = random.integers(0, 2**64, 200_000, np.uint64)
    scratch = _scratch(tmp_path)
    for index, part in enumerate(np.array_split(values, shards)):
        save(scratch, f"sorted-{index}.npy", np.sort(part))
    files = [scratch.path / f"sorted-{index}.npy" for index in range(shards)]
    exact = shingle_index.build(scratch, "exact", files, exact=True)
    bloom = shingle_index.build(scratch, "bloom", files, exact=False)
    others = random.integers(0, 2**64, 2_000_000, np.uint64)
    assert exact.holds(values).all() and bloom.holds(values).all()
    assert not exact.holds(others).any()
    wrong = np.mean(bloom.holds(others))
    assert 0.0005 < bloom.false_positives < 0.0015
    assert wrong == pytest.approx(bloom.false_positives, abs=4 * np.sqrt(bloom.false_positives / len(others)))


def test_an_index_without_shingles_holds_none(tmp_path: Path) -> None:
    scratch = _scratch(tmp_path)
    for exact in (True, False):
        index = shingle_index.build(scratch, f"index-{exact}", [], exact)
        assert not index.holds(np.arange(100, dtype=np.uint64)).any()


def test_the_index_is_exact_where_it_fits_into_a_part_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shingle_index, "memory", lambda: 4000)
    assert shingle_index.is_exact("auto", 100) and not shingle_index.is_exact("auto", 101)
    assert shingle_index.is_exact("exact", 101) and not shingle_index.is_exact("bloom", 1)


def test_copies_are_those_of_comparing_each_document_with_all_that_stay(tmp_path: Path) -> None:
    """Guards sketches that miss a near-copy, and judgements that depend on shards."""
    random = np.random.default_rng(0)
    texts: list[str] = []
    for _ in range(300):
        fresh = [f"w{n}" for n in random.integers(0, 5000, random.integers(20, 500))]
        if texts and random.random() < 0.4:  # a passage of an earlier text, with words of its own around it
            other = texts[random.integers(len(texts))].split()
            length = int(len(other) * random.uniform(0.3, 1))
            start = int(random.integers(0, len(other) - length + 1))
            fresh = [*fresh[: len(other) // 4], *other[start : start + length], *fresh[-len(other) // 4 :]]
        texts.append(" ".join(fresh))
    seeds, stays = random.integers(-1, 3, 300), random.random(300) < 0.8
    least = 0.4, 0.6
    expected = []
    sets = [shingles(text) for text in texts]
    kept = stays.copy()
    for row in range(300):
        of = -1.0
        for earlier in itertools.filterfalse(lambda other: not kept[other], range(row)):
            same = seeds[row] == seeds[earlier] >= 0
            if (found := containment(sets[row], sets[earlier])) >= least[0 if same else 1] and found > of:
                of = found
        kept[row] &= of < 0
        expected.append(of)
    scratch, bounds = _scratch(tmp_path), np.array([0, 100, 100, 250, 300])
    for shard, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
        hashes = np.concatenate([np.empty(0, np.uint64), *sets[start:stop]])
        counts = np.array(list(map(len, sets[start:stop])), np.int64)
        save(scratch, f"shingles-{shard}.npy", hashes)
        save(scratch, f"starts-{shard}.npy", np.concatenate(([0], np.cumsum(counts))).astype(np.int64))
        earlier_copies.save_sketches(scratch, f"sketches-{shard}.npy", start, hashes, counts, stays[start:stop])
    stored = Ragged(*([scratch.path / f"{kind}-{shard}.npy" for shard in range(4)] for kind in ("shingles", "starts")))
    names = earlier_copies.save_copies(scratch, [f"sketches-{shard}.npy" for shard in range(4)], stored, bounds)
    remaining, of = stays.copy(), []
    for name, (start, stop) in zip(names, itertools.pairwise(bounds.tolist()), strict=True):
        copies = np.load(scratch.path / name)
        found = earlier_copies.judge(copies, slice(start, stop), seeds, remaining, least)
        of += found.of_R.tolist()
        scores = np.maximum(found.sibling_R, found.duplicate_R)
        for row in np.flatnonzero(found.of_R >= 0):
            assert containment(sets[start + row], sets[found.of_R[row]]) == pytest.approx(expected[start + row])
            assert scores[row] >= np.float32(expected[start + row])
    assert [place >= 0 for place in of] == [score >= 0 for score in expected]
    np.testing.assert_array_equal(remaining, kept)
    assert 30 < np.count_nonzero(stays & ~kept) < 150
