"""The evidence about pairs on the page: its charts, and what its template calls."""

from typing import Any

import numpy as np
from markupsafe import Markup

from sbp_jax.report import charts
from sbp_jax.report.charts import Series
from sbp_jax.report.pair_samples import excerpt
from sbp_jax.report.pair_text import RECALL, facts, source_names
from sbp_jax.text.shingles import WORDS

GLOBALS = {"excerpt": excerpt, "facts": facts, "recall_names": RECALL, "source_names": source_names, "shingle": WORDS}
SIMILARITY = "inner product of the unit embeddings"


def pair_charts(pairs: dict[str, Any]) -> dict[str, Markup | None]:
    """Similarity of the neighbours, what each threshold would give, and the share of copies; None: nothing to draw."""
    made: dict[str, Markup | None] = dict.fromkeys(("similarity", "sweep", "copies"))
    threshold = pairs["threshold"]
    edges, counts = _bins(pairs["histogram"], "neighbors")
    if len(counts):
        made["similarity"] = charts.histogram(
            [("neighbours", counts)],
            edges,
            "Similarity of each capped document's nearest neighbours",
            SIMILARITY,
            "neighbours",
            (threshold, f"threshold {threshold:g}") if edges[0] <= threshold <= edges[-1] else None,
        )
    known = [row for row in pairs["sweep"] if row["accepted"] is not None]
    if len(known) > 1:
        x = np.array([row["threshold"] for row in known])
        names = (("accepted", "accepted pairs"), ("accepted_documents", "documents that begin one"))
        lines = [Series(name, i, x, np.array([row[key] for row in known])) for i, (key, name) in enumerate(names)]
        title = "Pairs and documents by threshold"
        at = (threshold, f"threshold {threshold:g}") if x[0] <= threshold <= x[-1] else None
        made["sweep"] = charts.line_chart(lines, title, "threshold", "number", x_low=float(x[0]), at=at)
    edges, copies = _bins(pairs["near_duplicates"], "near_duplicates")
    if copies.any():
        rates = copies / np.maximum(_bins(pairs["near_duplicates"], "pairs")[1], 1)
        title = "Share of near-duplicates by similarity"
        made["copies"] = charts.histogram([("near-duplicates", rates)], edges, title, SIMILARITY, "share", shares=True)
    return made


def _bins(histogram: dict[str, list[Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array(histogram["edges"]), np.array(histogram[name])
