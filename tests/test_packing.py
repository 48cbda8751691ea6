"""Packing: every target once, nothing across documents, the same rows after a kill."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Execution, Tokenizer
from sbp_jax.data import packing, rows
from sbp_jax.data.packing import pack, pack_groups, pack_joined
from sbp_jax.data.rows import Row, RowSource, from_bytes, to_bytes
from sbp_jax.errors import SbpError
from sbp_jax.stages import pack as stage
from sbp_jax.text.template import length, prompt
from sbp_jax.text.tokenizer import train

E, S = 0, 1


def random_documents(count: int, seed: int = 0, longest: int = 40) -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest, count)
    return [(i * 7 + 3, rng.integers(2, 100, n).astype(np.int32)) for i, n in enumerate(lengths)]


def pack_slowly(
    documents: list[tuple[int, np.ndarray]], context: int, joined: Sequence[bool] | None = None
) -> list[Row]:
    """The definition, one token at a time; a joined document starts no segment."""
    stream, owners, first = [], [], []
    for number, (ordinal, tokens) in enumerate(documents):
        for place, token in enumerate([E, *tokens.tolist()]):
            stream.append(token)
            owners.append(ordinal)
            first.append(place == 0 and not (joined is not None and joined[number]))
    stream.append(E)
    rows = []
    for start in range(0, len(owners), context):
        tokens = [E] * (context + 1)
        segments, positions, documents_, mask = [0] * context, [0] * context, [-1] * context, [False] * context
        segment = position = 0
        for i in range(min(context, len(owners) - start)):
            if i == 0 or first[start + i]:
                segment, position = segment + 1, 0
            tokens[i], tokens[i + 1] = stream[start + i], stream[start + i + 1]
            segments[i], positions[i], documents_[i], mask[i] = segment, position, owners[start + i], True
            position += 1
        rows.append(Row(*map(np.array, (tokens, segments, positions, documents_, mask))))
    return rows


def assert_equal(rows: list[Row], expected: list[Row]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        for part, other_part in zip(row, other, strict=True):
            np.testing.assert_array_equal(part, other_part)


@pytest.mark.parametrize("context", [1, 5, 16, 300])
@pytest.mark.parametrize("block", [1, 64, 1 << 18])
def test_rows_are_what_their_definition_says(monkeypatch, context, block):
    """Also where a document, or an empty one, meets the edge of a row or of a block."""
    monkeypatch.setattr(packing, "BLOCK", block)
    for seed in range(5):
        documents = random_documents(40, seed)
        assert_equal(list(pack(iter(documents), context, E)), pack_slowly(documents, context))


@pytest.mark.parametrize("context", [1, 5, 16, 300])
@pytest.mark.parametrize("block", [1, 64, 1 << 18])
def test_joined_documents_are_one_segment_as_far_as_a_row_holds_them(monkeypatch, context, block):
    monkeypatch.setattr(packing, "BLOCK", block)
    for seed in range(5):
        documents = random_documents(40, seed)
        joined = np.random.default_rng(seed).random(40) < 0.6
        given = ((ordinal, tokens, is_joined) for (ordinal, tokens), is_joined in zip(documents, joined, strict=True))
        assert_equal(list(pack_joined(given, context, E)), pack_slowly(documents, context, joined))


def test_no_documents_make_no_rows_and_an_exact_fit_no_padding():
    assert list(pack([], 8, E)) == []
    (row,) = pack([(5, np.arange(2, 9, dtype=np.int32))], 8, E)
    assert row.mask.all() and row.tokens.tolist() == [E, 2, 3, 4, 5, 6, 7, 8, E]


def test_every_target_of_every_document_is_predicted_exactly_once():
    """A cut without overlap loses the target at each row's edge: with short rows, a large part of the loss."""
    documents = random_documents(200)
    targets: dict[int, list[int]] = {ordinal: [] for ordinal, _ in documents}
    for row in pack(documents, 16, E):
        for ordinal, target in zip(row.documents[row.mask], row.tokens[1:][row.mask], strict=True):
            targets[int(ordinal)].append(int(target))
    assert targets == {ordinal: [*tokens.tolist(), E] for ordinal, tokens in documents}


