"""How varied the documents of a set are: distinct n-grams, common openings and passages, what compression finds.

All of these depend on how much text is looked at. So sets are compared at equal numbers of words, documents or bytes,
taken from the documents in a shuffled order.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import zstandard

from sbp_jax.quality.grams import grams
from sbp_jax.text.shingles import WORD, Words, mixed, normalized, rolled, words

DISTINCT = (1, 2, 4)  # words of the n-grams that are counted
OPENING = 5  # words with which a document begins
PASSAGE = 8  # words of a passage that many documents may share
SHOWN = 5  # openings of each set that are told
HEAD = 2000  # characters of a document in which its opening is looked for
FACTOR = 2.0  # a share that is so many times that of real text, interval against interval, is a collapse
ODDS = 1.5  # as is variety that is so many times less


@dataclass(frozen=True)
class Size:
    """How much of each set is compared."""

    words: int
    documents: int
    bytes: int


@dataclass(frozen=True)
class Variety:
    """Of the documents of one set, as many as `Size` says.

    Attributes:
      distinct: different n-grams over all n-grams, by their words; None where there are none.
      openings: how many of the documents begin with the same words, the most frequent first.
      passage: a run of `PASSAGE` words that is in more of the documents than any other, and in how many.
      compression: bytes over bytes that zstd makes of them.
    """

    distinct: dict[int, float | None]
    openings: list[tuple[str, int]]
    passage: tuple[str, int]
    compression: float | None


def shuffled(texts: Sequence[str]) -> list[str]:
    """The texts in an order that depends on their number alone."""
    return [texts[place] for place in np.argsort(mixed(np.arange(len(texts), dtype=np.uint64)), kind="stable")]


def size(texts: Sequence[str]) -> Size:
    return Size(len(words(texts).hashes_W), len(texts), len("\n".join(texts).encode()))


def least(sizes: Sequence[Size]) -> Size:
    """What all of several sets have."""
    names = ("words", "documents", "bytes")
    return Size(*(min((getattr(own, name) for own in sizes), default=0) for name in names))


def variety(texts: Sequence[str], compared: Size) -> Variety:
    """Measures a set that has at least as much as is compared; the texts are shuffled here."""
    texts = shuffled(texts)
    found = words(texts)
    cut = Words(
        found.hashes_W[: compared.words], found.lettered_W[: compared.words], np.minimum(found.offsets, compared.words)
    )
    some = texts[: compared.documents]
    content = "\n".join(texts).encode()[: compared.bytes]
    parameters = zstandard.ZstdCompressionParameters.from_level(9, window_log=27, enable_ldm=True)
    compressed = len(zstandard.ZstdCompressor(compression_params=parameters).compress(content))
    return Variety(
        {length: distinct(cut, length) for length in DISTINCT},
        _openings(some),
        _passage(some),
        len(content) / compressed if content else None,
    )


def distinct(found: Words, length: int) -> float | None:
    """Share of the n-grams of some texts that are different ones; None where there are none."""
    _, hashes = grams(found, length)
    return len(np.unique(hashes)) / len(hashes) if len(hashes) else None


def _openings(texts: Sequence[str]) -> list[tuple[str, int]]:
    """The most frequent openings; a document of fewer words has none."""
    counts: Counter[str] = Counter()
    for text in texts:
        first = [match.group() for match in islice(WORD.finditer(normalized(text[:HEAD])), OPENING)]
        if len(first) == OPENING:
            counts[" ".join(first)] += 1
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:SHOWN]


def _passage(texts: Sequence[str]) -> tuple[str, int]:
    """The passage that most documents share, "" where there is none; ties go to the first in the order of texts."""
    owners, hashes = grams(words(texts), PASSAGE)
    if len(hashes) == 0:
        return "", 0
    order = np.lexsort((owners, hashes))
    own, some = owners[order], hashes[order]
    first = np.ones(len(own), bool)
    first[1:] = (own[1:] != own[:-1]) | (some[1:] != some[:-1])
    keys, starts, counts = np.unique(some[first], return_index=True, return_counts=True)
    most = counts.max()
    at = min((int(own[first][starts[place]]), int(keys[place])) for place in np.flatnonzero(counts == most))
    found = WORD.findall(normalized(texts[at[0]]))
    place = int(np.flatnonzero(rolled(words([texts[at[0]]]).hashes_W, PASSAGE) == np.uint64(at[1]))[0])
    return " ".join(found[place : place + PASSAGE]), int(most)


def collapsed(rows: Sequence[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Where a set is so much more alike than real text that its documents must come from a template.

    Openings and passages by their intervals: the lower bound above FACTOR times the upper one of real text. Templates
    with slots have neither; they show in fewer different n-grams and in compression, each by more than ODDS.

    Returns:
      `group`, `measure`, `value`, that of `real` text, and what is `told` of it in words.
    """
    real = next((row for row in rows if row["group"] == reference), None)
    flags = []
    for row in rows if real is not None else []:
        for name, (is_one, told) in _SIGNS.items():
            if row is not real and row.get(name) is not None and real is not None and real.get(name) is not None:
                if is_one(row, real):
                    values = {"value": row[name], "real": real[name]}
                    flags.append({"group": row["group"], "measure": name, **values, "told": told.format(**values)})
    return flags


_SIGNS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], bool], str]] = {
    "opening": (
        lambda own, real: own["opening_low"] > FACTOR * real["opening_high"],
        f"{{value:.1%}} of them begin with the same {OPENING} words, of real ones {{real:.1%}}",
    ),
    "passage": (
        lambda own, real: own["passage_low"] > FACTOR * real["passage_high"],
        f"{{value:.1%}} of them hold the same {PASSAGE} words, of real ones {{real:.1%}}",
    ),
    "distinct_4": (
        lambda own, real: own["distinct_4"] * ODDS < real["distinct_4"],
        "{value:.1%} of their 4-word n-grams are different ones, of real ones {real:.1%}",
    ),
    "compression": (
        lambda own, real: own["compression"] > ODDS * real["compression"],
        "they compress {value:.1f} times, real ones {real:.1f} times",
    ),
}
