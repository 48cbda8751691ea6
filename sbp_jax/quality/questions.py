"""What a judge is asked: the prompts, which documents each is about, and how answers are read."""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sbp_jax.quality.samples import GENERATED, KEPT, RANDOM, REAL, TRUE

PROMPTS = Path(__file__).parent / "prompts"
_PLACE = re.compile(r"\{(document|seed)\}")
_ORNAMENT = " \t*_`'\".:"  # that models put around a word


@dataclass(frozen=True)
class Question:
    """A question about a document, or about a document and its seed.

    Attributes:
      name: of the file with the prompt.
      measure: name of the share that is reported.
      label, definition: of that share.
      good, bad: the two words that an answer may end in; the share is that of the bad one.
      groups: whose documents are judged, real ones among them.
    """

    name: str
    measure: str
    label: str
    definition: str
    good: str
    bad: str
    groups: tuple[str, ...]


QUESTIONS = (
    Question(
        "factual",
        "non_factual",
        "non-factual, as judged",
        "documents that the judge calls NONFACTUAL, of those for which its answer could be read",
        "FACTUAL",
        "NONFACTUAL",
        (REAL, GENERATED, KEPT),
    ),
    Question(
        "related",
        "judged_unrelated",
        "pair irrelevance, as judged",
        "documents that the judge calls UNRELATED to their seed, of those for which its answer could be read",
        "RELATED",
        "UNRELATED",
        (TRUE, RANDOM, GENERATED, KEPT),
    ),
)


@cache
def prompt(name: str) -> str:
    """The text of a prompt, with {document} and perhaps {seed} to be filled in."""
    return (PROMPTS / f"{name}.txt").read_text()


def digest(name: str) -> str:
    """16 hexadecimal digits that differ where the prompt does."""
    return hashlib.sha256(prompt(name).encode()).hexdigest()[:16]


def hashes() -> dict[str, str]:
    """The hash of every prompt: part of the recipe of verdicts."""
    return {question.name: digest(question.name) for question in QUESTIONS}


def filled(name: str, document: str, seed: str | None, characters: int) -> str:
    """The prompt about a document; of each text so many characters of its beginning."""
    texts = {"document": document[:characters], "seed": (seed or "")[:characters]}
    return _PLACE.sub(lambda place: texts[place.group(1)], prompt(name))


def verdict(question: Question, answer: str) -> str | None:
    """The word that the answer's last line is; None where it is neither of the two."""
    lines = [line for line in answer.splitlines() if line.strip()]
    word = lines[-1].strip(_ORNAMENT).upper() if lines else ""
    return word if word in (question.good, question.bad) else None
