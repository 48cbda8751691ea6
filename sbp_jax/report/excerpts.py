"""Texts cut short for a reader, and the runs of words marked that they share with others."""

from collections.abc import Sequence

import numpy as np

from sbp_jax.text.shingles import WORD, rolled, words

BEFORE = 120  # characters that are shown before the first shared run
READ = 20_000  # characters of a text in which shared runs are looked for
Piece = tuple[str, str]  # text and its kind: "" for plain text, "gap" for what is left out


def shared(text: str, others: Sequence[tuple[str, str | None]], run: int) -> list[Piece]:
    """Cuts a text into pieces by whether `run` or more consecutive words are in others too.

    Args:
      others: (kind, text) each; where several have the words, the kind is that of them all, joined by spaces.

    Returns:
      Pieces that join to the text.
    """
    spans = [match.span() for match in WORD.finditer(text, 0, READ)]
    hashes_W = _hashes([text[start:stop] for start, stop in spans])
    codes_W = np.zeros(len(spans), np.int64)  # a bit for each of the others
    for place, (_, other) in enumerate(others):
        if other and len(spans) >= run:
            begins = np.flatnonzero(np.isin(rolled(hashes_W, run), rolled(words([other]).hashes_W, run)))
            codes_W[np.unique(begins[:, None] + np.arange(run))] |= 1 << place
    bounds = np.flatnonzero(np.diff(codes_W, prepend=0, append=0)).tolist()
    pieces: list[Piece] = []
    end = 0
    for first, stop in zip(bounds, bounds[1:], strict=False):
        code = int(codes_W[first])
        if code:
            begin = spans[first][0]
            kind = " ".join(name for place, (name, _) in enumerate(others) if code >> place & 1)
            pieces += [(text[end:begin], "")] if begin > end else []
            end = spans[stop - 1][1]
            pieces.append((text[begin:end], kind))
    return [*pieces, (text[end:], "")] if end < len(text) else pieces


def _hashes(tokens: list[str]) -> np.ndarray:
    """A hash of each word; of what is no word once it is normalised, 0."""
    distinct, places_W = np.unique(np.array(tokens, object), return_inverse=True)
    found = words(distinct.tolist())
    first = found.offsets[:-1]
    hashes = np.zeros(len(first), np.uint64)
    there = found.offsets[1:] > first
    hashes[there] = found.hashes_W[first[there]]
    return hashes[places_W]


def windowed(pieces: list[Piece], limit: int, *kinds: str) -> list[Piece]:
    """About `limit` characters of a text in pieces.

    They are its beginning, and, where the first piece of these kinds, by default of any but plain text, lies beyond
    that, the text around it; a piece of kind "gap" tells what is left out.
    """
    text = "".join(piece for piece, _ in pieces)
    place, run = 0, None
    for piece, kind in pieces:
        if kind in kinds or (kind and not kinds):
            run = place
            break
        place += len(piece)
    if len(text) <= limit:
        return pieces
    if run is None or run < limit * 2 // 3:
        return [*_cut(pieces, 0, _space(text, limit)), _gap(len(text) - _space(text, limit))]
    head, start = _space(text, limit // 3), _space(text, run - BEFORE)
    stop = _space(text, start + limit - limit // 3)
    middle = [*_cut(pieces, 0, head), _gap(start - head), *_cut(pieces, start, stop)]
    return middle if stop >= len(text) else [*middle, _gap(len(text) - stop)]


def _gap(characters: int) -> Piece:
    return f" … [{characters:,} more characters] … ", "gap"


def _space(text: str, place: int) -> int:
    """The last end of a word at or before a place, the end of the text past that."""
    if place >= len(text):
        return len(text)
    found = text.rfind(" ", place - 80 if place > 80 else 0, place)
    return found if found > 0 else place


def _cut(pieces: list[Piece], start: int, stop: int) -> list[Piece]:
    """The pieces between two places of the text that they join to."""
    cut, place = [], 0
    for piece, kind in pieces:
        inside = piece[max(start - place, 0) : max(stop - place, 0)]
        if inside:
            cut.append((inside, kind))
        place += len(piece)
    return cut
