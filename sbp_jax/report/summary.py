"""The results of an experiment as plain numbers, and those numbers as text for a terminal."""

import math
import textwrap
from collections import Counter
from typing import Any

import numpy as np

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import BASE_ARM, ORACLE_ARM, Arm
from sbp_jax.model.parameters import count
from sbp_jax.report.examples import shortened, synthetic_examples
from sbp_jax.report.pairs import ACCEPTED, TOO_DISTANT, evidence, value_counts
from sbp_jax.report.results import (
    Curve,
    DocumentLosses,
    Results,
    curve,
    document_losses,
    ledger,
    real_epochs,
    synthetic_tokens,
    vocabulary,
)
from sbp_jax.scoring.gap import gap_closed

SHARE_TOLERANCE = 0.005  # of the training tokens; below it a missing share is rounding to rows
OVERFITTED = 0.02  # nats per token that the last validation loss may lie above the best one without a word
SHOWN = 300  # characters of a document in the terminal
WIDTH = 100


def summarize(results: Results) -> dict[str, Any]:
    """Everything a reader is told in numbers, as JSON values; losses in nats per token over all test documents."""
    experiment = results.experiment
    arms = [_arm(results, arm) for arm in experiment.arms]
    losses = {arm.name: document_losses(results.scored[arm.name].values()) for arm in experiment.arms}
    gains, oracle_gain = _gaps(losses)
    base = results.trained[BASE_ARM][experiment.seeds[0]]
    entries = vocabulary(base)
    stages = (results.neighbors, results.pairs, results.screened, results.documents)
    pairs = evidence(*stages, experiment.pairs)
    summary = {
        "name": experiment.name,
        "note": experiment.note,
        "seeds": len(experiment.seeds),
        "parameters": count(experiment.model, entries),
        "vocabulary": entries,
        "uniform_nats_per_token": math.log(entries),
        "arms": arms,
        "gaps": gains,
        "oracle_gain": oracle_gain,
        "counts": _counts(results, pairs, losses[BASE_ARM]),
        "pairs": pairs,
        "synthesizer": _synthesizer(results.synthesizer),
        "examples": [] if results.synthetic is None else synthetic_examples(results.synthetic, results.documents),
    }
    return _stand_in(summary | {"warnings": _warnings(summary)}, results, losses)


def _stand_in(summary: dict[str, Any], results: Results, losses: dict[str, DocumentLosses]) -> dict[str, Any]:
    experiment, base = results.experiment, losses[BASE_ARM]
    for row, arm in zip(summary["arms"], experiment.arms, strict=True):
        decay = experiment.training.weight_decay if arm.weight_decay is None else arm.weight_decay
        row |= {"pairs": arm.pairs, "base": arm.base, "order": arm.order, "layout": arm.layout, "weight_decay": decay}
        row |= {"sweep": None, "flops_of": arm.flops_of, "low": None, "high": None}
        row |= {"perplexity": math.exp(row["nats_per_token"])}
    comparisons: list[dict[str, Any]] = []
    for arm in experiment.arms:
        if arm.name != BASE_ARM:
            own = losses[arm.name]
            found = gap_closed(own.nats, base.nats, own.nats, base.targets).oracle_gain
            comparisons.append({"arm": arm.name, "against": BASE_ARM, "set": "test", "over": "documents"})
            comparisons[-1] |= {"difference": -found[0], "low": -found[2], "high": -found[1]}
    for gap in summary["gaps"]:
        gap |= {"set": "test", "budget": "tokens", "against": BASE_ARM, "oracle": ORACLE_ARM, "reason": None}
        if gap["closed"] is None:
            gap["reason"] = "the oracle cannot be told from repetition"
    counts = summary["counts"]
    return summary | {
        "seeds": list(experiment.seeds),
        "test": {"documents": counts["test_documents"], "targets": counts["test_targets"], "bytes": None},
        "comparisons": comparisons,
        "texts": [],
        "tasks": [],
        "compute": [],
        "sweep": {"shares": [], "repetition": [], "chosen": None},
        "quality": [],
    }


