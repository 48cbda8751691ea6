"""Cutting documents into rows of equal length.

Documents are joined to one stream and cut, E d1 E d2 ... E: the end-of-document token E, as a target, ends the
document before it, and as an input starts the next. Neighbouring rows share one token, so every target of the stream
is predicted exactly once, and a document of n tokens has n + 1 of them. Documents that are joined see one another: they
are one segment, as far as a row holds them. Groups are never cut.

Legend: L = context, R = rows of one block.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sbp_jax.data.rows import Row, blank
from sbp_jax.text.template import prompt

BLOCK = 1 << 18  # tokens arranged at a time
OPEN_ROWS = 16  # rows that wait for a pair which still fits


def pack(documents: Iterable[tuple[int, np.ndarray]], context: int, end_of_document: int) -> Iterator[Row]:
    """Concatenates documents and splits the stream into rows; the last one is padded.

    Args:
      documents: ordinal and tokens, int [n], of each document.
      context: L, loss-bearing positions a row.
      end_of_document: id of E.
    """
    return pack_joined(((ordinal, tokens, False) for ordinal, tokens in documents), context, end_of_document)


def pack_joined(documents: Iterable[tuple[int, np.ndarray, bool]], context: int, end_of_document: int) -> Iterator[Row]:
    """As `pack`, of documents some of which are joined to the one before them, so that they see it.

    Args:
      documents: ordinal, tokens, int [n], and whether it is joined, of each document.
    """
    end = np.array([end_of_document], np.int32)
    parts: list[np.ndarray] = []
    ordinals: list[int] = []
    lengths: list[int] = []
    joined: list[bool] = []
    waiting = 0
    carry = (np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.bool_))
    for ordinal, tokens, is_joined in documents:
        parts += (end, tokens)
        ordinals.append(ordinal)
        lengths.append(len(tokens) + 1)
        joined.append(is_joined)
        waiting += len(tokens) + 1
        if waiting >= max(BLOCK, context):
            inputs, owners, starts = _extend(carry, parts, ordinals, lengths, joined)
            whole = len(inputs) // context * context
            # The token after the last whole document is always the E that starts the next one.
            yield from _rows(inputs, owners, starts, whole // context, context, end_of_document)
            carry = (inputs[whole:], owners[whole:], starts[whole:])
            parts, ordinals, lengths, joined, waiting = [], [], [], [], 0
    inputs, owners, starts = _extend(carry, parts, ordinals, lengths, joined)
    rows = -(-len(inputs) // context)
    missing = rows * context - len(inputs)
    inputs = np.concatenate([inputs, np.full(missing, end_of_document, np.int32)])
    owners = np.concatenate([owners, np.full(missing, -1, np.int64)])
    starts = np.concatenate([starts, np.zeros(missing, np.bool_)])
    yield from _rows(inputs, owners, starts, rows, context, end_of_document)


def pack_groups(
    groups: Iterable[tuple[int, Sequence[np.ndarray], np.ndarray]], context: int, end_of_document: int, separator: int
) -> Iterator[Row]:
    """Fills rows with rendered groups E d1 S ... S dk S target E, each whole; only the target and its E bear loss.

    A group goes into the first open row with room for it; when none has, the open row with the least room is closed.

    Args:
      groups: the ordinal of the target, then the tokens of d1 to dk and of the target, int [n] each.
      context: L; a group takes a position of a row for each token, and k + 1 more.
      end_of_document: id of E.
      separator: id of S.

    Raises:
      ValueError: a rendered group of more than L + 1 tokens.
    """
    opened: list[list[tuple[int, np.ndarray, np.ndarray]]] = []
    room: list[int] = []
    for ordinal, read, target in groups:
        start = prompt(read, end_of_document, separator)
        size = len(start) + len(target)
        if size > context:
            raise ValueError(f"the group with target {ordinal} takes {size + 1} tokens, a row has {context + 1}")
        place = next((place for place, left in enumerate(room) if left >= size), None)
        if place is None:
            if len(opened) == OPEN_ROWS:
                fullest = room.index(min(room))
                del room[fullest]
                yield _group_row(opened.pop(fullest), context, end_of_document)
            place = len(opened)
            opened.append([])
            room.append(context)
        opened[place].append((ordinal, start, target))
        room[place] -= size
    for row in opened:
        yield _group_row(row, context, end_of_document)


def _extend(
    carry: tuple[np.ndarray, np.ndarray, np.ndarray],
    parts: list[np.ndarray],
    ordinals: list[int],
    lengths: list[int],
    joined: list[bool],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The stream's inputs, the document of each position, and whether a segment starts, behind what was left over."""
    inputs, owners, starts = carry
    length = np.array(lengths, np.int64)
    new_starts = np.zeros(length.sum(), np.bool_)
    new_starts[np.cumsum(length) - length] = ~np.array(joined, np.bool_)
    return (
        np.concatenate([inputs, *parts], dtype=np.int32),
        np.concatenate([owners, np.repeat(np.array(ordinals, np.int64), length)]),
        np.concatenate([starts, new_starts]),
    )


def _rows(
    inputs: np.ndarray, owners: np.ndarray, starts: np.ndarray, rows: int, context: int, end_of_document: int
) -> Iterator[Row]:
    """The first `rows` rows of the stream; owner -1 marks padding."""
    if rows == 0:
        return
    size = rows * context
    stream = np.append(inputs, np.int32(end_of_document))
    owners_RL = owners[:size].reshape(rows, context)
    starts_RL = starts[:size].reshape(rows, context).copy()
    starts_RL[:, 0] = True
    mask_RL = owners_RL >= 0
    places = np.arange(context, dtype=np.int32)
    positions_RL = places - np.maximum.accumulate(np.where(starts_RL, places, 0), axis=1)
    segments_RL = np.where(mask_RL, np.cumsum(starts_RL, axis=1, dtype=np.int32), 0)
    positions_RL = np.where(mask_RL, positions_RL, 0)
    for row in range(rows):
        tokens = stream[row * context : (row + 1) * context + 1]
        yield Row(tokens, segments_RL[row], positions_RL[row], owners_RL[row], mask_RL[row])


def _group_row(groups: list[tuple[int, np.ndarray, np.ndarray]], context: int, end_of_document: int) -> Row:
    row = blank(context, end_of_document)
    start = 0
    for segment, (ordinal, read, written) in enumerate(groups, start=1):
        middle, end = start + len(read), start + len(read) + len(written)
        row.tokens[start:middle], row.tokens[middle:end] = read, written
        row.segments[start:end] = segment
        row.positions[start:end] = np.arange(end - start)
        row.documents[start:end] = ordinal
        row.mask[middle - 1 : end] = True  # from the last separator, which predicts the first token, to the last token
        start = end
    return row
