"""Groups: what is read before a target, in tuning and in generation; what must never be among it."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xxhash

from sbp_jax.artifacts import Artifact, arrayrecord, parquet
from sbp_jax.config import Pairs
from sbp_jax.data import groups
from sbp_jax.data.groups import FEWER, Partners, fitting, reading, wanted
from sbp_jax.data.rows import Row, RowSource, to_bytes
from sbp_jax.stages import pack_pairs
from sbp_jax.text.template import length, prompt
from tests.test_pairs import Corpus, sentence

ANY = Pairs(threshold=0.5, minimum=0)


def clique(documents: range, seed: int = 0) -> list[tuple[int, int, float]]:
    """All documents near one another, each pair at another similarity."""
    chance = np.random.default_rng(seed)
    pairs = [(a, b) for a in documents for b in documents if a != b]
    return [
        (*pair, float(place)) for pair, place in zip(pairs, chance.permutation(len(pairs)) / 1e4 + 0.6, strict=True)
    ]


def corpus_of(folder, texts: list[str] | None = None, documents: int = 24, per_shard: int = 20) -> Corpus:
    """Cliques of eight documents of 5 to 30 words, the first of which have ids of their own from 5 on."""
    texts = texts or [sentence(place, 5 + place % 26) for place in range(documents)]
    neighbors = [pair for first in range(0, len(texts), 8) for pair in clique(range(first, min(first + 8, len(texts))))]
    return Corpus(folder, texts, neighbors, per_shard=per_shard)


def rows_of(artifact: Artifact) -> list[dict]:
    return parquet.read(artifact).to_pylist()


def pair_rows(corpus: Corpus, pairs: Artifact, part: str, validation: float, context: int) -> Iterator[Row]:
    """The rows of pairs as they were before there were groups: the reference for k = 1."""
    table = parquet.read(pairs, ["d1", "d2", "verdict"])
    table = table.filter(pc.equal(table["verdict"], "accepted"))

    def hashed(purpose: str, rows: np.ndarray) -> np.ndarray:
        key = xxhash.xxh3_64_intdigest(purpose.encode())
        return np.array([xxhash.xxh3_64_intdigest(row.tobytes(), key) for row in rows.astype("<i8")], np.uint64)

    seeds = np.unique(table["d1"].to_numpy())
    held_out = seeds[hashed("held out 0", seeds[:, None]) / 2.0**64 < validation]
    first, second = (np.isin(table[name].to_numpy(), held_out) for name in ("d1", "d2"))
    table = table.filter(pa.array(first if part == "validation" else ~(first | second)))
    both = np.stack([table["d1"].to_numpy(), table["d2"].to_numpy()], axis=1)
    end, separator = corpus.text_tokenizer.end_of_document, corpus.text_tokenizer.separator
    opened: list[list[tuple[int, list[int], list[int]]]] = []
    room: list[int] = []

    def row(pairs: list[tuple[int, list[int], list[int]]]) -> Row:
        tokens, segments, positions, documents, mask = [], [], [], [], []
        for segment, (ordinal, read, written) in enumerate(pairs, 1):
            size = len(read) + len(written)
            tokens += read + written
            segments += [segment] * size
            positions += range(size)
            documents += [ordinal] * size
            mask += [False] * (len(read) - 1) + [True] * (len(written) + 1)
        rest = context - len(tokens)
        columns = (segments + [0] * rest, positions + [0] * rest, documents + [-1] * rest, mask + [False] * rest)
        kinds = (np.int32, np.int32, np.int64, np.bool_)
        arrays = (np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))
        return Row(np.array(tokens + [end] * (rest + 1), np.int32), *arrays)

    for d1, d2 in both[np.argsort(hashed("order 0", both), kind="stable")].tolist():
        read, written = [end, *corpus.ids[d1].tolist(), separator], corpus.ids[d2].tolist()
        size = len(read) + len(written)
        place = next((place for place, left in enumerate(room) if left >= size), None)
        if place is None:
            if len(opened) == 16:
                fullest = room.index(min(room))
                del room[fullest]
                yield row(opened.pop(fullest))
            place = len(opened)
            opened.append([])
            room.append(context)
        opened[place].append((d2, read, written))
        room[place] -= size
    yield from map(row, opened)


@pytest.mark.parametrize(("part", "at_once"), [("train", 1 << 22), ("train", 10), ("validation", 10)])
def test_one_document_gives_the_rows_of_pairs_to_the_byte(tmp_path, part, at_once, monkeypatch):
    """The paper's method is k = 1: what is new for k = 2, and a shuffle on disk, must not change it."""
    monkeypatch.setattr(pack_pairs, "RANGE", at_once)
    corpus = corpus_of(tmp_path, documents=40, per_shard=60)
    pairs = corpus.pairs(ANY, context=64)
    assert len(pairs.files) > 3
    packed = corpus.pack(pairs, part, validation=0.2, context=64)
    expected = [to_bytes(row) for row in pair_rows(corpus, pairs, part, 0.2, 64)]
    assert list(arrayrecord.source(packed)) == expected and len(expected) > 16


