"""The rule for loops, against planted ones and against a slow reading of its definition."""

import gzip
import json

import numpy as np
import pytest

from sbp_jax.generation.loops import COPIES, LEAST, PERIOD, copies_of, loop_end


def _text(count: int, seed: int = 0) -> np.ndarray:
    """Tokens that repeat nothing for long: neighbours differ, and so do tokens that are 128 apart or less."""
    return np.random.default_rng(seed).permutation(count).astype(np.int32)


def _slow(tokens: list[int]) -> int | None:
    for end in range(len(tokens) + 1):
        for period in range(1, PERIOD + 1):
            whole = period * max(COPIES, -(-LEAST // period))
            if whole <= end and tokens[end - whole : end] == tokens[end - period : end] * (whole // period):
                return end
    return None


@pytest.mark.parametrize("period", [1, 2, 7, 15, 16, 17, 128])
def test_a_planted_loop_ends_at_its_last_needed_copy(period: int) -> None:
    """Guards against loops that are missed, or cut a token early or late."""
    start, stretch = _text(300), 1000 + _text(period, seed=1)
    copies = copies_of(period)
    looped = np.concatenate([start, np.tile(stretch, copies + 4), start])
    assert loop_end(looped) == len(start) + copies * period
    assert loop_end(looped[: len(start) + copies * period]) == len(start) + copies * period
    assert loop_end(looped[: len(start) + copies * period - 1]) is None
    assert loop_end(np.tile(stretch, copies)) == copies * period


@pytest.mark.parametrize("period", [16, 40, 128])
def test_two_copies_are_no_loop(period: int) -> None:
    stretch = _text(period, seed=1)
    assert loop_end(np.concatenate([1000 + _text(50), np.tile(stretch, 2), 1000 + _text(50)])) is None


def test_a_longer_period_is_no_loop() -> None:
    assert loop_end(np.tile(_text(PERIOD + 1), 6)) is None


def test_short_runs_are_no_loops() -> None:
    """Guards against the dots of a table of contents ending a document."""
    assert loop_end(np.concatenate([_text(100), np.full(LEAST - 1, 7), _text(100, seed=1)])) is None
    assert loop_end(np.concatenate([_text(100), np.tile([7, 8], LEAST // 2 - 1), [7], _text(100)])) is None


@pytest.mark.parametrize("tokens", [[], [5], [5] * (LEAST - 1)])
def test_texts_too_short_for_a_loop(tokens: list[int]) -> None:
    assert loop_end(np.array(tokens, np.int32)) is None


def test_random_texts_of_few_tokens_agree_with_the_definition() -> None:
    """Guards the first place of several loops, of nested periods and of runs that start late."""
    random = np.random.default_rng(0)
    found = []
    for trial in range(60):
        pieces = [random.integers(0, 2, 30)]
        for _ in range(3):
            stretch = random.integers(0, 2, random.integers(1, 40))
            pieces += [np.tile(stretch, random.integers(1, 8)), random.integers(0, 2, 5)]
        tokens = np.concatenate(pieces)[:260]
        expected = _slow(tokens.tolist())
        assert loop_end(tokens) == expected, f"trial {trial}"
        found.append(expected)
    assert None in found and len(set(found)) > 10


def test_ordinary_text_has_no_loops() -> None:
    """Bytes as tokens, which repeat more than any other tokens would."""
    with gzip.open("data/wikipedia_vital/documents.jsonl.gz", "rt") as stream:
        for _, line in zip(range(200), stream, strict=False):
            assert loop_end(np.frombuffer(json.loads(line)["text"].encode(), np.uint8)) is None