def text(summary: dict[str, Any]) -> str:
    """The summary as lines for a terminal of 100 columns."""
    lines = [f"{summary['name']}: what are synthetic documents worth?", ""]
    rows = [("arm", "seeds", "tokens", "synthetic", "real epochs", "nats/token", "bits/byte", "best validation")]
    for arm in summary["arms"]:
        synthetic = f"{arm['synthetic_share']:.1%}" if arm["synthetic_share_asked"] else "none"
        best = f"{arm['best_validation']:.3f} at step {arm['best_step']:,}"
        rows.append(
            (
                *(arm["arm"], f"{arm['seeds']}", f"{arm['tokens']:,}", synthetic, f"{arm['real_epochs']:.2f}"),
                *(f"{arm['nats_per_token']:.4f}", f"{arm['bits_per_byte']:.4f}", best),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    uniform = f"{summary['uniform_nats_per_token']:.2f} nats/token"
    lines += [f"A guess at random among {summary['vocabulary']:,} tokens: {uniform}.", ""]
    for answer in answers(summary):
        lines += textwrap.wrap(answer, WIDTH)
    for warning in summary["warnings"]:
        lines += ["", *textwrap.wrap(f"Warning: {warning}", WIDTH)]
    for place, example in enumerate(summary["examples"], 1):
        scores = f"{example['words']:,} words, {example['repetition']:.0%} repeated, {example['copied']:.0%} copied"
        lines += ["", f"Synthetic document {place}: {example['id']}, {scores}"]
        for label, content in (("seed", example["seed_text"]), ("synthetic", example["text"])):
            start = f"  {label:<10} "
            flat = shortened(" ".join(printable(content).split()), SHOWN)
            lines += textwrap.wrap(start + flat, WIDTH, subsequent_indent=" " * len(start)) or [start]
    if summary["note"]:
        lines += ["", *textwrap.wrap(f"Note: {summary['note']}", WIDTH)]
    return "\n".join(lines)


def answers(summary: dict[str, Any]) -> list[str]:
    """What was found, in sentences: the gap closed by each arm, then what the gap is."""
    gain, counts = summary["oracle_gain"], summary["counts"]
    value = f"{gain['nats_per_token']:.4f} nats per token (95% interval {gain['low']:.4f} to {gain['high']:.4f})"
    lines = []
    if gain["low"] <= 0:
        reason = f"did worse than {BASE_ARM}" if gain["high"] < 0 else f"cannot be told from {BASE_ARM}"
        lines.append(f"The gap closed is undefined, because the {ORACLE_ARM} arm {reason} on the test documents.")
    for gap in summary["gaps"]:
        if gap["closed"] is not None:
            lines.append(_closed(**{name: gap[name] for name in ("arm", "closed", "low", "high")}))
    lines.append(f"The {ORACLE_ARM}'s gain over {BASE_ARM}, on {counts['test_documents']:,} test documents: {value}.")
    luck = f"losses are means over {len(summary['seeds'])} seeds, whose spread is not in it"
    if len(summary["seeds"]) == 1:
        luck = "with one seed for each arm, the luck of training is not in it"
    return [*lines, f"The interval is over the choice of test documents; {luck}."]


def _closed(arm: str, closed: float, low: float, high: float) -> str:
    interval = f"95% interval {low:.0%} to {high:.0%}"
    if low > 0:
        return f"The {arm} arm closed {closed:.0%} of the gap between {BASE_ARM} and {ORACLE_ARM} ({interval})."
    verdict = "is worse than" if high < 0 else "cannot be told from"
    return f"The {arm} arm {verdict} {BASE_ARM}: gap closed {closed:.0%} ({interval})."


def printable(content: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() or character == "\n" else " " for character in content)


def _arm(results: Results, arm: Arm) -> dict[str, Any]:
    """One row of the table of arms; means over seeds. The tokens of the seeds are equal, as their plans are."""
    trained, scored = list(results.trained[arm.name].values()), list(results.scored[arm.name].values())
    seen = ledger(trained[0])
    tokens = sum(entry["tokens"] for entry in seen.values())
    synthetic = synthetic_tokens(seen)
    losses = [artifact.stats["nats_per_token"] for artifact in scored]
    curves = [curve(artifact) for artifact in trained]
    best = min(trained, key=lambda artifact: artifact.stats["best_validation"])
    return {
        "arm": arm.name,
        "real": arm.real,
        "seeds": len(trained),
        "steps": trained[0].stats["steps"],
        "tokens": tokens,
        "synthetic_tokens": synthetic,
        "synthetic_share_asked": arm.synthetic_share,
        "synthetic_share": synthetic / tokens,
        "real_epochs": real_epochs(seen),
        "nats_per_token": float(np.mean(losses)),
        "nats_per_token_by_seed": losses,
        "bits_per_byte": float(np.mean([artifact.stats["bits_per_byte"] for artifact in scored])),
        "best_validation": best.stats["best_validation"],
        "best_step": best.stats["best_step"],
        "last_validation": float(np.mean([entry.validation[-1] for entry in curves])),
        "overfitted": float(np.mean([entry.validation[-1] - entry.validation.min() for entry in curves])),
        "streams": seen,
    }


def _gaps(losses: dict[str, DocumentLosses]) -> tuple[list[dict[str, Any]], dict[str, float]]:
    base, oracle = losses[BASE_ARM], losses[ORACLE_ARM]
    if any(not np.array_equal(arm.ordinals, base.ordinals) for arm in losses.values()):
        raise ValueError("the arms were scored on different documents")
    gain = gap_closed(oracle.nats, base.nats, oracle.nats, base.targets).oracle_gain
    gaps = []
    for name, arm in losses.items():
        if name not in (BASE_ARM, ORACLE_ARM):
            gap = gap_closed(arm.nats, base.nats, oracle.nats, base.targets)
            gaps.append({"arm": name, "closed": gap.closed, "low": gap.low, "high": gap.high})
    return gaps, dict(zip(("nats_per_token", "low", "high"), gain, strict=True))


def _counts(results: Results, pairs: dict[str, Any], test: DocumentLosses) -> dict[str, Any]:
    """Documents, pairs and synthetic documents at each step of the way."""
    splits = _value_counts(results.splits, "split")
    rejected = {verdict: n for verdict, n in pairs["verdicts"].items() if verdict not in (ACCEPTED, TOO_DISTANT)}
    accepted = pairs["verdicts"].get(ACCEPTED, 0)
    counts: dict[str, Any] = {
        "documents": results.documents.rows,
        "skipped": results.documents.stats.get("skipped", 0),
        "splits": dict(splits),
        "test_documents": len(test.ordinals),
        "test_targets": int(test.targets.sum()),
        "neighbors": results.neighbors.rows,
        "candidates": accepted + sum(rejected.values()),
        "accepted_pairs": accepted,
        "rejected_pairs": rejected,
        "documents_with_pairs": pairs["documents_with_pairs"],
    }
    if results.synthesized is not None and results.synthetic is not None:
        finishes = _value_counts(results.synthesized, "finish")
        rejected = _value_counts(results.synthetic, "verdict", prefix="rejected")
        counts |= {
            "generated": results.synthesized.rows,
            "finish": dict(finishes.most_common()),
            "accepted_synthetic": results.synthetic.rows,
            "rejected_synthetic": dict(rejected.most_common()),
        }
    return counts


def _value_counts(artifact: Artifact, column: str, prefix: str = "part") -> Counter[str]:
    """How often each value of a column occurs in an artifact."""
    counts: Counter[str] = Counter()
    for table in parquet.tables(artifact, [column], prefix):
        counts += value_counts(table[column])
    return counts


def _synthesizer(artifact: Artifact) -> dict[str, Any]:
    losses: Curve = curve(artifact)
    stats = {name: artifact.stats[name] for name in ("steps", "tokens", "best_step", "best_validation")}
    return stats | {"first_validation": float(losses.validation[0]), "last_validation": float(losses.validation[-1])}


def _warnings(summary: dict[str, Any]) -> list[str]:
    """What a reader might otherwise miss, each in a sentence."""
    warnings = []
    for arm in summary["arms"]:
        asked, got = arm["synthetic_share_asked"], arm["synthetic_share"]
        if got < asked - SHARE_TOLERANCE:
            warnings.append(
                f"the {arm['arm']} arm asked for {asked:.1%} synthetic tokens and got {got:.1%}, real text filled"
                " the rest; raise synthesis.oversample or loosen the filters."
            )
        if arm["overfitted"] > OVERFITTED:
            warnings.append(
                f"the {arm['arm']} arm ends {arm['overfitted']:.3f} nats per token above its best validation loss, "
                "so the final models compared here are past their best."
            )
        if arm["nats_per_token"] >= summary["uniform_nats_per_token"]:
            warnings.append(f"the {arm['arm']} arm predicts no better than a guess at random; it has learned nothing.")
    if summary["oracle_gain"]["low"] <= 0:
        warnings.append(
            f"the {ORACLE_ARM}'s gain over {BASE_ARM} is not surely above zero, so there is no gap to close;"
            " train longer, so that repetition wears out, or score more test documents."
        )
    tuned = summary["synthesizer"]
    if tuned["last_validation"] > tuned["best_validation"] + OVERFITTED:
        best = f"step {tuned['best_step']:,} of {tuned['steps']:,}"
        warnings.append(f"the synthesizer's pair loss was best at {best}; that checkpoint wrote the documents.")
    return warnings
