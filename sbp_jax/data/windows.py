"""Held-out documents as windows, so that each is read from its own start and each of its targets is scored once.

A document of n tokens has n + 1 targets, its tokens and the end-of-document token E, and its inputs are E and its
tokens, as in `packing`. One that fits a row is one window. A longer one takes several: each begins `stride` targets
behind the one before it and bears loss where that one ended, so that a target sees at least L - stride tokens before
it, or all there are.

Windows do not see one another, so several stand in a row. Where a window neither begins a document nor a row, one
position is lost between it and its neighbour, because positions share their tokens.

Legend: L = context, n = targets of a window.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from sbp_jax.data.rows import Row, blank

BLOCK = 4096  # windows that are fitted into rows at a time


class Window(NamedTuple):
    """A piece of a document.

    Attributes:
      document: its ordinal.
      tokens: int32 [n + 1]; position i reads tokens[i] and predicts tokens[i + 1].
      scored: targets that bear loss: not those that another window has scored, that were given, or an end after these.
    """

    document: int
    tokens: np.ndarray
    scored: slice


def windows(
    document: int, tokens: np.ndarray, context: int, stride: int, end_of_document: int, given: int | None = None
) -> Iterator[Window]:
    """The windows of one document that bear loss, in order.

    Args:
      tokens: int [n], which may be none.
      given: of these, at the beginning, that bear no loss, nor does the end then; None: all bear loss, and the end.
      context: L, targets of a window at most.
      stride: targets that a window moves on, from 1 to L.
    """
    whole = np.concatenate([[end_of_document], tokens, [end_of_document]], dtype=np.int32)
    targets = len(whole) - 1
    asked = targets if given is None else targets - 1
    scored, start = given or 0, 0
    while scored < asked:
        end = min(start + context, targets)
        if end > scored:
            last = min(end, asked)
            yield Window(document, whole[start : end + 1], slice(scored - start, last - start))
            scored = last
        start += stride


def pack_windows(found: Iterable[Window], context: int, end_of_document: int) -> Iterator[Row]:
    """Fills rows with windows, each whole: among some of them the longest first, into the row with the least room.

    Args:
      context: L.
      end_of_document: id of E.
    """
    remaining = iter(found)
    while block := list(islice(remaining, BLOCK)):
        rows: list[list[tuple[int, Window]]] = []  # windows with the position at which each begins
        room: list[tuple[int, int]] = []  # left in a row, and its place among the rows, ascending
        for window in sorted(block, key=lambda window: len(window.tokens), reverse=True):
            size = len(window.tokens) - 1
            # Where a row's tokens end with another one than its first, both need a place.
            gap = int(window.tokens[0] != end_of_document)
            best = bisect_left(room, (size + gap, 0))
            if best == len(room):
                start, row = 0, len(rows)
                rows.append([])
            else:
                left, row = room.pop(best)
                start = context - left + gap
            rows[row].append((start, window))
            insort(room, (context - start - size, row))
        for placed in rows:
            yield _row(placed, context, end_of_document)


def _row(placed: list[tuple[int, Window]], context: int, end_of_document: int) -> Row:
    row = blank(context, end_of_document)
    for segment, (start, window) in enumerate(placed, start=1):
        end = start + len(window.tokens) - 1
        row.tokens[start : end + 1] = window.tokens
        row.segments[start:end] = segment
        row.positions[start:end] = np.arange(end - start)
        row.documents[start:end] = window.document
        row.mask[start:end][window.scored] = True
    return row
