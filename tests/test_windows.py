"""Windows of held-out documents: every target once, with the context it is due, whatever stands beside it."""

import math
from functools import cache

import jax
import numpy as np
import pytest

from sbp_jax.config import Execution, MeshShape, Model, Training
from sbp_jax.data.rows import Row
from sbp_jax.data.windows import BLOCK, pack_windows, windows
from sbp_jax.model.parameters import abstract
from sbp_jax.parallel.mesh import build_mesh
from sbp_jax.training.evaluation import mean_loss, target_losses
from sbp_jax.training.step import Setup, new_state

L, END, VOCABULARY = 16, 0, 64
LENGTHS = (0, 1, 14, 15, 16, 17, 5, 31, 32, 33, 40, 3, 100, 7)  # with 15 tokens a document takes a row, with its end
MODEL = Model(width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn=16)
TRAINING = Training(context=L, batch_rows=4)
PLAIN = Execution()


def documents(lengths=LENGTHS) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(1, VOCABULARY, length).astype(np.int32) for length in lengths]


def packed(texts, stride=L) -> list[Row]:
    found = (window for number, text in enumerate(texts) for window in windows(number, text, L, stride, END))
    return list(pack_windows(found, L, END))


@cache
def made(shape: tuple[int, int, int], execution: Execution) -> tuple[Setup, dict]:
    """The programs and the parameters of a random model on so many devices along each axis of a mesh."""
    mesh = build_mesh(MeshShape(*shape), jax.devices()[: math.prod(shape)])
    setup = Setup(MODEL, VOCABULARY, TRAINING, 0, 1, mesh, execution)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract(MODEL, VOCABULARY, mesh))
    if shape == (1, 1, 1) and execution == PLAIN:
        return setup, new_state(setup, 0).parameters
    return setup, jax.device_put(made((1, 1, 1), PLAIN)[1], placed)


def scored(rows, shape=(1, 1, 1), execution=PLAIN) -> dict[int, list[float]]:
    """Nats of every target of each document, in no order."""
    found: dict[int, list[float]] = {}
    for batch, nats in target_losses(*made(shape, execution), rows):
        for document in np.unique(batch.documents[batch.mask]).tolist():
            found.setdefault(document, []).extend(nats[batch.mask & (batch.documents == document)].tolist())
    return found


def alone(text: np.ndarray, stride: int) -> list[float]:
    """Nats of a document's targets by the definition: for each the window that is due to it, alone in a row."""
    whole = [END, *text.tolist(), END]
    rows = []
    for target in range(len(whole) - 1):  # predicts whole[target + 1]
        start = 0
        while start + L <= target:
            start += stride
        row = Row(
            *(np.zeros(L + 1, np.int32), *(np.zeros(L, np.int32) for _ in "sp"), np.full(L, -1), np.zeros(L, bool))
        )
        size = target - start + 1
        row.tokens[: size + 1] = whole[start : target + 2]
        row.segments[:size], row.positions[:size] = 1, np.arange(size)
        row.documents[size - 1], row.mask[size - 1] = 0, True
        rows.append(row)
    return scored(rows)[0]


@pytest.mark.parametrize("stride", [1, 5, 15, 16])
def test_packed_windows_score_a_document_as_if_it_were_alone(stride):
    """Guards what a target sees: neighbours in its row, the window before it, the wrong start, a shifted target."""
    texts = documents()
    found = scored(packed(texts, stride))
    assert sorted(found) == list(range(len(texts)))
    for number, text in enumerate(texts):
        assert len(found[number]) == len(text) + 1, "each token and the end, once"
        np.testing.assert_allclose(sorted(found[number]), sorted(alone(text, stride)), rtol=2e-5)


