"""The stage `quality` on planted cases: what is planted is found, in its row and in no other."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import Corpus, Evaluation, Experiment
from sbp_jax.graph import graph
from sbp_jax.quality.measures import MEASURES
from sbp_jax.text.contamination import Evaluations
from tests.quality_inputs import inputs, measured, text

WORDS = 60
REAL = [(text(number), "capped") for number in range(30)] + [
    (text(30 + n), ("validation", "test")[n % 2]) for n in range(20)
]
REAL += [(text(60), "oracle"), (text(61), "unused")]
PAIRS = [(number, (number + 1) % 30) for number in range(30)]
CLEAN = [{"text": text(1000 + number), "read": [number % 30]} for number in range(30)]
HELD_OUT, ORACLE, ITEM = 31, 50, "which of these planets is the largest one in the solar system by far"


def _of(made: Artifact) -> dict[str, Any]:
    return json.loads(made.file("quality.json").read_text())


def _row(found: dict[str, Any], group: str) -> dict[str, Any]:
    (row,) = [row for row in found["rows"] if row["group"] == group]
    return row


def _documents(made: Artifact, group: str) -> list[dict[str, Any]]:
    return [row for row in parquet.read(made).to_pylist() if row["group"] == group]


def _measure(folder: Path, made: list[dict[str, Any]], **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Some synthetic documents beside the clean ones: the result, and the rows of those documents."""
    artifact = measured(folder / "quality", inputs(folder, REAL, PAIRS, [*CLEAN, *made]), **more)
    return _of(artifact), _documents(artifact, "generated")[len(CLEAN) :]


def test_clean_documents_and_real_ones_show_no_fault(tmp_path: Path) -> None:
    """Guards against a real document that is taken for a copy of itself, of its pair or of its set."""
    found, _ = _measure(tmp_path, [])
    faults = ("repetition_rate", "duplicates", "duplicates_all", "copied", "corpus_copying", "corpus_run", "held_out")
    for group in ("real", "held_out", "generated", "accepted"):
        row = _row(found, group)
        assert [row[name] for name in faults] == [0] * 7 or group == "held_out"
        assert row["contaminated"] is None  # nobody looked
        assert row["novel_8"] == 1 and row["words"] == WORDS
    for group in ("real", "generated", "accepted", "random"):
        row = _row(found, group)
        assert row["pair_copying"] == row["seed_overlap"] == 0 and row["seed_run"] <= 1
    # None among 30 documents is no proof that there are none: Wilson's bound, for means as well.
    assert _row(found, "generated")["copied_high"] == _row(found, "generated")["repetition_rate_high"] > 0.1
    assert not found["collapsed"] and not [row for row in found["rows"] if row["group"] == "rejected"]
    assert set(MEASURES) == set(found["measures"]) <= set(_row(found, "real"))


def test_a_copy_of_the_seed_is_pair_copying(tmp_path: Path) -> None:
    """Guards the denominators: 40 of 60 words hold 28 of 48 shingles, in a text of 100 words 28 of 88."""
    seed, half = REAL[3][0], " ".join(REAL[3][0].split()[:40])
    made = [
        {"text": seed.upper(), "read": [3]},
        {"text": half, "read": [5, 3]},
        {"text": f"{half} {text(70)}", "read": [3]},
        {"text": f"{half} {text(70)}", "read": [4]},
        {"text": " ".join(seed.split()[10:17]), "read": [3]},  # shorter than a shingle
        {"text": f"{' '.join(seed.split()[10:16])} w", "read": [3]},
    ]
    found, rows = _measure(tmp_path, made)
    assert [row["seed_copy"] for row in rows] == [True, True, True, False, True, False]
    assert [row["seed_run"] for row in rows] == [60, 40, 40, 0, 7, 6]
    assert [row["seed_overlap"] for row in rows] == pytest.approx([1, 1, 28 / 88, 0, 0, 0])
    row = _row(found, "generated")
    assert row["pair_copying"] == pytest.approx(4 / 36) and row["pairs"] == 36
    assert row["pair_copying_low"] < 4 / 36 < row["pair_copying_high"] < 0.3
    assert _row(found, "real")["pair_copying"] == 0


