"""Hashed word n-grams: how much of one text is literally inside another.

A shingle is `length` consecutive words; words are lower-cased runs of word characters, and every character of a script
that puts no spaces between words (`WORD`). Accents are part of their letters, however they are encoded (NFC). Two texts
are compared by the shingles they share, pair by pair: chains of near-copies are never merged into one component.

Words are found and hashed for many texts at a time, all characters at once: a word's hash is its part of a running sum
of characters, each weighted by its place in the sum, divided by the weight of the word's own place.

Shapes: C characters, W words, n shingles.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

WORDS = 13  # words a shingle
# Thai and Lao, Burmese, Khmer, kana, Chinese characters.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_ALONE = re.compile(f"[{UNSPACED}]")
WORD = re.compile(rf"(?=[{UNSPACED}])\w|[^\W{UNSPACED}]+")
CODES = 0x110000  # code points of Unicode
OUTSIDE, INSIDE, LETTER, ALONE = range(4)  # kinds of characters: of no word, of a word, a letter of one, a whole word
CHUNK = 1 << 18  # characters hashed at a time; a longer text is cut between two words
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


@dataclass(frozen=True)
class Words:
    """The words of several texts, one text after the other.

    Attributes:
      hashes_W: uint64, equal for equal words.
      lettered_W: whether the word has a letter in it; numbers and underscores have none.
      offsets: int64 [texts + 1], where each text begins and the last one ends.
    """

    hashes_W: np.ndarray
    lettered_W: np.ndarray
    offsets: np.ndarray

    def text(self, index: int) -> slice:
        """Where the words of one text are."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))


