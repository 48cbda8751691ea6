"""The verdict on synthetic documents by their scores; the stage `filter` lists the rules."""

from typing import Any

import numpy as np
import pyarrow as pa

from sbp_jax.config import Filters
from sbp_jax.data.earlier_copies import Earlier
from sbp_jax.data.synthetic_scores import other_language, trim

ACCEPTED = "accepted"


def trimmed(texts: list[str], finishes: list[str], filters: Filters) -> tuple[list[str], list[str]]:
    """The texts as they are kept, and what was cut off."""
    pairs = [trim(text, finish, filters.unfinished) for text, finish in zip(texts, finishes, strict=True)]
    return [kept for kept, _ in pairs], [removed for _, removed in pairs]


def by_itself(rows: pa.Table, finish: list[str], texts: list[str], filters: Filters) -> np.ndarray:
    """The verdict on each document by every rule but the last two."""
    ends = np.array(finish, np.str_)
    scores: dict[str, Any] = {name: rows[name].to_numpy(zero_copy_only=False) for name in rows.schema.names}
    run, overlap = (np.nan_to_num(scores[name].astype(np.float64)) for name in ("seed_common", "seed_overlap"))
    cut = (ends == "length") & (filters.unfinished != "keep")
    rules = {
        "loop": ends == "loop",
        "unfinished": cut & (np.array([not text for text in texts], bool) | (filters.unfinished == "drop")),
        "too_short": scores["words"] < max(filters.min_words, 1),
        "too_long": scores["words"] > (np.inf if filters.max_words is None else filters.max_words),
        "repetition": scores["repetition"] > np.float32(filters.max_repetition),
        "seed_run": run > filters.max_seed_run,
        "seed_overlap": overlap.astype(np.float32) > np.float32(filters.max_seed_overlap),
        "copied": scores["copied"] > np.float32(filters.max_copied),
        "held_out": scores["held_out"] > np.float32(filters.max_held_out),
        "contaminated": scores["contaminated_by"] != "",
        "language": other_language(rows) & filters.same_language,
    }
    return np.select(list(rules.values()), list(rules), ACCEPTED).astype("<U16")


def with_copies(scores: pa.Table, earlier: Earlier, seeds: np.ndarray, rows: slice, version: int) -> pa.Table:
    """The scores with those of the last two rules, and the final verdict."""
    verdicts = scores["verdict"].to_numpy(zero_copy_only=False).astype("<U16")
    copies = (earlier.of_R >= 0) & (verdicts == ACCEPTED)
    siblings = (seeds[earlier.of_R] == seeds[rows]) & (seeds[rows] >= 0)
    verdicts[copies] = np.where(siblings, "sibling", "duplicate")[copies]
    columns = {
        "sibling": pa.array(earlier.sibling_R),
        "duplicate": pa.array(earlier.duplicate_R),
        "copy_of": pa.array(earlier.of_R, mask=earlier.of_R < 0),
        "verdict": pa.array(verdicts.tolist(), pa.string()),
        "rule_version": pa.array(np.full(len(verdicts), version, np.int32)),
    }
    for name, column in columns.items():
        place = scores.schema.get_field_index(name)
        scores = scores.append_column(name, column) if place < 0 else scores.set_column(place, name, column)
    return scores