def test_a_copy_of_any_capped_document_is_found_and_named(tmp_path: Path) -> None:
    """Guards against looking at seeds alone, and against documents that no model has seen as sources."""
    part = " ".join(REAL[7][0].split()[5:45])
    made = [
        {"text": f"{text(71, 20)} {part}", "read": [3]},
        {"text": f"{part} {text(72, 50)} {' '.join(REAL[8][0].split()[:20])}", "read": []},
        {"text": REAL[ORACLE][0], "read": [3]},
    ]
    found, rows = _measure(tmp_path, made)
    assert [row["nearest"] for row in rows] == [7, 7, -1]
    assert [row["run"] for row in rows] == [40, 40, 0]
    assert [row["containment"] for row in rows] == pytest.approx([28 / 48 * 1.0, 28 / 48, 0], abs=0.2)
    assert [row["copied"] for row in rows] == pytest.approx([28 / 48, 36 / 98, 0])
    assert [row["seed_run"] for row in rows][1] is None
    assert _row(found, "generated")["corpus_copying"] == pytest.approx(2 / 33)


def test_a_repeated_document_of_the_corpus_is_a_copy_though_a_document_is_none_of_itself(tmp_path: Path) -> None:
    real = [*REAL, (f"{REAL[2][0]} end", "capped"), (f"{REAL[2][0]} again", "oracle")]
    made = measured(tmp_path / "quality", inputs(tmp_path, real, PAIRS, CLEAN))
    rows = _documents(made, "real")
    assert {row["ordinal"]: row["nearest"] for row in rows if row["nearest"] >= 0} == {2: 52, 52: 2}
    assert [row["ordinal"] for row in rows if row["near_duplicates"]] == [2, 52]
    assert _row(_of(made), "real")["corpus_copying"] == pytest.approx(2 / 31)


def test_held_out_text_and_items_of_evaluation_sets_are_contamination(tmp_path: Path) -> None:
    """Guards against text that capped documents have too, which every arm sees anyway."""
    (tmp_path / "set.jsonl").write_text(json.dumps({"query": ITEM}) + "\n")
    shared = " ".join(REAL[HELD_OUT][0].split()[:30])
    real = [*REAL, (f"{shared} {text(80)}", "capped")]
    made = [
        {"text": f"{text(81, 40)} {' '.join(REAL[HELD_OUT][0].split()[30:])}", "read": [3]},
        {"text": f"{text(82, 40)} {shared}", "read": [3]},
        {"text": f"{text(83, 40)} {ITEM} {text(84, 40)}", "read": [3]},
    ]
    artifacts = inputs(tmp_path, real, PAIRS, [*CLEAN, *made])
    found = measured(tmp_path / "quality", artifacts, evaluations=Evaluations((str(tmp_path / "set.jsonl"),)))
    rows = _documents(found, "generated")[len(CLEAN) :]
    assert [row["held_out"] for row in rows] == pytest.approx([18 / 58, 0, 0])
    assert [row["copied"] for row in rows] == pytest.approx([0, 18 / 58, 0])
    assert [row["contaminated_by"] for row in rows] == ["", "", "set.jsonl"]
    assert _row(_of(found), "generated")["contaminated"] == pytest.approx(1 / 33)
    assert _row(_of(found), "real")["contaminated"] == 0


def test_documents_without_ngrams_leave_the_intervals_whole(tmp_path: Path) -> None:
    """Guards against draws of nothing but empty documents, which are 0 over 0."""
    lost = [{"text": "", "verdict": "too_short"}] * 4 + [{"text": text(98), "verdict": "copied"}, {"text": text(99)}]
    found, _ = _measure(tmp_path, [*lost, {"text": text(97), "verdict": "copied"}])
    numbers = [value for row in found["rows"] for value in row.values() if isinstance(value, float)]
    assert np.all(np.isfinite(numbers))
    row = _row(found, "rejected")
    assert row["documents"] == 6 and row["novel_8"] == row["novel_8_high"] == 1 and row["novel_8_low"] < 1


