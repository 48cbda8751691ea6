"""The triples as the page holds them: cut short, with shared runs marked, within a budget of bytes."""

import json
from typing import Any

from markupsafe import Markup

from sbp_jax.report.excerpts import Piece, shared, windowed

RUN = 8  # consecutive words that are marked where two texts of a triple have them
LIMIT = 1_200  # characters of a text that are shown
BYTES = 2_500_000  # of all triples together, as they stand in the page
STATIC = 3  # triples that are there without JavaScript
NAME = 160  # characters of an id or a source
NUMBERS = ("words", "copied", "repetition", "seed_overlap", "seed_common", "pair_similarity", "logprob")
KINDS = ("", "seed", "pair", "seed pair", "gap")  # of pieces, by their numbers in the page


def shown(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Markup]:
    """As many triples as the budget holds, and the same as a script element's JSON."""
    kept: list[dict[str, Any]] = []
    texts: list[str] = []
    size = 0
    for row in found:
        entry = _entry(row)
        text = _harmless(json.dumps(entry, ensure_ascii=False, separators=(",", ":")))
        size += len(text.encode()) + 2
        if size > BYTES:
            break
        kept.append(entry)
        texts.append(text)
    return kept, Markup("[" + ",\n".join(texts) + "]")


def pieces(flat: list[Any]) -> list[Piece]:
    """The pieces of a text from their form in the page."""
    return [(text, KINDS[kind]) for kind, text in zip(flat[::2], flat[1::2], strict=True)]


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    text, seed, target = row["text"], row["seed_text"], row["target_text"]
    return {
        "id": _short(row["id"]),
        "seed": _short(row["seed_id"]),
        "target": _short(row["target_id"]),
        "source": _short(row["source"]),
        "verdict": row["verdict"],
        "finish": row["finish"],
        "numbers": {name: _rounded(value) for name, value in _numbers(row).items() if value is not None},
        "texts": [
            _flat(seed, [("seed", text)]),
            _flat(target, [("pair", text)]),
            _flat(text, [("seed", seed), ("pair", target)]),
        ],
        "lineage": _lineage(row),
    }


def _numbers(row: dict[str, Any]) -> dict[str, float | None]:
    """The scores by which triples are filtered; of the log probability the mean of a token."""
    return {name: row[name] for name in NUMBERS} | {"logprob": row["logprob"] / max(row["new_tokens"], 1)}


def _flat(text: str | None, others: list[tuple[str, str | None]]) -> list[Any] | None:
    if text is None:
        return None
    cut = windowed(shared(text, others, RUN), LIMIT)
    return [entry for piece, kind in cut for entry in (KINDS.index(kind), piece)]


def _lineage(row: dict[str, Any]) -> str:
    """Where a document comes from, in a line."""
    parts = [f"sample {row['sample']}", f"random key {row['key']}", f"synthesizer {row['synthesizer']}"]
    if row["step"] is not None:
        parts[-1] += f" at step {row['step']:,}"
    if row["engine"]:
        parts.append(f"engine {row['engine']}")
    parts.append(f"temperature {row['temperature']:g}, top-p {row['top_p']:.3g}")
    others = [name for name in row["conditioning_ids"] or () if name != row["seed_id"]]
    if others:
        parts.append("also read: " + ", ".join(_short(name) or "" for name in others))
    return "; ".join(parts)


def _short(name: str | None) -> str | None:
    return name if name is None or len(name) <= NAME else f"{name[: NAME - 1]}…"


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def _harmless(text: str) -> str:
    """JSON in which no tag, comment or entity can begin, whatever the documents hold."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
