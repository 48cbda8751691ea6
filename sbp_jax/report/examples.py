"""Examples for a reader: which documents to show, and which words two texts share."""

from typing import Any

from sbp_jax.artifacts import Artifact
from sbp_jax.report.results import rows_at
from sbp_jax.text.shingles import WORD

RUN = 5  # consecutive shared words that are worth a reader's eye
LONG_WORD = 5  # letters from which a single shared word says something
SHOWN = 900  # characters of a document on the page


def synthetic_examples(synthetic: Artifact, documents: Artifact, number: int = 3) -> list[dict[str, Any]]:
    """Accepted synthetic documents spread evenly over all, each with the text of its seed."""
    places = sorted({(2 * place + 1) * synthetic.rows // (2 * number) for place in range(number)})
    rows = rows_at(synthetic, places)
    seeds = rows_at(documents, [row["seed"] for row in rows])
    return [row | {"seed_text": seed["text"]} for row, seed in zip(rows, seeds, strict=True)]


def shortened(text: str, limit: int = SHOWN) -> str:
    """The beginning of a text, cut between words, saying how much is left out."""
    if len(text) <= limit:
        return text
    cut = text.rfind(" ", limit // 2, limit)
    kept = text[: cut if cut > 0 else limit]
    return f"{kept} … [{len(text) - len(kept):,} more characters]"


def marked(text: str, other: str, run: int = RUN) -> list[tuple[str, str]]:
    """Cuts a text into pieces by what they share with another one.

    Returns:
      (piece, kind), whose pieces join to `text`; kind is "run" for `run` or more consecutive words that the other
      text has too, "word" for a single long one, else "".
    """
    words, theirs = [[match.group().lower() for match in WORD.finditer(side)] for side in (text, other)]
    runs = {tuple(theirs[place : place + run]) for place in range(len(theirs) - run + 1)}
    vocabulary = {word for word in theirs if len(word) >= LONG_WORD}
    kinds = ["word" if word in vocabulary else "" for word in words]
    for place in range(len(words) - run + 1):
        if tuple(words[place : place + run]) in runs:
            kinds[place : place + run] = ["run"] * run
    pieces: list[tuple[str, str]] = []
    end, before = 0, ""
    for match, kind in zip(WORD.finditer(text), kinds, strict=True):
        between = "run" if kind == before == "run" else ""  # one mark for a whole run, its spaces included
        for piece, piece_kind in ((text[end : match.start()], between), (match.group(), kind)):
            if piece and pieces and pieces[-1][1] == piece_kind != "word":
                pieces[-1] = (pieces[-1][0] + piece, piece_kind)
            elif piece:
                pieces.append((piece, piece_kind))
        end, before = match.end(), kind
    return [*pieces, (text[end:], "")] if end < len(text) else pieces
