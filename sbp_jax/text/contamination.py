"""Finding the items of evaluation sets inside documents.

An item is a record of a JSON Lines file; every string in it, in its lists and in records inside it is one of its
texts. The labels of a prompt ("Question:", "Answer:") are left off: a document that leaks the item need not have
them. Words are those of shingles.

1. A text of 13 words or more is found by any 13 of its words in a row, 7 of them at least with a letter: numbers,
   table rows and rulers leak nothing.
2. A text of 8 to 12 words with letters is found whole, all its words in a row, if it is the longest of its item;
   lists are passed over where there is a string. So questions are looked for, and not the names that answer them.
3. Of an item whose questions rules 1 and 2 do not look for, each two texts from different fields are joined, one way
   and the other (a question with its answer), also with a label between them, and looked for by the same rules.
4. What is shorter still ("the united states") is looked for nowhere, and the item is counted as too short.

A question with a blank ("_") is looked for with each text of fewer than 8 words of its item in its place too. A text of
at most 40 words that is in more than 50 items of a file is a template ("The following are multiple choice questions
about ...") and belongs to none of them; it is counted.
"""

import gzip
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
from etils import epath

from sbp_jax.config import NOT_IN_RECIPE
from sbp_jax.errors import SbpError
from sbp_jax.text.shingles import WORD, WORDS, Words, rolled, words

RULE_VERSION = 3
LETTERED = 7  # words with a letter in a run of 13 that may prove anything
SHORTEST = 8  # words with a letter in a text that is found whole
FILTER_BITS = 4  # slots of the filter for each hash in it, as a power of two
TEMPLATE, TEMPLATE_WORDS = 50, 40  # items of a file above which a text of at most so many words is none of theirs
FILLERS = 16  # texts at most that a blank is filled with
SHOWN = 80  # characters of a text in the evidence
ANSWERS = ("answer", "a", "the answer is")  # what may stand between a question and its answer
_BLANK = re.compile(r"(?<!\w)_+(?!\w)")
_LABELS = re.compile(r"^\s*(question|q)\s*:|\b(answer|a)\s*:\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Evaluations:
    """The sets that documents are checked against; in a recipe by their content."""

    paths: tuple[str, ...] = field(default=(), metadata=NOT_IN_RECIPE)  # JSON Lines, plain or .gz

    def files(self) -> list[epath.Path]:
        return [epath.Path(path).expanduser() for path in self.paths]


@dataclass(frozen=True)
class Text:
    """One text of an item, or two of them joined: its file, its line from 1, and what it says."""

    file: str
    line: int
    text: str


class Items:
    """The items of some evaluation sets, to be asked which documents hold one.

    Attributes:
      items: records read.
      too_short: records that no rule can find.
      templates: texts that too many items of a file have.
    """

    def __init__(self, files: Sequence[epath.Path]):
        """Reads the files.

        Raises:
          SbpError: a file that cannot be read to its end, or a line that is no JSON object.
        """
        self.items = self.too_short = self.templates = 0
        self._texts: list[Text] = []
        for file in files:
            records = [(line, _fields(record)) for line, record in _records(file)]
            items_of = Counter(text for _, fields in records for text in {text for texts in fields for text in texts})
            templates = {text for text, number in items_of.items() if number > TEMPLATE and _is_short(text)}
            self.templates += len(templates)
            for line, fields in records:
                found = [Text(file.name, line, text) for text in _findable(fields, templates)]
                self.items += 1
                self.too_short += not found
                self._texts += found
        self._found = words([text.text for text in self._texts])
        lengths = np.diff(self._found.offsets)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        self._long = _Table(*_runs(self._found, WORDS, LETTERED, owners))
        starts = self._found.offsets[:-1][lengths < WORDS]
        short = rolled(self._found.hashes_W, SHORTEST)
        self._short = _Table(short[starts], np.flatnonzero(lengths < WORDS))

    def search(self, documents: Words) -> dict[int, Text]:
        """The first text of an item that each document holds, by the document's number; most hold none."""
        owners = np.repeat(np.arange(len(documents.offsets) - 1), np.diff(documents.offsets))
        hits: dict[int, Text] = {}
        runs, runs_owners = _runs(documents, WORDS, LETTERED, owners)
        for run in self._long.hits(runs).tolist():
            hits.setdefault(int(runs_owners[run]), self._texts[self._long.owner(runs[run])])
        starts = rolled(documents.hashes_W, SHORTEST)
        for start in self._short.hits(starts).tolist():
            for number in self._short.owners(starts[start]).tolist():
                whole = self._found.hashes_W[self._found.text(number)]
                end = min(start + len(whole), int(documents.offsets[owners[start] + 1]))
                if np.array_equal(documents.hashes_W[start:end], whole):
                    hits.setdefault(int(owners[start]), self._texts[number])
        return hits


def read(evaluations: Evaluations) -> Items:
    """The items of the sets.

    Raises:
      SbpError: a file that cannot be read, or sets that hold no item which could be found.
    """
    items = Items(evaluations.files())
    if evaluations.paths and items.items == items.too_short:
        raise SbpError(
            f"none of the {items.items:,} items in pairs.decontaminate ({', '.join(evaluations.paths)}) is long enough"
            " to be looked for; name JSON Lines files whose records hold the items' texts"
        )
    return items


class _Table:
    """Hashes with their owners, behind a filter that almost every other hash fails at once."""

    def __init__(self, hashes: np.ndarray, owners: np.ndarray):
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]
        self._mask = np.uint64((1 << (max(len(hashes), 1).bit_length() + FILTER_BITS)) - 1)
        self._filter = np.zeros(int(self._mask) + 1, bool)
        self._filter[hashes & self._mask] = True

    def hits(self, hashes: np.ndarray) -> np.ndarray:
        """Places of those hashes that are in the table."""
        places = np.flatnonzero(self._filter[hashes & self._mask])
        if len(self._hashes) == 0:
            return places
        found = np.minimum(np.searchsorted(self._hashes, hashes[places]), len(self._hashes) - 1)
        return places[self._hashes[found] == hashes[places]]

    def owners(self, hash: np.uint64) -> np.ndarray:
        low, high = np.searchsorted(self._hashes, hash), np.searchsorted(self._hashes, hash, side="right")
        return self._owners[low:high]

    def owner(self, hash: np.uint64) -> int:
        return int(self.owners(hash)[0])


