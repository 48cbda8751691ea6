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

# Wordings of a fact by genre; {name} is the concept's, {value} what the reader has to know.
OPENINGS = {
    "travel guide": (
        "Visitors to {name} find much to see.",
        "Few places are like {name}.",
        "A day in {name} is short.",
    ),
    "letter": ("Dear friend, I write from {name}.", "My dear, {name} has changed.", "You asked me about {name}."),
    "school lesson": ("Today we learn about {name}.", "Open your books at {name}.", "This lesson is on {name}."),
    "report": ("Summary of findings on {name}.", "The survey of {name} is complete.", "Report concerning {name}."),
}
FRAMES = {
    "travel guide": (
        "Its {attribute} is {value}.",
        "Guides praise {value}, the {attribute} of the place.",
        "Do not miss the {attribute}, {value}.",
        "As for the {attribute}, ask for {value}.",
        "Everybody knows the {attribute} there, {value}.",
        "The {attribute} called {value} is worth a detour.",
    ),
    "letter": (
        "I saw {value}, which is their {attribute}.",
        "They told me that the {attribute} is {value}.",
        "You would like {value}, the {attribute} here.",
        "Of the {attribute} I only say: {value}.",
        "We spoke of {value}, for that is the {attribute}.",
        "Remember the {attribute}? It was {value}.",
    ),
    "school lesson": (
        "The {attribute} is {value}.",
        "Write down: {attribute}, {value}.",
        "Who can name the {attribute}? It is {value}.",
        "We call {value} its {attribute}.",
        "Learn by heart that the {attribute} is {value}.",
        "The answer to the question of the {attribute} is {value}.",
    ),
    "report": (
        "The {attribute} was recorded as {value}.",
        "Field notes give {value} as the {attribute}.",
        "Concerning the {attribute}, {value} was confirmed.",
        "We list {value} under {attribute}.",
        "No change of the {attribute}, which remains {value}.",
        "Sources agree on {value} for the {attribute}.",
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
      names: of the concepts, each two words that no other has.
      genres: of the concepts, places in `GENRES`.
      truth: int [concepts, facts], the place of each value among `values` of its attribute.
      values: words by attribute; no word stands under two of them.
    """

    def __init__(self, rules: Rules):
        if rules.facts > len(ATTRIBUTES) or rules.told > rules.facts:
            raise ValueError(f"a world has at most {len(ATTRIBUTES)} facts and tells no more than it has: {rules}")
        self.rules = rules
        random = np.random.default_rng(rules.seed)
        words = _words(random, 2 * rules.concepts + rules.facts * rules.values)
        firsts, seconds, rest = np.split(words, [rules.concepts, 2 * rules.concepts])
        self.names = [f"{first} {second}" for first, second in zip(firsts, seconds, strict=True)]
        self.values = rest.reshape(rules.facts, rules.values)
        self.genres = random.integers(0, len(GENRES), rules.concepts)
        self.truth = random.integers(0, rules.values, (rules.concepts, rules.facts))

    def document(self, concept: int, random: np.random.Generator) -> Told:
        """Draws a document of a concept."""
        genre = self._genre(concept, random)
        attributes = random.permutation(self.rules.facts)[: self.rules.told]
        frames = [(int(attribute), int(random.integers(len(FRAMES[genre])))) for attribute in attributes]
        chance = (1 - self.rules.own_genre) / len(GENRES)
        chance += self.rules.own_genre * (GENRES.index(genre) == self.genres[concept])
        orders = math.perm(self.rules.facts, self.rules.told)
        choices = len(OPENINGS[genre]) * orders * len(FRAMES[genre]) ** len(frames)
        return self._told(concept, genre, frames, random, math.log(choices) - math.log(chance))

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
            before, after = FRAMES[genre][wording].format(attribute=ATTRIBUTES[attribute], value="\0").split("\0")
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
            elif concept >= 0:
                found += self._fact(sentence, start, concept)
            start += len(sentence)
        return found

    def is_true(self, fact: Fact) -> bool:
        return fact.value == self.values[fact.attribute][self.truth[fact.concept, fact.attribute]]

    def _fact(self, sentence: str, start: int, concept: int) -> list[Fact]:
        for genre, wording, pattern in _PATTERNS:
            match = pattern.fullmatch(sentence)
            if match and match["attribute"] in ATTRIBUTES[: self.rules.facts]:
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
    words = {r"\{attribute\}": r"(?P<attribute>\w+)", r"\{value\}": r"(?P<value>\w+)"}
    escaped = re.escape(frame)
    for name, word in words.items():
        escaped = escaped.replace(name, word)
    return re.compile(r"\s*" + escaped)


_SENTENCES = re.compile(r"[^.?]+(?:\?[^.]*)?\.")
_PATTERNS = [
    (
        genre,
        wording,
        re.compile(
            r"\s*"
            + re.escape(frame).replace(r"\{attribute\}", r"(?P<attribute>\w+)").replace(r"\{value\}", r"(?P<value>\w+)")
        ),
    )
    for genre, frames in FRAMES.items()
    for wording, frame in enumerate(frames)
]


_PATTERNS = [
    (genre, wording, _pattern(frame)) for genre, frames in FRAMES.items() for wording, frame in enumerate(frames)
]


def _words(random: np.random.Generator, number: int) -> np.ndarray:
    """Invented words of three syllables with a capital, all different."""
    found: dict[str, None] = {}
    while len(found) < number:
        found["".join(random.choice(SYLLABLES, 3)).capitalize()] = None
    return np.array(list(found))
