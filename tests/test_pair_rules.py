"""The rules of pairs, each by what it has to catch and by what it must leave alone."""

import json
from itertools import pairwise

import numpy as np
import pytest

from sbp_jax.artifacts import parquet
from sbp_jax.config import Pairs
from sbp_jax.data import boilerplate, by_hash, by_target, pair_evidence
from sbp_jax.errors import SbpError
from tests.test_pairs import Corpus, sentence
from tests.test_screen import ENGLISH, GERMAN, Killed, dying

LICENCE = sentence(999, 150)
ANY = Pairs(threshold=0.5, minimum=0)


def chain(count: int) -> list[tuple[int, int, float]]:
    """Each document a neighbour of the next and of the one before."""
    return [pair for a, b in pairwise(range(count)) for pair in ((a, b, 0.8), (b, a, 0.8))]


def test_a_licence_neither_makes_nor_unmakes_near_duplicates(tmp_path):
    """Twelve documents end in one licence, three times as long as what they say; two of them say the same."""
    said = [sentence(place, 50) for place in range(11)]
    texts = [f"{text} {LICENCE}" for text in [*said, f"{said[10]} Slightly longer."]]
    corpus = Corpus(tmp_path, texts, chain(12))
    artifact = corpus.pairs(ANY, context=500)
    rows = {(row["d1"], row["d2"]): row for row in parquet.read(artifact).to_pylist()}
    assert {pair for pair, row in rows.items() if row["verdict"] == "near_duplicate"} == {(10, 11), (11, 10)}
    assert {row["verdict"] for row in rows.values()} == {"near_duplicate", "accepted"}
    licensed = 150 - 12
    assert (rows[3, 4]["shared"], rows[3, 4]["boilerplate"], rows[3, 4]["containment"]) == (0, licensed, 0)
    copy = rows[10, 11]
    assert (copy["shared"], copy["boilerplate"], copy["containment"]) == (50 - 12, licensed, 1)
    # Shingles in no more documents than pairs.common are none: the licence then makes copies of all.
    assert set(corpus.verdicts(Pairs(threshold=0.5, minimum=0, common=12), "all").values()) == {"near_duplicate"}


@pytest.mark.parametrize("changed", [0, 1, 4])
def test_copies_of_nothing_but_boilerplate_are_near_duplicates(tmp_path, changed):
    """Thirty descriptions that differ in a few words each: all they share is boilerplate."""
    texts = []
    for copy in range(30):
        words = LICENCE.split()
        for change in range(changed):
            words[20 + 30 * change] = f"version{copy}x{change}"
        texts.append(" ".join(words))
    corpus = Corpus(tmp_path, texts, chain(30))
    table = parquet.read(corpus.pairs(ANY, context=500))
    assert set(table["verdict"].to_pylist()) == {"near_duplicate"}
    assert min(table["containment"].to_pylist()) == np.float32((138 - 13 * changed) / 138)


@pytest.mark.parametrize("copies", [5, 12])
def test_many_mirrors_of_one_article_are_near_duplicates_whatever_stands_around_it(tmp_path, copies):
    """More than pairs.common of them make the article itself look like boilerplate."""
    article = sentence(500, 300)
    texts = [f"{sentence(place, 20)} {article} {sentence(100 + place, 20)}" for place in range(copies)]
    verdicts = Corpus(tmp_path, texts, chain(copies)).verdicts(ANY)
    assert set(verdicts.values()) == {"near_duplicate"}


def test_random_pairs_need_not_be_mutual(tmp_path):
    corpus = Corpus(tmp_path, [sentence(place) for place in range(3)], [(0, 1, 0.1), (1, 2, 0.2)])
    mutual = Pairs(threshold=0.5, minimum=0, mutual=True)
    assert set(corpus.verdicts(mutual, "random", window=False).values()) == {"accepted"}


def test_an_item_on_either_side_rejects_a_pair(tmp_path):
    item = "Which of these two planets, seen from the Earth, is the brighter one at night?"
    (tmp_path / "set.jsonl").write_text(json.dumps({"query": item, "answer": "Venus"}) + "\n")
    texts = [sentence(place) for place in range(4)]
    texts[1] += f" {item} {sentence(50)}"
    texts[3] += " Which of these two planets is the brighter one at night?"
    corpus = Corpus(tmp_path, texts, chain(4), evaluations=(str(tmp_path / "set.jsonl"),))
    verdicts = corpus.verdicts(ANY)
    assert {pair for pair, verdict in verdicts.items() if verdict == "contaminated"} == {(0, 1), (1, 0), (1, 2), (2, 1)}
    assert set(verdicts.values()) == {"contaminated", "accepted"}


def test_a_hub_keeps_its_most_similar_pairs_and_rejected_ones_do_not_count(tmp_path):
    texts = [sentence(place) for place in range(6)]
    texts[1] = f"{texts[0]} and a little more"  # a copy, and the most similar
    texts[2] = sentence(2, 300)  # too long
    neighbors = [(1, 0, 0.99), (2, 0, 0.9), (3, 0, 0.7), (4, 0, 0.8), (5, 0, 0.7), (5, 4, 0.6), (5, 3, 0.45)]
    corpus = Corpus(tmp_path, texts, neighbors, per_shard=10)
    expected = {
        **{(1, 0): "near_duplicate", (2, 0): "too_long", (3, 0): "accepted", (4, 0): "accepted", (5, 0): "hub"},
        **{(5, 4): "accepted", (5, 3): "too_distant"},
    }
    assert corpus.verdicts(Pairs(threshold=0.5, minimum=0, max_targets=2)) == expected
    # Ties go to the lower ordinal, as does the single place here among two equals at the top.
    first = corpus.verdicts(Pairs(threshold=0.5, minimum=0, max_targets=1), "one")
    assert first == expected | {(3, 0): "hub"}
    assert "hub" not in corpus.verdicts(ANY, "any").values()