def test_repetition_is_of_the_document_by_itself(tmp_path: Path) -> None:
    circle = " ".join(["one two three four five"] * 12)
    found, rows = _measure(tmp_path, [{"text": circle}, {"text": text(85, 20, 10**6)}])
    assert [row["repetition"] for row in rows] == pytest.approx([1 - 5 / 57, 0])
    row = _row(found, "generated")
    assert row["repetition_rate"] == pytest.approx(1 / 32)
    # Of one among many, as drawn, the interval would begin below 0.
    assert row["repetition_low"] == 0 < row["repetition"] < row["repetition_high"] < 1


def test_copies_of_another_synthetic_document_are_duplicates_at_n(tmp_path: Path) -> None:
    """Guards Duplicate@N: 40 documents, 3 of one text and 2 of another; N is that of the smallest set, 30."""
    edited = " ".join("edited" if place % 25 == 24 else word for place, word in enumerate(text(90).split()))
    made = [
        {"text": own} for own in (text(90), edited, f"{text(90)} more", text(91), text(91), *map(text, range(92, 97)))
    ]
    found, rows = _measure(tmp_path, made)
    assert [row["near_duplicates"] for row in rows] == [2, 2, 2, 1, 1, 0, 0, 0, 0, 0]
    row = _row(found, "generated")
    two, one = (1 - np.prod([(10 - i) / (39 - i) for i in range(k)]) for k in (2, 1))
    assert found["drawn"] == 30 and row["documents_in_all"] == 40
    assert row["duplicates"] == pytest.approx((3 * two + 2 * one) / 40)
    assert row["duplicates_all"] == pytest.approx(5 / 40)
    assert found["duplicates_at"]["generated"]["40"] == pytest.approx(5 / 40)
    assert found["measures"]["duplicates"]["label"] == "Duplicate@30"


def test_a_template_is_a_collapse_and_real_text_is_none(tmp_path: Path) -> None:
    opening = "the history of the town begins"
    made = [{"text": f"{opening} {text(200 + n)} as we all know very well by now indeed"} for n in range(120)]
    found, _ = _measure(tmp_path, made)
    row, real = _row(found, "generated"), _row(found, "real")
    # 30 documents of each set are compared, those of this set drawn from 150.
    (first,) = [entry for entry in found["openings"] if entry["group"] == "generated"]
    assert first["opening"] == "the history of the town" and 18 <= first["documents"] <= 29
    assert row["opening"] == first["share"] == row["passage"] and real["opening"] == real["passage"] == 1 / 30
    assert {(flag["group"], flag["measure"]) for flag in found["collapsed"]} == {
        (group, measure) for group in ("generated", "accepted") for measure in ("opening", "passage")
    }
    assert {entry["passage"] for entry in found["passages"]} == {"as we all know very well by now"}
    assert row["compression"] > real["compression"]


def test_a_template_with_slots_is_a_collapse_without_a_common_passage(tmp_path: Path) -> None:
    """Guards against a look at openings and passages alone."""
    random = np.random.default_rng(0)

    def filled(number: int) -> str:
        slots = [f"s{value}" for value in random.integers(0, 40, 12)]
        return " ".join(f"{word} of the {slot} and its" for word, slot in zip(slots, slots[1:], strict=False))

    found = _of(measured(tmp_path / "quality", inputs(tmp_path, REAL, PAIRS, [{"text": filled(n)} for n in range(60)])))
    assert {(flag["group"], flag["measure"]) for flag in found["collapsed"]} == {
        (group, measure) for group in ("generated", "accepted") for measure in ("distinct_4", "compression")
    }
    (told,) = {flag["told"] for flag in found["collapsed"] if flag["measure"] == "compression"}
    assert told.startswith("they compress ")