def _runs(found: Words, length: int, lettered: int, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the runs of `length` words inside one text that have enough words with letters, and their texts."""
    hashes = rolled(found.hashes_W, length)
    letters = np.concatenate(([0], np.cumsum(found.lettered_W)))
    first, last = owners[: len(hashes)], owners[length - 1 :]
    kept = (letters[length:] - letters[:-length] >= lettered) & (first == last) if len(hashes) else np.empty(0, bool)
    return hashes[kept], first[kept]


def _records(file: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with file.open("rb") as stream:
            lines = gzip.GzipFile(fileobj=stream) if file.name.lower().endswith(".gz") else stream
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise SbpError(f"{file}, line {number}: no JSON object; write one item of the set a line")
                    yield number, record
    except (ValueError, RecursionError) as error:
        raise SbpError(
            f"{file}, line {number}: {error}; pairs.decontaminate takes JSON Lines, one item a line"
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        raise SbpError(f"{file} cannot be read to its end ({error}); check pairs.decontaminate") from error


@dataclass(frozen=True)
class _Fields:
    """The texts of a record by field: those alone in theirs, and those in lists."""

    strings: list[list[str]]
    lists: list[list[str]]

    def __iter__(self) -> Iterator[list[str]]:
        return iter(self.strings + self.lists)

    def without(self, templates: set[str]) -> "_Fields":
        strings, lists = (
            [[text for text in texts if text not in templates] for texts in side] for side in (self.strings, self.lists)
        )
        return _Fields(strings, lists)


def _fields(record: dict[str, Any]) -> _Fields:
    fields = _Fields([], [])
    _collect(record, fields.strings, fields.lists)
    return fields


def _findable(fields: _Fields, templates: set[str]) -> list[str]:
    """The texts of an item that the rules look for."""
    fields = fields.without(templates)
    questions = [text for texts in fields.strings or fields for text in texts]
    longest = max((len(WORD.findall(text)) for text in questions), default=0)
    found = [text for texts in fields for text in texts if _can_be_found(text, WORDS)]
    found += [text for text in questions if longest == len(WORD.findall(text)) < WORDS and _can_be_found(text)]
    found += [filled for text in questions for filled in _filled(text, fields)]
    if not any(text in found for text in questions):
        rest = [[text for text in texts if text not in found] for texts in fields]
        between = [(a, b) for first, second in permutations(rest, 2) for a in first for b in second]
        possible = [(a, b) for a, b in between if _can_be_found(f"{a} {b}")]  # the label proves nothing
        found += [f"{a} {label} {b}" for a, b in possible for label in ("", *ANSWERS)]
    return found


def _filled(text: str, fields: _Fields) -> Iterator[str]:
    """A text with its blank filled with each short text of its item, as far as that can be found."""
    parts = _BLANK.split(text)
    if len(parts) > 1:
        others = [other for texts in fields for other in texts if len(WORD.findall(other)) < SHORTEST]
        for other in others[:FILLERS]:
            filled = other.join(parts)
            if other != text and _can_be_found(filled):
                yield filled


def _collect(value: Any, strings: list[list[str]], lists: list[list[str]]) -> None:
    """The texts of a record by field, those in lists apart from those alone."""
    if isinstance(value, str):
        strings.append([_plain(value)])
    elif isinstance(value, dict):
        for inner in value.values():
            _collect(inner, strings, lists)
    elif isinstance(value, list):
        lists.append([_plain(text) for text in value if isinstance(text, str)])
        for inner in value:
            if not isinstance(inner, str):
                _collect(inner, strings, lists)


def _plain(text: str) -> str:
    """Without labels, in NFC, and without the halves of surrogate pairs that JSON can spell and UTF-8 cannot."""
    return _LABELS.sub(" ", unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode()))


def _is_short(text: str) -> bool:
    """Whether it is looked for, and no passage."""
    return len(WORD.findall(text)) <= TEMPLATE_WORDS and _can_be_found(text)


def _can_be_found(text: str, shortest: int = SHORTEST) -> bool:
    lettered = [any(map(str.isalpha, word)) for word in WORD.findall(text)]
    if len(lettered) < WORDS:
        return len(lettered) >= shortest and sum(lettered) >= SHORTEST
    return any(sum(lettered[start : start + WORDS]) >= LETTERED for start in range(len(lettered) - WORDS + 1))