@pytest.mark.parametrize("stride", [5, 16])
def test_what_is_given_is_read_and_bears_no_loss(stride):
    """Guards the border between what is given and what is asked for, in windows that lie before, on and behind it."""
    texts = documents()
    parts = [(number, text, given) for number, text in enumerate(texts) for given in {0, 1, len(text) // 2, 20, 33}]
    parts = [part for part in parts if part[2] < len(part[1])]
    found = [
        window for name, (_, text, given) in enumerate(parts) for window in windows(name, text, L, stride, END, given)
    ]
    assert all(window.scored.start < window.scored.stop for window in found), "a window that bears no loss is no use"
    nats = scored(list(pack_windows(found, L, END)))
    for name, (_, text, given) in enumerate(parts):
        asked = alone(text, stride)[given : len(text)]  # not the end
        np.testing.assert_allclose(sorted(nats[name]), sorted(asked), rtol=2e-5)


@pytest.mark.parametrize("length", [0, L - 2, L - 1, L, L + 1, 3 * L])
@pytest.mark.parametrize("stride", [1, 3, L])
def test_the_windows_of_a_document_cover_its_targets_once(length, stride):
    """Guards the borders: a document of L targets is one window, one of L + 1 is two; an empty one has its end."""
    (text,) = documents([length])
    found = list(windows(7, text, L, stride, END))
    whole = np.array([END, *text, END])
    place = 0
    for index, window in enumerate(found):
        np.testing.assert_array_equal(window.tokens, whole[index * stride :][: L + 1])
        assert window.document == 7 and index * stride + window.scored.start == place
        place = index * stride + len(window.tokens) - 1
        assert window.scored.start >= L - stride or index == 0, (
            "every target behind the first window has that much context"
        )
    assert place == length + 1
    if stride == L:
        assert len(found) == -(-(length + 1) // L)


def test_rows_hold_each_window_whole_and_none_sees_another():
    """Guards segments and tokens: a window that ends a row's piece shares its last token with the next, or loses it."""
    texts = documents([*LENGTHS, *([9, 4, 2] * 30)])
    for stride in (5, L):
        targets = np.zeros(len(texts), int)
        for row in packed(texts, stride):
            assert len(row.tokens) == L + 1 and row.tokens.dtype == np.int32
            for segment in range(1, row.segments.max() + 1):
                places = np.flatnonzero(row.segments == segment)
                np.testing.assert_array_equal(row.positions[places], np.arange(len(places)))
                assert len(set(row.documents[places])) == 1 and np.all(np.diff(places) == 1)
                whole = np.array([END, *texts[row.documents[places[0]]], END])
                piece = row.tokens[places[0] : places[-1] + 2]
                assert any(np.array_equal(piece, whole[start:][: len(piece)]) for start in range(len(whole)))
            assert not row.mask[row.segments == 0].any() and np.all(row.documents[row.segments == 0] == -1)
            np.add.at(targets, row.documents[row.mask], 1)
        assert targets.tolist() == [len(text) + 1 for text in texts]


def test_short_documents_share_rows():
    """Guards the speed: a row for each document would compute mostly padding."""
    random = np.random.default_rng(1)
    texts = documents(random.integers(1, L, 1000))
    rows = packed(texts)
    assert sum(row.mask.sum() for row in rows) / (len(rows) * L) > 0.95


def test_rows_come_while_documents_are_read():
    """Guards memory: a corpus whose rows wait for its last document does not fit."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            assert read < 16 * BLOCK, "rows wait for documents that are far off"
            yield from windows(read, np.array([1, 2, 3], np.int32), L, L, END)

    rows = pack_windows(endless(), L, END)
    for _ in range(3 * BLOCK):
        next(rows)
    documents_of_rows = [row.documents[row.mask] for row, _ in zip(rows, range(2000), strict=False)]
    assert max(found.max() for found in documents_of_rows) - min(found.min() for found in documents_of_rows) < 4 * BLOCK


@pytest.mark.parametrize("mesh", [(2, 2, 2), (8, 1, 1)])
def test_every_mesh_of_eight_gives_the_losses_of_one(mesh):
    """Guards sharded scoring, with a last batch that is not full."""
    rows = packed(documents(), 5)
    assert len(rows) % TRAINING.batch_rows
    one, other = scored(rows), scored(rows, mesh)
    for number, nats in one.items():
        np.testing.assert_allclose(sorted(nats), sorted(other[number]), rtol=2e-5)


def test_pieces_of_a_batch_give_its_losses_and_the_mean_is_over_targets():
    rows = packed(documents())
    nats = [value for document in scored(rows, execution=Execution(accumulate=2)).values() for value in document]
    mean = mean_loss(*made((1, 1, 1), PLAIN), rows)
    assert mean == pytest.approx(np.mean(nats), rel=1e-5) and len(nats) == sum(LENGTHS) + len(LENGTHS)
