"""The results of an experiment as plain numbers."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np

from sbp_jax.arms import TrainedArm, trained_arms
from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import BASE_ARM
from sbp_jax.model.parameters import count
from sbp_jax.report import task_scores
from sbp_jax.report.cautions import warnings
from sbp_jax.report.compute import compute
from sbp_jax.report.examples import synthetic_examples
from sbp_jax.report.losses import (
    TEST,
    bounds,
    comparisons,
    contrasts,
    gaps,
    of_set,
    oracle_gain,
    perplexity,
    scores,
)
from sbp_jax.report.pairs import ACCEPTED, TOO_DISTANT, evidence, value_counts
from sbp_jax.report.results import Curve, Results, curve, ledger, real_epochs, synthetic_tokens, vocabulary
from sbp_jax.report.swept import swept
from sbp_jax.report.terminal import printable, text
from sbp_jax.scoring.scores import Scores

__all__ = ["printable", "summarize", "text"]

QUALITY = "quality.json"


def summarize(results: Results) -> dict[str, Any]:
    """Everything a reader is told in numbers, as JSON values; losses in nats per token over all test documents.

    docs/numbers.md defines every one of them.
    """
    experiment = results.experiment
    own = [arm.name for arm in experiment.arms]
    found = scores(results.scored, TEST)
    pairs = contrasts(experiment.arms)
    added = [(arm, BASE_ARM) for arm in results.trained if arm not in own]
    compared = comparisons(found, TEST, pairs + added)
    closed = gaps(found, TEST, experiment.arms)
    texts = []
    for name, runs in results.texts.items():
        of_text = scores(runs, f"text {name}")
        texts.append(of_set(of_text, name, runs) | {"copied": _copied(results, name)})
        compared += comparisons(of_text, name, pairs)
        closed += gaps(of_text, name, experiment.arms)
    tasks, of_tasks = task_scores.summarize(results.tasks, experiment.arms)
    base = results.trained[BASE_ARM][experiment.seeds[0]]
    tested = results.scored[BASE_ARM][experiment.seeds[0]].stats
    entries = vocabulary(base)
    stages = (results.neighbors, results.pairs, results.screened, results.documents)
    evident = evidence(*stages, experiment.pairs)
    summary = {
        "name": experiment.name,
        "note": experiment.note,
        "seeds": list(experiment.seeds),
        "parameters": count(experiment.model, entries),
        "vocabulary": entries,
        "uniform_nats_per_token": math.log(entries),
        "test": {"documents": found.documents, "targets": int(found.targets), "bytes": tested.get("bytes")},
        "arms": [_arm(results, entry, found) for entry in trained_arms(experiment)],
        "comparisons": compared,
        "gaps": closed + of_tasks,
        "oracle_gain": bounds(oracle_gain(found), "nats_per_token"),
        "texts": texts,
        "tasks": tasks,
        "compute": compute(results),
        "sweep": _sweep(results, found),
        "quality": [json.loads(artifact.file(QUALITY).read_text()) for artifact in results.quality.values()],
        "counts": _counts(results, evident, found),
        "pairs": evident,
        "synthesizer": _synthesizer(results.synthesizer),
        "examples": [] if results.synthetic is None else synthetic_examples(results.synthetic, results.documents),
    }
    return summary | {"warnings": warnings(summary, experiment)}


def _arm(results: Results, entry: TrainedArm, found: Scores) -> dict[str, Any]:
    """One row of the table of arms; means over seeds. The tokens of the seeds are equal, as their plans are."""
    arm, own = entry.arm, results.experiment.training.weight_decay
    trained, scored = list(results.trained[arm.name].values()), list(results.scored[arm.name].values())
    seen = ledger(trained[0])
    tokens = sum(stream["tokens"] for stream in seen.values())
    synthetic = synthetic_tokens(seen)
    curves = [curve(artifact) for artifact in trained]
    best = min(trained, key=lambda artifact: artifact.stats["best_validation"])
    loss = bounds(found.of(arm.name), "nats_per_token")
    return {
        "arm": arm.name,
        "real": arm.real,
        "pairs": arm.pairs,
        "base": arm.base,
        "order": arm.order,
        "layout": arm.layout,
        "weight_decay": own if arm.weight_decay is None else arm.weight_decay,
        "epochs": arm.epochs,
        "flops_of": arm.flops_of,
        "sweep": entry.sweep,
        "seeds": len(trained),
        "steps": trained[0].stats["steps"],
        "tokens": tokens,
        "synthetic_tokens": synthetic,
        "synthetic_share_asked": arm.synthetic_share,
        "synthetic_share": synthetic / tokens,
        "real_epochs": real_epochs(seen),
        **loss,
        "nats_per_token_by_seed": found.by_seed(arm.name),
        "bits_per_byte": float(np.mean([artifact.stats["bits_per_byte"] for artifact in scored])),
        "perplexity": perplexity(loss["nats_per_token"]),
        "best_validation": best.stats["best_validation"],
        "best_step": best.stats["best_step"],
        "last_validation": float(np.mean([losses.validation[-1] for losses in curves])),
        "overfitted": float(np.mean([losses.validation[-1] - losses.validation.min() for losses in curves])),
        "streams": seen,
    }


def _copied(results: Results, name: str) -> dict[str, int] | None:
    """How many documents of a text set stand in the training documents; None where nobody looked."""
    if (found := results.copies.get(name)) is None:
        return None
    return {part: int(found.stats[part]) for part in ("copied_capped", "copied_oracle", "too_short")}


def _sweep(results: Results, found: Scores) -> dict[str, Any]:
    """What the sweep found, on the test documents with intervals; epochs as they came out."""
    experiment = results.experiment
    told = swept(experiment, results.trained, results.scored)
    for row in (*told["shares"], *told["repetition"]):
        row |= bounds(found.of(row["arm"], experiment.seeds[: experiment.sweep.seeds]), "nats_per_token")
    for row in told["repetition"]:
        row["epochs"] = row["real_epochs"]
    return told


def _counts(results: Results, pairs: dict[str, Any], found: Scores) -> dict[str, Any]:
    """Documents, pairs and synthetic documents at each step of the way."""
    rejected = {verdict: n for verdict, n in pairs["verdicts"].items() if verdict not in (ACCEPTED, TOO_DISTANT)}
    accepted = pairs["verdicts"].get(ACCEPTED, 0)
    counts: dict[str, Any] = {
        "documents": results.documents.rows,
        "skipped": results.documents.stats.get("skipped", 0),
        "splits": dict(_value_counts(results.splits, "split", "documents_")),
        "test_documents": found.documents,
        "test_targets": int(found.targets),
        "neighbors": results.neighbors.rows,
        "candidates": accepted + sum(rejected.values()),
        "accepted_pairs": accepted,
        "rejected_pairs": rejected,
        "documents_with_pairs": pairs["documents_with_pairs"],
    }
    if results.synthesized is not None and results.synthetic is not None:
        finishes = _value_counts(results.synthesized, "finish", "finish_")
        rejected = _value_counts(results.synthetic, "verdict", "rejected_", prefix="rejected")
        counts |= {
            "generated": results.synthesized.rows,
            "finish": dict(finishes.most_common()),
            "accepted_synthetic": results.synthetic.rows,
            "rejected_synthetic": dict(rejected.most_common()),
        }
    return counts


def _value_counts(artifact: Artifact, column: str, stats: str, prefix: str = "part") -> Counter[str]:
    """How often each value of a column occurs in an artifact: from its manifest, or else from its rows.

    Args:
      stats: what the counts in the manifest begin with.
    """
    told = {name.removeprefix(stats): count for name, count in artifact.stats.items() if name.startswith(stats)}
    if told:
        return Counter({value: count for value, count in told.items() if count})
    counts: Counter[str] = Counter()
    for table in parquet.tables(artifact, [column], prefix):
        counts += value_counts(table[column])
    return counts


def _synthesizer(artifact: Artifact) -> dict[str, Any]:
    losses: Curve = curve(artifact)
    stats = {name: artifact.stats[name] for name in ("steps", "tokens", "best_step", "best_validation")}
    return stats | {"first_validation": float(losses.validation[0]), "last_validation": float(losses.validation[-1])}
