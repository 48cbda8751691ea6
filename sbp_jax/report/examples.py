"""Examples for a reader: which documents to show, and which words two texts share."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.report.results import rows_at

RUN = 5  # consecutive shared words that are worth a reader's eye
LONG_WORD = 5  # letters from which a single shared word says something
SHOWN = 900  # characters of a document on the page
_WORD = re.compile(r"\w+")


def synthetic_examples(synthetic: Artifact, documents: Artifact, number: int = 3) -> list[dict[str, Any]]:
    """Accepted synthetic documents spread evenly over all, each with the text of its seed."""
    places = sorted({(2 * place + 1) * synthetic.rows // (2 * number) for place in range(number)})
    rows = rows_at(synthetic, places)
    seeds = rows_at(documents, [row["seed"] for row in rows])
    return [row | {"seed_text": seed["text"]} for row, seed in zip(rows, seeds, strict=True)]


def pair_examples(pairs: Artifact, documents: Artifact) -> list[dict[str, Any]]:
    """Accepted pairs near the least, the median and the greatest similarity, with their texts."""
    columns = ["d1", "d2", "similarity", "containment", "verdict"]
    shards = [table.filter(pc.equal(table["verdict"], "accepted")) for table in parquet.tables(pairs, columns)]
    table = pa.concat_tables(shards)
    order = np.argsort(table["similarity"].to_numpy(), kind="stable")
    places = np.unique((np.array([0.05, 0.5, 0.95]) * (len(order) - 1)).round().astype(int))
    rows = table.take(order[places] if len(order) else order).to_pylist()
    first, second = (rows_at(documents, [row[name] for row in rows]) for name in ("d1", "d2"))
    return [
        row | {"d1_id": one["id"], "d1_text": one["text"], "d2_id": two["id"], "d2_text": two["text"]}
        for row, one, two in zip(rows, first, second, strict=True)
    ]


def shortened(text: str, limit: int = SHOWN) -> str:
    """The beginning of a text, cut between words, saying how much is left out."""
    if len(text) <= limit:
        return text
    cut = text.rfind(" ", limit // 2, limit)
    kept = text[: cut if cut > 0 else limit]
    return f"{kept} … [{len(text) - len(kept):,} more characters]"


def marked(text: str, other: str) -> list[tuple[str, str]]:
    """Cuts a text into pieces by what they share with another one.

    Returns:
      (piece, kind), whose pieces join to `text`; kind is "run" for `RUN` or more consecutive words that the other
      text has too, "word" for a single long one, else "".
    """
    words, theirs = [[match.group().lower() for match in _WORD.finditer(side)] for side in (text, other)]
    runs = {tuple(theirs[place : place + RUN]) for place in range(len(theirs) - RUN + 1)}
    vocabulary = {word for word in theirs if len(word) >= LONG_WORD}
    kinds = ["word" if word in vocabulary else "" for word in words]
    for place in range(len(words) - RUN + 1):
        if tuple(words[place : place + RUN]) in runs:
            kinds[place : place + RUN] = ["run"] * RUN
    pieces: list[tuple[str, str]] = []
    end, before = 0, ""
    for match, kind in zip(_WORD.finditer(text), kinds, strict=True):
        between = "run" if kind == before == "run" else ""  # one mark for a whole run, its spaces included
        for piece, piece_kind in ((text[end : match.start()], between), (match.group(), kind)):
            if piece and pieces and pieces[-1][1] == piece_kind != "word":
                pieces[-1] = (pieces[-1][0] + piece, piece_kind)
            elif piece:
                pieces.append((piece, piece_kind))
        end, before = match.end(), kind
    return [*pieces, (text[end:], "")] if end < len(text) else pieces