def test_distinct_ngrams_are_counted_in_equally_many_words(tmp_path: Path) -> None:
    """Guards against a larger set that looks less varied because it is larger."""
    made = [{"text": text(300 + number, 60, 300)} for number in range(200)]
    real = [(text(600 + number, 60, 300), "capped") for number in range(40)] + REAL[30:]
    pairs = [(0, 1), (2, 3)]
    found = _of(measured(tmp_path / "quality", inputs(tmp_path, real, pairs, made)))
    row, reference = _row(found, "generated"), _row(found, "real")
    assert found["compared"]["words"] == 40 * 60
    assert row["distinct_2"] == pytest.approx(reference["distinct_2"], abs=0.01)
    assert row["distinct_1"] == pytest.approx(300 / 2400, abs=0.002)
    several = _row(found, "held_out")
    assert several["distinct_2"] is None  # too few words of it


def test_related_documents_are_told_from_unrelated_ones_by_their_words(tmp_path: Path) -> None:
    topics = [[f"t{topic}x{word}" for word in range(12)] for topic in range(40)]
    random = np.random.default_rng(0)

    def about(topic: int) -> str:
        common = [f"c{number}" for number in random.integers(0, 200, 40)]
        return " ".join(random.permutation([*common, *random.choice(topics[topic], 8)]))

    real = [(about(number % 40), "capped") for number in range(160)] + REAL[30:]
    pairs = [(number, number + 40) for number in range(120)]
    made = [{"text": about(n % 40 if n % 4 else (n + 5) % 40), "read": [n]} for n in range(160)]
    found = _of(measured(tmp_path / "quality", inputs(tmp_path, real, pairs, made)))
    assert _row(found, "random")["unrelated_words"] > 0.94
    assert _row(found, "real")["unrelated_words"] < 0.15
    assert 0.2 < _row(found, "generated")["unrelated_words"] < 0.4
    assert _row(found, "generated")["unrelated"] is None and found["distances"] == {}  # no model embeds new text


def test_empty_short_and_foreign_documents_are_no_obstacle(tmp_path: Path) -> None:
    chinese = "本文讨论了数据有限时如何训练语言模型以及为什么重复数据会失效"
    real = [*REAL, (chinese, "capped"), ("", "capped"), ("word", "validation"), ("…", "test")]
    made = [
        {"text": "", "read": [3]},
        {"text": " … !"},
        {"text": "w1", "finish": "length", "verdict": "too_short"},
        {"text": chinese[5:25], "read": [52]},
        {"text": chinese, "finish": "loop", "verdict": "loop"},
    ]
    made_of = measured(tmp_path / "quality", inputs(tmp_path, real, PAIRS, [*CLEAN, *made]))
    found, rows = _of(made_of), _documents(made_of, "generated")[len(CLEAN) :]
    assert [row["words"] for row in rows] == [0, 0, 1, 20, 30]
    assert [row["near_duplicates"] for row in rows] == [1, 1, 0, 1, 1]
    assert [row["copied"] for row in rows] == [0, 0, 0, 1, 1]
    assert (rows[3]["seed_run"], rows[3]["seed_copy"]) == (20, True)
    assert rows[4]["novel_ngrams_5"] == 0 and rows[4]["ngrams_5"] == 26
    generated = _row(found, "generated")
    assert generated["finished"] == pytest.approx(33 / 35)
    assert found["verdicts"]["rejected"] == {"loop": 0.5, "too_short": 0.5}
    for row in found["rows"]:
        assert all(value is None or isinstance(value, str) or np.isfinite(value) for value in row.values())


def _ngrams(own: str, length: int) -> set[tuple[str, ...]]:
    found = own.split()
    return (
        set(itertools.pairwise(found))
        if length == 2
        else {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}
    )