def test_a_group_is_the_seed_and_its_nearest_other_partners(tmp_path):
    """By the definition: nearest first, without the target, held-out documents only where the seed is held out."""
    corpus = corpus_of(tmp_path)
    pairs = corpus.pairs(ANY, context=1000)
    similarity = {(row["d1"], row["d2"]): row["similarity"] for row in rows_of(pairs)}
    ones = rows_of(corpus.group(pairs, "ones", context=1000))
    held_out = {row["seed"] for row in ones if row["part"] == "validation"}
    assert 1 <= len(held_out) < 20
    rows = rows_of(corpus.group(pairs, conditioning=3, context=1000))
    assert [(row["seed"], row["target"], row["part"]) for row in rows] == [
        (row["seed"], row["target"], row["part"]) for row in ones
    ]
    sizes = Counter()
    for row in rows:
        seed, target = row["seed"], row["target"]
        known = [other for first, other in similarity if first == seed and other != target]
        allowed = [other for other in known if seed in held_out or other not in held_out]
        nearest = sorted(allowed, key=lambda other: -similarity[seed, other])[:2]
        assert row["conditioning"][-1] == seed
        further = row["conditioning"][:-1][::-1]
        assert further == nearest[: len(further)]
        assert row["tokens"] == length(
            sum(len(corpus.ids[i]) for i in [*row["conditioning"], target]), len(further) + 1
        )
        assert row["similarity"] == np.float32(similarity[seed, target])
        sizes[len(further)] += len(nearest) == 2
    assert 0 < sizes[0] + sizes[1] < 2 * len(rows) / FEWER and sizes[2] > len(rows) / 2


def test_a_document_that_was_held_out_is_read_in_no_training_group(tmp_path):
    """Tuning would read the seeds on which its loss is taken for honest."""
    corpus = corpus_of(tmp_path, documents=64)
    pairs = corpus.pairs(ANY, context=1000)
    for seed in range(3):
        rows = rows_of(corpus.group(pairs, f"groups{seed}", conditioning=4, context=1000, seed=seed))
        held_out = {row["seed"] for row in rows if row["part"] == "validation"}
        read = {i for row in rows if row["part"] == "train" for i in (*row["conditioning"], row["target"])}
        assert held_out and not held_out & read
        assert any(held_out & set(row["conditioning"][:-1]) for row in rows if row["part"] == "validation")


