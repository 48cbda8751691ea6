"""A world whose posterior is known: documents that tell facts of latent concepts.

A concept c has a name, a genre, and for every attribute a value that nothing but c decides. A document d ~ P(d | c)
tells some of the facts, in some order, each in one wording of the genre it is written in. Every sentence is drawn from
a closed grammar, so what a text states can be read back from it, and what it costs to tell is known in nats.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

GENRES = ("travel guide", "letter", "school lesson", "report")

# Wordings by genre: {name} is the concept's, {value} what the reader has to know. A value stands behind its attribute
# and a name behind "of", so that a small model can find them in what it has read.
OPENINGS = {
    "travel guide": (
        "Visitors of {name} find much to see.",
        "Few places have the charm of {name}.",
        "A day in the streets of {name} is short.",
    ),
    "letter": (
        "Dear friend, I write from the town of {name}.",
        "My dear, the town of {name} has changed.",
        "You asked me for news of {name}.",
    ),
    "school lesson": (
        "Today we learn the story of {name}.",
        "Open your books at the map of {name}.",
        "This is the lesson of {name}.",
    ),
    "report": ("Summary of {name}.", "The survey of {name} is complete.", "This is a report of {name}."),
}
FRAMES = {
    "travel guide": (
        "Do not miss the {attribute} {value}.",
        "Guides praise the {attribute} {value} of {name}.",
        "Ask for the {attribute} {value}.",
        "Everybody knows the {attribute} {value} of {name}.",
        "The {attribute} {value} is worth a detour.",
        "Most people come for the {attribute} {value} of {name}.",
    ),
    "letter": (
        "I have seen the {attribute} {value}.",
        "They told me about the {attribute} {value} of {name}.",
        "You would like the {attribute} {value}.",
        "Yesterday we came to the {attribute} {value} of {name}.",
        "Nobody here forgets the {attribute} {value}.",
        "Surely you remember the {attribute} {value} of {name}.",
    ),
    "school lesson": (
        "Write down the {attribute} {value}.",
        "We have heard about the {attribute} {value} of {name}.",
        "Learn by heart the {attribute} {value}.",
        "Please describe the {attribute} {value} of {name}.",
        "Point to the {attribute} {value} on the map.",
        "The people of {name} love the {attribute} {value}.",
    ),
    "report": (
        "The {attribute} {value} was recorded.",
        "Field notes mention the {attribute} {value} of {name}.",
        "The {attribute} {value} was confirmed.",
        "We list the {attribute} {value} of {name}.",
        "No change was found at the {attribute} {value}.",
        "Sources agree on the {attribute} {value} of {name}.",
    ),
}
ATTRIBUTES = ("river", "founder", "festival", "trade", "emblem", "mountain", "dish", "saint", "bridge", "market")
SYLLABLES = tuple(a + b for a in "bdfgklmnprstv" for b in ("a", "e", "i", "o", "u", "an", "er", "il", "on"))


@dataclass(frozen=True)
class Rules:
    """The size of a world."""

    concepts: int = 200
    facts: int = 6  # attributes of a concept
    values: int = 20  # an attribute may have
    told: int = 4  # facts in a document
    restated: int = 0  # of these, told once more at its end, in another wording
    own_genre: float = 0.5  # probability that a document is in the genre of its concept, otherwise in any of them
    seed: int = 0


@dataclass(frozen=True)
class Fact:
    """A statement found in a text.

    Attributes:
      start, end: of the value, in characters.
      wording: place among `FRAMES` of the genre.
    """

    concept: int
    attribute: int
    value: str
    genre: str
    wording: int
    start: int
    end: int


@dataclass(frozen=True)
class Told:
    """A document with what it states, and -log P(text | concept), if it was drawn from it."""

    text: str
    concept: int
    facts: tuple[Fact, ...]
    nats: float | None


class World:
    """The concepts, and everything that can be said about them.

    Attributes:
      names: of the concepts, a word each.
      genres: of the concepts, places in `GENRES`.
      truth: int [concepts, facts], the place of each value among `values` of its attribute.
      values: words by attribute; no word stands under two of them.
    """

    def __init__(self, rules: Rules):
        if rules.facts > len(ATTRIBUTES) or not rules.restated <= rules.told <= rules.facts:
            raise ValueError(
                f"a world has at most {len(ATTRIBUTES)} facts, tells no more than it has and restates no more than it"
                f" tells: {rules}"
            )
        self.rules = rules
        random = np.random.default_rng(rules.seed)
        names, values = np.split(_words(random, rules.concepts + rules.facts * rules.values), [rules.concepts])
        self.names = names.tolist()
        self.values = values.reshape(rules.facts, rules.values)
        self.genres = random.integers(0, len(GENRES), rules.concepts)
        self.truth = random.integers(0, rules.values, (rules.concepts, rules.facts))

    def document(self, concept: int, random: np.random.Generator) -> Told:
        """Draws a document of a concept."""
        genre = self._genre(concept, random)
        attributes = random.permutation(self.rules.facts)[: self.rules.told]
        wordings = len(FRAMES[genre])
        frames = [(int(attribute), int(random.integers(wordings))) for attribute in attributes]
        for place in random.permutation(len(frames))[: self.rules.restated]:
            attribute, wording = frames[place]
            frames.append((attribute, (wording + 1 + int(random.integers(wordings - 1))) % wordings))
        return self._told(concept, genre, frames, random, self._nats(concept, genre))

    def retold(self, concept: int, told: Iterable[Fact], random: np.random.Generator) -> Told:
        """Draws a document that tells what these facts tell, each in a wording that none of them has.

        Its nats are None: it is no draw from P(d | c).
        """
        genre = self._genre(concept, random)
        used = {(fact.attribute, fact.genre, fact.wording) for fact in told}
        frames: list[tuple[int, int]] = []
        for attribute in random.permutation(sorted({attribute for attribute, _, _ in used})).tolist():
            free = [place for place in range(len(FRAMES[genre])) if (attribute, genre, place) not in used]
            if free and len(frames) < self.rules.told:
                frames.append((attribute, free[int(random.integers(len(free)))]))
        return self._told(concept, genre, frames, random, None)

    @property
    def entropy(self) -> float:
        """Of a document given its concept, in nats; the same for all concepts."""
        costs = [self._nats(0, genre) for genre in GENRES]
        return sum(self._chance(0, genre) * nats for genre, nats in zip(GENRES, costs, strict=True))

    def _chance(self, concept: int, genre: str) -> float:
        """P(genre | concept)."""
        other = (1 - self.rules.own_genre) / len(GENRES)
        return other + self.rules.own_genre * (GENRES.index(genre) == self.genres[concept])

    def _nats(self, concept: int, genre: str) -> float:
        """-log P(d | concept) of a document in a genre, of which all are equally probable."""
        rules, wordings = self.rules, len(FRAMES[genre])
        told = math.perm(rules.facts, rules.told) * wordings**rules.told
        restated = math.perm(rules.told, rules.restated) * (wordings - 1) ** rules.restated
        return math.log(len(OPENINGS[genre]) * told * restated) - math.log(self._chance(concept, genre))

    def _genre(self, concept: int, random: np.random.Generator) -> str:
        own = random.random() < self.rules.own_genre
        return GENRES[int(self.genres[concept]) if own else int(random.integers(len(GENRES)))]

    def _told(
        self,
        concept: int,
        genre: str,
        frames: Iterable[tuple[int, int]],
        random: np.random.Generator,
        nats: float | None,
    ) -> Told:
        """The text of some attributes, each with its wording, behind an opening."""
        opening = OPENINGS[genre][int(random.integers(len(OPENINGS[genre])))]
        text, facts = opening.format(name=self.names[concept]), []
        for attribute, wording in frames:
            value = str(self.values[attribute][self.truth[concept, attribute]])
            words = {"attribute": ATTRIBUTES[attribute], "name": self.names[concept], "value": "\0"}
            before, after = FRAMES[genre][wording].format(**words).split("\0")
            text += " " + before
            facts.append(Fact(concept, attribute, value, genre, wording, len(text), len(text) + len(value)))
            text += value + after
        return Told(text, concept, tuple(facts), nats)

    def stated(self, text: str) -> list[Fact]:
        """What a text states of concepts and attributes that exist; a value may be any word, and so be wrong.

        A sentence speaks of the concept that was named last before it.
        """
        found: list[Fact] = []
        concept = -1
        start = 0
        for sentence in _SENTENCES.findall(text):
            start = text.index(sentence, start)
            named = self._name.search(sentence)
            if named:
                concept = self._number[named.group()]
            if concept >= 0:
                found += self._fact(sentence, start, concept)
            start += len(sentence)
        return found

    @property
    def wordings(self) -> int:
        """Wordings of all facts there are."""
        return len(self.names) * self.rules.facts * sum(len(frames) for frames in FRAMES.values())

    def is_true(self, fact: Fact) -> bool:
        return fact.value == self.values[fact.attribute][self.truth[fact.concept, fact.attribute]]

    def _fact(self, sentence: str, start: int, concept: int) -> list[Fact]:
        for genre, wording, pattern in _PATTERNS:
            match = pattern.fullmatch(sentence)
            if match and match["attribute"] in ATTRIBUTES[: self.rules.facts]:
                if match.groupdict().get("name", self.names[concept]) != self.names[concept]:
                    return []  # of a concept that there is not
                attribute = ATTRIBUTES.index(match["attribute"])
                span = start + match.start("value"), start + match.end("value")
                return [Fact(concept, attribute, match["value"], genre, wording, *span)]
        return []

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def _name(self) -> re.Pattern[str]:
        return re.compile("|".join(rf"\b{name}\b" for name in self.names))


def _pattern(frame: str) -> re.Pattern[str]:
    words = {r"\{attribute\}": r"(?P<attribute>\w+)", r"\{value\}": r"(?P<value>\w+)", r"\{name\}": r"(?P<name>\w+)"}
    escaped = re.escape(frame)
    for name, word in words.items():
        escaped = escaped.replace(name, word)
    return re.compile(r"\s*" + escaped)


_SENTENCES = re.compile(r"[^.]+\.")
_PATTERNS = [
    (genre, wording, _pattern(frame)) for genre, frames in FRAMES.items() for wording, frame in enumerate(frames)
]


def _words(random: np.random.Generator, number: int) -> np.ndarray:
    """Invented words of two syllables with a capital, all different."""
    found: dict[str, None] = {}
    while len(found) < number:
        found["".join(random.choice(SYLLABLES, 2)).capitalize()] = None
    return np.array(list(found))