def test_one_document_read_twice_in_a_row_is_two_segments():
    document = (4, np.array([2, 3], np.int32))
    (row,) = pack([document, document], 8, E)
    assert row.segments.tolist() == [1, 1, 1, 2, 2, 2, 0, 0]


def test_rows_survive_their_bytes():
    rows = list(pack(random_documents(30), 16, E))
    assert all(row.tokens.dtype == np.int32 and row.documents.dtype == np.int64 for row in rows)
    assert_equal([from_bytes(to_bytes(row)) for row in rows], rows)


Group = tuple[int, list[np.ndarray], np.ndarray]


def random_groups(count: int, longest: int, most: int = 1, seed: int = 0) -> list[Group]:
    """Groups of one to `most` conditioning documents."""
    sizes = np.random.default_rng(seed).integers(1, most + 1, count)
    targets, documents = random_documents(count, seed + 1, longest), random_documents(count * most, seed, longest)
    read = iter(tokens for _, tokens in documents)
    return [
        (target, [next(read) for _ in range(k)], tokens) for k, (target, tokens) in zip(sizes, targets, strict=True)
    ]


@pytest.mark.parametrize("most", [1, 3])
def test_groups_stay_whole_and_only_the_target_and_its_end_bear_loss(monkeypatch, most):
    """Loss on d1 would train an unconditional model; a cut group would teach its target without its seed."""
    groups = random_groups(300, 15, most)
    context = 16 * (most + 1)
    rows = list(pack_groups(iter(groups), context, E, S))
    seen: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for row in rows:
        assert row.tokens.shape == (context + 1,) and row.tokens.dtype == np.int32
        for segment in range(1, int(row.segments.max()) + 1):
            places = np.flatnonzero(row.segments == segment)
            start, end = places[0], places[-1] + 1
            assert np.array_equal(places, np.arange(start, end))
            assert np.array_equal(row.positions[places], places - start)
            tokens = row.tokens[start : end + 1].tolist()
            separator = len(tokens) - 1 - tokens[::-1].index(S)
            assert np.array_equal(np.flatnonzero(row.mask[places]), np.arange(separator, len(tokens) - 1))
            assert len(set(row.documents[places].tolist())) == 1
            seen[int(row.documents[start]), tuple(tokens)] += 1
        padding = row.segments == 0
        assert not row.mask[padding].any() and (row.documents[padding] == -1).all()
        assert (row.tokens[1:][padding] == E).all()
    rendered = [
        (target, (E, *(token for document in read for token in [*document.tolist(), S]), *tokens.tolist(), E))
        for target, read, tokens in groups
    ]
    assert seen == Counter(rendered)
    assert_equal(list(pack_groups(iter(groups), context, E, S)), rows)
    monkeypatch.setattr(packing, "OPEN_ROWS", 1)
    assert len(rows) < 0.9 * len(list(pack_groups(iter(groups), context, E, S)))


def test_a_group_of_a_whole_row_fits_and_one_token_more_is_an_error():
    d1, d2 = np.array([2, 3], np.int32), np.array([4, 5], np.int32)
    (row,) = pack_groups([(9, [d1], d2)], 6, E, S)
    assert row.tokens.tolist() == [E, 2, 3, S, 4, 5, E]
    assert row.mask.tolist() == [False, False, False, True, True, True]
    (row,) = pack_groups([(9, [d2, d1], d2)], 9, E, S)
    assert row.tokens.tolist() == [E, 4, 5, S, 2, 3, S, 4, 5, E] and length(6, 2) == 10
    for read in ([d1], [d2, d1]):
        with pytest.raises(ValueError, match="target 9"):
            list(pack_groups([(9, read, d2)], length(2 * len(read) + 2, len(read)) - 2, E, S))


def test_the_prompt_is_the_beginning_of_a_packed_group_and_without_documents_of_any_document():
    """Another template at generation than at tuning asks the synthesizer for something it never learned."""
    d1, d2 = np.array([2, 3, 4], np.int64), np.array([5], np.int32)
    (row,) = pack_groups([(0, [d1], d2)], 9, E, S)
    assert prompt([d1], E, S).tolist() == row.tokens[:5].tolist() == [E, 2, 3, 4, S]
    (row,) = pack_groups([(0, [d2, d1], d2)], 9, E, S)
    assert prompt([d2, d1], E, S).tolist() == row.tokens[:7].tolist() == [E, 5, S, 2, 3, 4, S]
    (row,) = pack([(0, d2)], 2, E)
    assert prompt([], E, S).tolist() == row.tokens[:1].tolist() == [E]


