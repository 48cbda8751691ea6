"""Losses of runs on one set of documents, the test documents or a text set: differences to the first run's.

Where two runs scored the same documents the interval is that of the paired differences; else it is made from the two
intervals as if they had nothing to do with each other, and is said to be.
"""

import math
from collections.abc import Sequence
from typing import Any

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.report.losses import TEST, bounds
from sbp_jax.report.runs import Run
from sbp_jax.scoring.scores import Columns, Scores

NATS, BITS = "nats per token", "bits per byte"
Bounded = tuple[float, float | None, float | None]  # a value with the bounds of its interval


def of_arm(name: str, arm: str, runs: Sequence[Run]) -> dict[str, Any]:
    """An arm on one set in each run, None where it has none, and the differences to the first run.

    Args:
      name: of the text set, or `TEST`.
    """
    differences = [_difference(name, arm, runs[0], run) for run in runs[1:]]
    return {"arm": arm, "values": [row(run, name, arm) for run in runs], "differences": [None, *differences]}


def row(run: Run, name: str, arm: str) -> dict[str, Any] | None:
    """What the summary of a run says of an arm on one set."""
    if name == TEST:
        return next((row for row in run.summary["arms"] if row["arm"] == arm), None)
    return next((text["arms"].get(arm) for text in run.summary["texts"] if text["set"] == name), None)


def apart(first: Bounded, other: Bounded) -> dict[str, Any]:
    """`difference`, other minus first, `low` and `high`, from two intervals that are not paired.

    Each bound is as far off as both values are from theirs, squared and added (Newcombe 1998, "Interval estimation for
    the difference between independent proportions", method 10).
    """
    (value, low, high), (start, lowest, highest) = other, first
    difference = value - start
    if low is None or high is None or lowest is None or highest is None:
        return {"difference": difference, "low": None, "high": None}
    below, above = math.hypot(value - low, highest - start), math.hypot(high - value, start - lowest)
    return {"difference": difference, "low": difference - below, "high": difference + above}


def _difference(name: str, arm: str, first: Run, other: Run) -> dict[str, Any] | None:
    """Loss of an arm in one run minus that in the first: `difference`, `low`, `high`, `unit`, `paired`, `why`."""
    rows = row(first, name, arm), row(other, name, arm)
    if rows[0] is None or rows[1] is None:
        return None
    sources = _source(first, name), _source(other, name)
    same = sources[0] is not None and sources[0] == sources[1]
    scored = _scored(first, name, arm), _scored(other, name, arm)
    if name == TEST and not same:
        why = "the corpora are not known to be the same"
    elif not all(scored):
        why = "the scores of single documents are gone"
    else:
        found = _paired(name, *scored, ["ordinal"] if same else ["ordinal", "bytes"])
        if found is not None:
            return found
        why = "other test documents" if name == TEST else f"other documents of {name}"
    return apart(_in_bits(rows[0]), _in_bits(rows[1])) | {"unit": BITS, "paired": False, "why": why}


def _source(run: Run, name: str) -> str | None:
    """The key of the documents that a set is taken from, which names all that they are read from."""
    if name == TEST:
        return run.keys.get("documents")
    copies = run.artifact(f"copies/{name}")
    return None if copies is None else copies.recipe["inputs"]["texts"]


def _scored(run: Run, name: str, arm: str) -> dict[int, Artifact]:
    """The scores of an arm on a set by seed, those that are still there."""
    role = f"scored/{arm}" if name == TEST else f"text/{name}/{arm}"
    found = {seed: run.artifact(f"{role}/{seed}") for seed in run.summary["seeds"]}
    return {seed: artifact for seed, artifact in found.items() if artifact is not None}


def _paired(
    name: str, first: dict[int, Artifact], other: dict[int, Artifact], equal: list[str]
) -> dict[str, Any] | None:
    """The paired difference, None where the documents are not the same: in bits per byte if the tokenizers differ.

    Args:
      equal: columns that are the same where the documents are.
    """
    tables = [parquet.read(next(iter(seeds.values()))).sort_by("ordinal") for seeds in (first, other)]
    if not tables[0].select(equal).equals(tables[1].select(equal)):
        return None
    same = tables[0]["targets"].equals(tables[1]["targets"])
    stream = TEST if name == TEST else f"text {name}"
    found = Scores({"first": first, "other": other}, _of_tokens if same else _of_bytes, stream)
    difference = found.difference("other", "first") or found.of("other") - found.of("first")
    return bounds(difference, "difference") | {"unit": NATS if same else BITS, "paired": True, "why": None}


def _of_tokens(scored: Artifact) -> Columns:
    table = parquet.read(scored, ["ordinal", "nats", "targets"])
    return table["ordinal"].to_numpy(), table["nats"].to_numpy(), table["targets"].to_numpy()


def _of_bytes(scored: Artifact) -> Columns:
    table = parquet.read(scored, ["ordinal", "nats", "bytes"])
    return table["ordinal"].to_numpy(), table["nats"].to_numpy() / math.log(2), table["bytes"].to_numpy()


def _in_bits(loss: dict[str, Any]) -> Bounded:
    """A loss in bits per byte, which do not depend on the tokenizer."""
    value, scale = loss["bits_per_byte"], loss["bits_per_byte"] / loss["nats_per_token"]
    if loss["low"] is None:
        return value, None, None
    return value, loss["low"] * scale, loss["high"] * scale