def words(texts: Sequence[str]) -> Words:
    """The hashed words of texts that UTF-8 can hold."""
    hashes, lettered = [np.empty(0, np.uint64)], [np.empty(0, bool)]
    counts = np.zeros(len(texts) + 1, np.int64)
    waiting: list[tuple[int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        for piece in _pieces(normalized(text)):
            if size + len(piece) > CHUNK and waiting:
                _hash_pieces(waiting, hashes, lettered, counts)
                waiting, size = [], 0
            waiting.append((index, piece))
            size += len(piece) + 1
    if waiting:
        _hash_pieces(waiting, hashes, lettered, counts)
    return Words(np.concatenate(hashes), np.concatenate(lettered), np.cumsum(counts))


def normalized(text: str) -> str:
    """Lower-cased, each accented letter as one character where there is such a character."""
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).lower()


def rolled(hashes_W: np.ndarray, length: int = WORDS) -> np.ndarray:
    """Hash of each run of `length` words, uint64 [W - length + 1], in their order; empty where there are fewer."""
    sums = np.zeros(max(0, len(hashes_W) - length + 1), np.uint64)
    for place, weight in enumerate(_weights(length)):
        sums += hashes_W[place : place + len(sums)] * weight
    return sums


def shingles_of(found: Words, length: int = WORDS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The shingles of each text, and the word at which each begins first.

    Yields:
      uint64 [n], sorted and unique, and int64 [n]; a text of fewer words than `length` is one shingle of all of them.
    """
    sums = rolled(found.hashes_W, length)
    bounds = found.offsets.tolist()
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        if end - start >= length:
            yield np.unique(sums[start : end - length + 1], return_index=True)
        else:
            whole = rolled(found.hashes_W[start:end], max(end - start, 1))
            yield whole, np.zeros(len(whole), np.int64)


def shingle_sets(found: Words, length: int = WORDS) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of all texts, those of each sorted and unique, without their places.

    Returns:
      uint64 [n], one text after another, and int64 [texts], how many each has.
    """
    sums = rolled(found.hashes_W, length)
    pieces, bounds = [np.empty(0, np.uint64)], found.offsets.tolist()
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        whole = end - start >= length
        piece = sums[start : end - length + 1] if whole else rolled(found.hashes_W[start:end], max(end - start, 1))
        piece.sort()
        pieces.append(piece)
    hashes = np.concatenate(pieces)
    owners = np.repeat(np.arange(len(bounds) - 1), [len(piece) for piece in pieces[1:]])
    first = np.ones(len(hashes), bool)
    first[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[first], np.bincount(owners[first], minlength=len(bounds) - 1)


def shingles(text: str, length: int = WORDS) -> np.ndarray:
    """Hashes of the word n-grams of a text.

    Args:
      text: any text that UTF-8 can hold.
      length: words a shingle; a text of fewer words is one shingle of all its words.

    Returns:
      uint64 [n], sorted and unique; empty for a text without words.
    """
    hashes_W = words([text]).hashes_W
    sums = rolled(hashes_W, min(length, max(len(hashes_W), 1)))
    sums.sort()
    return distinct(sums)


def overlap(a: np.ndarray, b: np.ndarray) -> int:
    """Number of shingles in both of two sorted unique arrays."""
    few, many = (a, b) if len(a) <= len(b) else (b, a)
    return int(np.count_nonzero(among(few, many)))


def containment(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the smaller set of shingles that the other one has too; 0 if either is empty."""
    return overlap(a, b) / max(min(len(a), len(b)), 1)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared shingles over all shingles of two sets; 0 if both are empty."""
    shared = overlap(a, b)
    return shared / max(len(a) + len(b) - shared, 1)


def among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Whether each value is in a sorted array, bool."""
    if len(ordered) == 0:
        return np.zeros(len(values), bool)
    return ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values


def distinct(ordered: np.ndarray) -> np.ndarray:
    """A sorted array without repeated values; NumPy's own `unique` hashes them all, which takes many times as long."""
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


@cache
def powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first powers of an odd base and of its inverse, modulo 2^64, from the zeroth on."""
    growing, inverses = (
        np.cumprod(np.full(count, base, np.uint64)) * np.uint64(pow(base, -1, 1 << 64))
        for base in (BASE, pow(BASE, -1, 1 << 64))
    )
    return growing, inverses


def mixed(values: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each uint64 (the finaliser of SplitMix64): every bit depends on every bit."""
    values = values + np.uint64(BASE)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _pieces(text: str) -> list[str]:
    """The text, cut where no word is, into pieces of at most about CHUNK characters."""
    pieces = []
    while len(text) > CHUNK:
        cut = next((at for at in range(CHUNK, 0, -1) if not _is_word(text[at - 1])), len(text))
        pieces.append(text[:cut])
        text = text[cut:]
    return [*pieces, text]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _hash_pieces(
    pieces: list[tuple[int, str]], hashes: list[np.ndarray], lettered: list[np.ndarray], counts: np.ndarray
) -> None:
    """Appends the words of the pieces and adds their numbers to the counts of their texts, from place 1."""
    kinds, weights = _characters()
    # A line feed ends each piece: it is no word character, and it gives every word a character behind it.
    codes_C = np.frombuffer("".join(f"{piece}\n" for _, piece in pieces).encode("utf-32-le"), np.uint32)
    kinds_C = kinds[codes_C]
    inside_C, alone_C = kinds_C > OUTSIDE, kinds_C == ALONE
    joined_C = inside_C[:-1] & inside_C[1:] & ~(alone_C[:-1] | alone_C[1:])  # to the next character, in one word
    starts_W = np.flatnonzero(inside_C & ~np.concatenate(([False], joined_C)))
    ends_W = np.flatnonzero(inside_C & ~np.concatenate((joined_C, [False]))) + 1
    growing, inverses = powers(1 << max(len(codes_C) - 1, 1).bit_length())
    sums_C = np.concatenate(([np.uint64(0)], np.cumsum(weights[codes_C] * growing[: len(codes_C)])))
    hashes.append(mixed((sums_C[ends_W] - sums_C[starts_W]) * inverses[starts_W]))
    letters_C = np.concatenate(([0], np.cumsum(kinds_C >= LETTER)))
    lettered.append(letters_C[ends_W] > letters_C[starts_W])
    lengths = np.fromiter((len(piece) + 1 for _, piece in pieces), np.int64, len(pieces))
    bounds = np.searchsorted(starts_W, np.concatenate(([0], np.cumsum(lengths))))
    np.add.at(counts, [index + 1 for index, _ in pieces], np.diff(bounds))


@cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """The kind of each code point, and a random weight."""
    every = "".join(map(chr, range(CODES)))
    kinds = np.fromiter((LETTER if c.isalpha() else int(_is_word(c)) for c in every), np.uint8, CODES)
    alone = np.fromiter((match.start() for match in _ALONE.finditer(every)), np.int64)
    kinds[alone] = np.where(kinds[alone] == OUTSIDE, OUTSIDE, ALONE)
    return kinds, mixed(np.arange(CODES, dtype=np.uint64))


@cache
def _weights(length: int) -> np.ndarray:
    """Fixed odd multipliers, one for each place in a shingle: the sum of products is a hash that knows word order."""
    return mixed(np.arange(length, dtype=np.uint64)) | np.uint64(1)
