"""Charts of single sections of the page: the sweep, operations by step, distances and lengths of synthetic text."""

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from sbp_jax.artifacts import parquet
from sbp_jax.report import charts, forest
from sbp_jax.report.charts import Series
from sbp_jax.report.environment import label
from sbp_jax.report.forest import Stack
from sbp_jax.report.results import Results, sample_texts, shards, spread
from sbp_jax.report.svg import compact
from sbp_jax.text.shingles import words

LENGTH_BINS = 16
WRITTEN = 192  # shards of synthetic documents whose lengths are counted
STEPS = ("embedding", "search", "base", "tuning", "generation", "training")  # that operations are counted of


def shares_chart(summary: dict[str, Any]) -> Markup | None:
    """Test loss against the share of synthetic tokens, with its interval."""
    found = sorted(summary["sweep"]["shares"], key=lambda row: row["share"])
    if len(found) < 2:
        return None
    x, y, low, high = (np.array([row[name] for row in found]) for name in ("share", "nats_per_token", "low", "high"))
    best = min(found, key=lambda row: row["validation"])
    least = float(best["share"]), float(best["nats_per_token"]), f"least validation loss: {best['arm']}"
    line = Series("test loss", 1, x, y, low.astype(float), high.astype(float), (least,))
    title = "Test loss by share of synthetic tokens"
    return charts.line_chart([line], title, "synthetic share of the training tokens", "nats per token", percent=True)


def repetition_grid(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The arms of repetition by weight decay, down, and epochs, across."""
    found = summary["sweep"]["repetition"]
    if not found:
        return None
    decays, epochs = (sorted({row[name] for row in found}) for name in ("weight_decay", "epochs"))
    cells = {(row["weight_decay"], row["epochs"]): row for row in found}
    return {"weight_decays": decays, "epochs": epochs, "cells": cells}


def operations_chart(summary: dict[str, Any]) -> Markup | None:
    """Operations of each arm by the step that they were spent on."""
    if not summary["compute"]:
        return None
    rows, own = [], {row["arm"] for row in summary["arms"] if row["sweep"] is None}
    for row in (row for row in summary["compute"] if row["arm"] in own):
        parts = tuple((name, color, float(row["flops"][name] or 0)) for color, name in enumerate(STEPS))
        rows.append(Stack(row["arm"], parts, compact(row["flops"]["total"])))
    return forest.stacked(rows, "Operations of each arm by step", compact)


def distances(measured: dict[str, Any]) -> dict[str, Any] | None:
    """How near synthetic documents are to their seeds, beside true pairs and random ones.

    Returns:
      The chart, `names` of its lines with their colours, and `means` in words; None where nothing was measured.
    """
    lines, means = [], []
    for color, (kind, found) in enumerate(measured["distances"].items()):
        edges, counts = np.array(found["edges"], float), np.array(found["counts"], float)
        if counts.sum():
            middles = (edges[1:] + edges[:-1]) / 2
            lines.append(Series(label(kind), color, middles, counts / counts.sum()))
            means.append(f"{label(kind)} {found['mean']:.3f}")
    if not lines:
        return None
    low = min(float(line.x.min()) for line in lines)
    title = "Distance of seeds to other documents"
    chart = charts.line_chart(lines, title, "distance of the embeddings", "share of documents", x_low=low)
    return {"chart": chart, "names": [(line.name, line.color) for line in lines], "means": ", ".join(means)}


def lengths_chart(results: Results) -> Markup | None:
    """Histogram of the words of accepted documents and of real ones, samples; longer ones stand in the last bin."""
    if results.synthetic is None or results.synthetic.rows == 0:
        return None
    real = np.diff(words(list(sample_texts(results.documents, results.splits, "capped"))).offsets)
    read = [results.synthetic.file(shard.name) for shard in spread(shards(results.synthetic), WRITTEN) if shard.rows]
    counted = np.concatenate([parquet.table(path, ["words"])["words"].to_numpy() for path in read])
    longest = max(np.quantile(real, 0.98), np.quantile(counted, 0.98))
    step = max(5, 5 * math.ceil(longest / LENGTH_BINS / 5))
    edges = np.arange(0, step * (LENGTH_BINS + 1), step)
    groups = [
        (name, np.histogram(np.clip(lengths, 0, edges[-1]), edges)[0] / len(lengths))
        for name, lengths in (("real (capped)", real), ("synthetic, accepted", counted))
    ]
    title, x_label = "Words of a document, real and synthetic", "words (all longer ones in the last bin)"
    return charts.histogram(groups, edges, title, x_label, "share of documents")