def test_novel_ngrams_are_those_that_sets_say(tmp_path: Path) -> None:
    """Guards counts across batches, repeated n-grams and documents left out, against sets of words."""
    real = [(text(2000 + number, int(5 + number % 60), 40), "capped") for number in range(400)] + REAL[30:]
    real[11], real[12] = (text(1), "capped"), (text(1), "capped")  # all of one is in another
    made = [{"text": text(3000 + number, 3 + number, 45)} for number in range(60)]
    artifact = measured(tmp_path / "quality", inputs(tmp_path, real, [(0, 1)], made, shards=3))
    capped = [own for own, split in real if split == "capped"]
    for length in (1, 2, 3, 5):
        sets = [_ngrams(own, length) for own in capped]
        seen: dict[tuple[str, ...], int] = {}
        for gram in itertools.chain.from_iterable(sets):
            seen[gram] = seen.get(gram, 0) + 1
        totals = np.zeros(2)
        for row in _documents(artifact, "generated"):
            grams = _ngrams(row["text"], length)
            new = [gram for gram in grams if gram not in seen]
            assert (row[f"ngrams_{length}"], row[f"novel_ngrams_{length}"]) == (len(grams), len(new))
            totals += len(new), len(grams)
        assert _row(_of(artifact), "generated")[f"novel_{length}"] == pytest.approx(totals[0] / totals[1])
        for row in _documents(artifact, "real"):
            assert row[f"novel_ngrams_{length}"] == sum(seen[gram] < 2 for gram in _ngrams(row["text"], length))
    eleven = _documents(artifact, "real")[11]
    assert eleven["novel_ngrams_1"] == eleven["novel_ngrams_8"] == 0 and eleven["copied"] == 1


def test_shards_make_no_difference_and_samples_are_spread_evenly(tmp_path: Path) -> None:
    made = [*CLEAN, {"text": REAL[7][0], "read": [3]}, {"text": text(90), "verdict": "too_short"}]
    results = [
        measured(tmp_path / f"{shards}/quality", inputs(tmp_path / f"{shards}", REAL, PAIRS, made, shards), documents=9)
        for shards in (1, 4)
    ]
    assert _of(results[0]) == _of(results[1])
    assert parquet.read(results[0]).equals(parquet.read(results[1]))
    assert [row["ordinal"] for row in _documents(results[0], "real")] == [0, 3, 7, 10, 14, 18, 21, 25, 29]
    assert _row(_of(results[0]), "generated")["documents_in_all"] == 32


def test_the_numbers_follow_from_the_documents(tmp_path: Path) -> None:
    """Guards the table against its own Parquet, by other means."""
    made = [{"text": text(4000 + number, 10 + number % 50, 60), "read": [number % 30]} for number in range(60)]
    artifact = measured(tmp_path / "quality", inputs(tmp_path, REAL, PAIRS, made))
    found, row = _of(artifact), _row(_of(artifact), "generated")
    rows = _documents(artifact, "generated")
    random = [own["similarity_words"] for own in _documents(artifact, "random")]
    limit = np.quantile(random, 0.95)
    assert found["related_above"]["similarity_words"] == pytest.approx(limit)
    assert row["unrelated_words"] == pytest.approx(np.mean([own["similarity_words"] <= limit for own in rows]))
    for name in ("repetition", "words", "tokens", "copied", "held_out", "seed_run", "seed_overlap", "similarity_words"):
        assert row[name] == pytest.approx(np.mean([own[name] for own in rows]))
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert row["repetition_rate"] == np.mean([own["repetition"] > 0.2 for own in rows])
    assert rows[0]["tokens"] == len(rows[0]["text"].encode())  # the tokenizer of this test has bytes alone


def test_items_of_local_tasks_are_looked_for_in_documents(tmp_path):
    """Guards a share of contaminated documents that nobody looked for, where the tasks' files are at hand."""
    (tmp_path / "arc_easy.jsonl").write_text('{"query": "q", "choices": ["a"], "gold": 0}\n')
    corpus = tmp_path / "documents.jsonl"
    corpus.write_text('{"id": "a", "text": "some text"}\n')
    asked = Evaluation(tasks=("arc_easy",), data=str(tmp_path))
    experiment = Experiment(name="looked", corpus=Corpus(paths=(str(corpus),)), evaluation=asked)
    nodes = graph(experiment)
    assert nodes["quality"].config["evaluations"].paths == (str(tmp_path / "arc_easy.jsonl"),)
    assert nodes["synthetic"].config["evaluations"].paths == ()  # what is filtered out is the user's choice