TEXTS = [f"text {i} " + "é" * (i % 5) for i in range(60)]
SPLITS = ["validation", "test", "capped", "oracle", "unused", "oracle"] * 10
CONFIG = Tokenizer(vocab_size=270)


def artifacts(folder) -> dict[str, Artifact]:
    """Documents, splits, tokens and a tokenizer; record i has i + 1 tokens."""

    def output(name: str) -> Output:
        return Output(epath.Path(folder / name), Recipe(name, 1, {}, {}), name)

    documents, splits, tokens, tokenizer = map(output, ("documents", "splits", "tokens", "tokenizer"))
    ordinals = list(range(len(TEXTS)))
    documents.shard(0, ".parquet", lambda w: parquet.write(w, pa.table({"ordinal": ordinals, "text": TEXTS})))
    splits.shard(0, ".parquet", lambda w: parquet.write(w, pa.table({"ordinal": ordinals, "split": SPLITS})))
    records = [np.full(i + 1, 10 + i, "<i4").tobytes() for i in ordinals]
    tokens.shard(0, ".array_record", lambda w: arrayrecord.write(w, records))
    with tokenizer.writing("tokenizer.json") as writing:
        train(TEXTS, CONFIG).save(writing.path)
    made = {"documents": documents, "splits": splits, "tokens": tokens, "tokenizer": tokenizer}
    return {name: output.finish() for name, output in made.items()}


def run_stage(folder, name: str, stream: str, inputs: dict[str, Artifact]) -> Artifact:
    output = Output(epath.Path(folder / name), Recipe("pack", 1, {"stream": stream}, {}), name)
    return stage.run(output, **inputs, stream=stream, context=32, settings=CONFIG, execution=Execution())


def test_a_stream_holds_its_documents_and_no_others_in_shuffled_order(tmp_path):
    """A held-out document in a training stream is the one leak that no later stage can see."""
    inputs = artifacts(tmp_path)
    members = {"oracle": {"oracle", "capped"}, "capped": {"capped"}, "validation": {"validation"}, "test": {"test"}}
    for stream, names in members.items():
        packed = run_stage(tmp_path, stream, stream, inputs)
        source = RowSource(packed)
        rows = [source[i] for i in range(len(source))]
        order = [int(i) for row in rows for i in dict.fromkeys(row.documents[row.mask].tolist())]
        expected = [i for i, name in enumerate(SPLITS) if name in names]
        assert sorted(set(order)) == expected
        assert list(dict.fromkeys(order)) != expected
        assert packed.stats == {
            "targets": sum(i + 2 for i in expected),
            "full_rows": sum(i + 2 for i in expected) // 32,
            "documents": len(expected),
            "bytes": sum(len(TEXTS[i].encode()) for i in expected),
            "context": 32,
        }
        assert all(set(row.tokens[:-1][row.positions > 0]) <= {10 + i for i in expected} for row in rows)
    without = {name: artifact for name, artifact in inputs.items() if name != "splits"}
    assert run_stage(tmp_path, "synthetic", "synthetic", without).stats["documents"] == 60
    with pytest.raises(SbpError, match="unknown stream"):
        run_stage(tmp_path, "other", "train", inputs)


def test_a_killed_packing_resumes_to_the_same_rows(tmp_path, monkeypatch):
    """A resumed run that forgets to pass over the rows of a finished shard writes them twice."""
    monkeypatch.setattr(rows, "ROWS_PER_SHARD", 10)
    inputs = artifacts(tmp_path)
    whole = run_stage(tmp_path, "whole", "oracle", inputs)
    assert len(whole.files) > 2
    original = arrayrecord.write

    def die(writing, records):
        if "00001" in writing.path.name:
            raise KeyboardInterrupt
        original(writing, records)

    monkeypatch.setattr(arrayrecord, "write", die)
    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, "resumed", "oracle", inputs)
    monkeypatch.setattr(arrayrecord, "write", original)
    resumed = run_stage(tmp_path, "resumed", "oracle", inputs)
    assert (resumed.files, resumed.stats) == (whole.files, whole.stats)