def test_mirrored_sources_are_capped_for_each_document(tmp_path):
    """A mirror of one site offers every page its own copies as relatives."""
    texts = [sentence(place) for place in range(6)]
    neighbors = [(0, 1, 0.9), (0, 2, 0.8), (0, 3, 0.7), (0, 4, 0.6), (5, 4, 0.9), (5, 0, 0.8)]
    corpus = Corpus(tmp_path, texts, neighbors, sources=["a", "a", "b", "a", "a", "c"])
    verdicts = corpus.verdicts(Pairs(threshold=0.5, minimum=0, same_source=1))
    assert {pair for pair, verdict in verdicts.items() if verdict == "same_source"} == {(0, 3), (0, 4)}
    none = corpus.verdicts(Pairs(threshold=0.5, minimum=0, same_source=0), "none")
    assert {pair for pair, verdict in none.items() if verdict == "same_source"} == {(0, 1), (0, 3), (0, 4)}


def test_language_length_and_mutuality_reject_only_where_asked(tmp_path):
    texts = [ENGLISH, GERMAN, "1 2 3 4 5 6 7 8", f"{sentence(1, 10)}. {ENGLISH}", sentence(2, 100)]
    neighbors = [(0, 1, 0.9), (0, 2, 0.9), (0, 3, 0.8), (0, 4, 0.7), (1, 0, 0.9)]
    corpus = Corpus(tmp_path, texts, neighbors)

    def rejected(name: str, **rule: float) -> set[tuple[int, int]]:
        settings = Pairs(threshold=0.5, minimum=0, near_duplicate=1.5, **rule)
        return {pair for pair, verdict in corpus.verdicts(settings, name).items() if verdict != "accepted"}

    assert rejected("none") == set()
    assert rejected("language", same_language=True) == {(0, 1), (1, 0)}  # an unknown language is not another
    assert rejected("length", length_ratio=0.4) == {(0, 4)}
    assert rejected("mutual", mutual=True) == {(0, 2), (0, 3), (0, 4)}
    assert rejected("maximum", maximum=0.85) == {(0, 1), (0, 2), (1, 0)}


def test_copies_whose_product_is_rounded_above_one_are_near_duplicates(tmp_path):
    corpus = Corpus(tmp_path, [sentence(0), sentence(0)], [(0, 1, 1.0000002), (1, 0, 1.0000002)])
    assert set(corpus.verdicts(Pairs(threshold=0.5, minimum=0)).values()) == {"near_duplicate"}


def test_random_pairs_know_no_window(tmp_path):
    corpus = Corpus(tmp_path, [sentence(0), sentence(1)], [(0, 1, -0.2), (1, 0, 0.1)])
    table = parquet.read(corpus.pairs(Pairs(threshold=0.75, maximum=0.8, minimum=2), window=False))
    assert table["verdict"].to_pylist() == ["accepted"] * 2


def test_a_neighbour_without_a_text_or_tokens_is_named(tmp_path):
    corpus = Corpus(tmp_path, [sentence(0), sentence(1)], [(0, 1, 0.9), (1, 7, 0.9)])
    with pytest.raises(SbpError, match="names the document with ordinal 7, which is no screened one"):
        corpus.pairs(ANY)
    corpus.tokens = Corpus(tmp_path / "other", [sentence(0)], [(0, 0, 0.9)]).tokens
    with pytest.raises(SbpError, match="has 1 documents and none with ordinal 1"):
        corpus.pairs(ANY, name="again")


def mixed(folder) -> Corpus:
    """Related documents, copies, licences and hubs over several shards."""
    rng = np.random.default_rng(0)
    texts = [sentence(place % 25, 30 + place) + (f" {LICENCE}" if place % 3 == 0 else "") for place in range(40)]
    near = [
        (a, int(b), float(s)) for a in range(40) for b, s in zip(rng.permutation(40)[:8], rng.random(8), strict=True)
    ]
    return Corpus(folder, texts, [pair for pair in near if pair[0] != pair[1]], per_shard=39)


RULES = Pairs(threshold=0.3, minimum=1, max_targets=2, same_source=2, mutual=False)


def test_what_is_done_range_by_range_is_what_is_done_at_once(tmp_path, monkeypatch):
    """A group cut in two by a range would pass twice the cap of a hub, or half of the boilerplate."""
    corpus = mixed(tmp_path)
    whole = corpus.pairs(RULES, 400, "whole")
    assert min(whole.stats[name] for name in ("accepted", "near_duplicate", "hub", "same_source", "too_distant")) > 0
    monkeypatch.setattr(by_target, "RANGE", 7)
    monkeypatch.setattr(by_hash, "RANGE", 100)
    monkeypatch.setattr(boilerplate, "DOCUMENTS", 3)
    monkeypatch.setattr(pair_evidence, "AT_ONCE", 500)
    cut = corpus.pairs(RULES, 400, "cut")
    assert (cut.files, cut.stats) == (whole.files, whole.stats)


def test_a_run_killed_at_every_file_resumes_to_the_same_bytes(tmp_path):
    corpus = mixed(tmp_path)
    whole = corpus.pairs(RULES, 400, "whole")
    deaths, resumed = 0, None
    while resumed is None and deaths < 200:
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, 2)  # so each life finishes one file
            try:
                resumed = corpus.pairs(RULES, 400, "resumed")
            except Killed:
                deaths += 1
    assert deaths > 3 * len(whole.files)
    assert (resumed.files, resumed.stats) == (whole.files, whole.stats)
    assert not (tmp_path / "resumed" / "scratch").exists()