def test_a_near_copy_of_the_target_is_never_read_before_it(tmp_path):
    """Both may be good partners of the seed; together they teach the synthesizer to copy what it has read."""
    texts = [sentence(place, 40) for place in range(8)]
    texts[5] = f"{texts[2]} and some more"
    neighbors = [(0, 2, 0.9), (0, 5, 0.8), (0, 3, 0.7), (1, 2, 0.9), (1, 5, 0.8), (1, 3, 0.7), (4, 6, 0.9)]
    corpus = Corpus(tmp_path, texts, neighbors)
    pairs = corpus.pairs(ANY, context=1000)
    assert {row["verdict"] for row in rows_of(pairs)} == {"accepted"}
    grouped = corpus.group(pairs, conditioning=3, context=1000, validation=0.0)
    read = {(row["seed"], row["target"]): row["conditioning"][:-1] for row in rows_of(grouped)}
    assert read == {
        **{(seed, 2): [3] for seed in (0, 1)},  # not 5; and 3 takes its place
        **{(seed, 5): [3] for seed in (0, 1)},
        **{(seed, 3): [5, 2] for seed in (0, 1)},  # copies of one another, but not of what is written
        (4, 6): [],
    }
    assert grouped.stats["copies"] == 4
    loose = corpus.group(pairs, "loose", conditioning=3, context=1000, validation=0.0, near_duplicate=1.0)
    assert {(row["seed"], row["target"]): row["conditioning"][:-1] for row in rows_of(loose)}[0, 2] == [3]
    # A licence that all of them share is no copy: the rule is that of pairs.
    licensed = Corpus(tmp_path / "licensed", [f"{text} {sentence(99, 90)}" for text in texts], neighbors)
    pairs = licensed.pairs(Pairs(threshold=0.5, minimum=0, common=3), context=1000)
    grouped = licensed.group(pairs, conditioning=3, context=1000, validation=0.0, common=3)
    assert {(row["seed"], row["target"]): row["conditioning"][:-1] for row in rows_of(grouped)} == read


def test_groups_fit_their_context_and_pass_over_what_does_not(tmp_path, monkeypatch):
    """The seed and the target are whole always; a partner too long for the room is left out, not the next one."""
    monkeypatch.setattr(groups, "FEWER", 1 << 62)
    texts = [sentence(place, words) for place, words in enumerate((20, 20, 60, 30, 5))]
    corpus = Corpus(tmp_path, texts, [(0, other, 1 - other / 10) for other in (1, 2, 3, 4)])
    pairs = corpus.pairs(ANY, context=130)
    # Before 4 come 2, 1 and 0: 60 + 20 + 20 + 5 tokens, three separators and two ends are 110, a row of context 109.
    expected = {
        109: {1: [2], 2: [1], 3: [1], 4: [2, 1]},
        108: {1: [2], 2: [1], 3: [1], 4: [1]},
        82: {1: [3], 2: [], 3: [1], 4: [1]},
    }
    for context, read in expected.items():
        rows = rows_of(corpus.group(pairs, f"groups{context}", conditioning=3, context=context, validation=0.0))
        assert {row["target"]: row["conditioning"][:-1] for row in rows} == read
        assert all(row["tokens"] <= context + 1 for row in rows)


def test_what_is_left_out_is_left_out_alike_in_tuning_and_generation():
    chance = np.random.default_rng(0)
    lengths_PF, room_P = chance.integers(0, 30, (200, 4)), chance.integers(-5, 80, 200)
    fits_PF = fitting(lengths_PF, room_P)
    further = [10, 11, 12, 13]
    for lengths, room, fits in zip(lengths_PF.tolist(), room_P.tolist(), fits_PF.tolist(), strict=True):
        left, kept = room, []
        for ordinal, size in zip(further, lengths, strict=True):
            if size + 1 <= left:
                left -= size + 1
                kept.append(ordinal)
        assert [ordinal for ordinal, fit in zip(further, fits, strict=True) if fit] == kept
        assert reading(7, further, lengths, room) == [*kept[::-1], 7]
    assert reading(7, [], [], 5) == [7]


def test_partners_go_round_in_a_circle_and_similarity_is_of_the_nearest(tmp_path):
    """Each sample of a seed is to read something else, and all partners equally often."""
    corpus = corpus_of(tmp_path, per_shard=30)
    pairs = corpus.pairs(Pairs(threshold=0.6015, minimum=0, max_targets=5), context=1000)
    assert len(pairs.shards(".parquet")) > 1
    accepted: dict[int, list[tuple[float, int]]] = {}
    for row in rows_of(pairs):
        if row["verdict"] == "accepted":
            accepted.setdefault(row["d1"], []).append((-row["similarity"], row["d2"]))
    partners = Partners(pairs, 3)
    for seed in range(25):
        expected = [other for _, other in sorted(accepted.get(seed, []))]
        nearest = min(accepted.get(seed, [(None, None)]))[0]
        assert partners.similarity(seed) == (None if nearest is None else -nearest)
        for sample in range(5):
            circle = (expected * (2 * sample + 4))[2 * sample :]
            assert partners.of(seed, sample) == circle[: min(2, len(expected))]
    assert Partners(pairs, 1).of(0, 0) == [] and Partners(pairs, 1).similarity(0) == partners.similarity(0)


def test_no_pairs_and_pairs_out_of_order(tmp_path):
    corpus = corpus_of(tmp_path)
    nothing = corpus.pairs(Pairs(threshold=0.9, minimum=0))
    assert Partners(nothing, 3).of(4, 1) == [] and Partners(nothing, 3).similarity(4) is None
    # Of one shard, or of two: a seed's pairs apart would be half its partners, and the nearest of them not the first.
    for name, shards in {
        "apart": [[(7, 0.5)], [(3, 0.5)]],
        "mixed": [[(7, 0.5), (3, 0.5)]],
        "far": [[(3, 0.5), (3, 0.6)]],
    }.items():
        output = corpus.output(name)
        for index, rows in enumerate(shards):
            columns = {"d1": [seed for seed, _ in rows], "similarity": [similarity for _, similarity in rows]}
            table = pa.table(columns | {"d2": [1] * len(rows), "verdict": ["accepted"] * len(rows)})
            output.shard(index, ".parquet", lambda writing, table=table: parquet.write(writing, table))
        with pytest.raises(ValueError, match="not in the order of d1"):
            Partners(output.finish(), 2)


def test_the_synthesizer_is_asked_what_it_was_tuned_on(tmp_path):
    """The prompt of a seed's first document is, token by token, what a row holds before the loss begins."""
    corpus = corpus_of(tmp_path)
    pairs = corpus.pairs(ANY, context=400)
    partners = Partners(pairs, 3)
    end, separator = corpus.text_tokenizer.end_of_document, corpus.text_tokenizer.separator
    prompts = set()
    for seed in range(24):
        further = partners.of(seed, 0)
        documents = reading(seed, further, [len(corpus.ids[other]) for other in further], 300)
        prompts.add(tuple(prompt([corpus.ids[other] for other in documents], end, separator).tolist()))
    packed = corpus.pack(pairs, "train", validation=0.05, context=400, conditioning=3)
    read = set()
    for row in RowSource(packed):
        for segment in range(1, int(row.segments.max()) + 1):
            places = np.flatnonzero(row.segments == segment)
            masked = places[~row.mask[places]]
            read.add(tuple(row.tokens[[*masked, masked[-1] + 1]].tolist()))
    # A seed whose nearest partners are all of the training part is read with both, before its third one.
    assert len(prompts & read) >= 15


def test_a_killed_grouping_goes_on_to_the_same_groups(tmp_path):
    corpus = corpus_of(tmp_path, per_shard=30)
    pairs = corpus.pairs(ANY)
    whole = corpus.group(pairs, "whole", conditioning=3)
    assert len(whole.files) > 2
    corpus.group(pairs, "killed", conditioning=3)
    (tmp_path / "killed" / "part-00001.parquet").unlink()
    resumed = corpus.group(pairs, "killed", conditioning=3)
    assert (resumed.files, resumed.stats) == (whole.files, whole.stats)
    assert not (tmp_path / "killed" / "scratch").exists()
    assert whole.stats["pairs"] == pairs.stats["accepted"]
    assert whole.stats["train"] + whole.stats["validation"] == whole.stats["groups"] == len(rows_of(whole))
    assert sum(whole.stats[f"reads_{size}"] for size in (1, 2, 3)) == whole.stats["groups"]


def test_one_pair_in_eight_reads_fewer_and_each_number_occurs():
    """Where every seed of the corpus has many partners, generation from one without any would be something new."""
    d1, d2 = np.divmod(np.arange(80_000), 20)
    counts = np.bincount(wanted(d1, d2, 4), minlength=4) / len(d1)
    assert counts == pytest.approx([1 / 24, 1 / 24, 1 / 24, 7 / 8], abs=0.005)
    assert (wanted(d1, d2, 1) == 0).all()
