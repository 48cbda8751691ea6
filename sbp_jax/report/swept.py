"""What a sweep found: the loss of each of its arms, and the settings of repetition that validation chooses."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sbp_jax.arms import REPETITION, Point, points
from sbp_jax.artifacts import Artifact
from sbp_jax.config import Experiment
from sbp_jax.report.results import curve, ledger, real_epochs, synthetic_tokens

Runs = Mapping[str, Mapping[int, Artifact]]  # by arm and seed


def swept(experiment: Experiment, trained: Runs, scored: Runs) -> dict[str, Any]:
    """A row for each point of the sweep, as JSON values; means over the seeds of the sweep, in nats per token.

    An arm is scored as it ends, so `validation`, by which repetition's settings are chosen, is the loss at the end too;
    `best_validation` is the least on the way.

    Args:
      trained, scored: at least the arms of `arms.points` with the sweep's seeds.

    Returns:
      `shares` and `repetition`, and `chosen`: the arm of the latter with the least validation loss, None without any.
    """
    seeds = experiment.seeds[: experiment.sweep.seeds]
    told: dict[str, Any] = {"shares": [], "repetition": [], "chosen": None}
    for point in points(experiment):
        name = point.arm.name
        runs, scores = [trained[name][seed] for seed in seeds], [scored[name][seed] for seed in seeds]
        told["repetition" if point.sweep == REPETITION else "shares"].append(_row(experiment, point, runs, scores))
    if told["repetition"]:
        told["chosen"] = min(told["repetition"], key=lambda row: row["validation"])["arm"]
    return told


def _row(experiment: Experiment, point: Point, trained: list[Artifact], scored: list[Artifact]) -> dict[str, Any]:
    seen, arm = ledger(trained[0]), point.arm
    tokens = sum(entry["tokens"] for entry in seen.values())
    decay = experiment.training.weight_decay if arm.weight_decay is None else arm.weight_decay
    curves = [curve(artifact).validation for artifact in trained]
    losses = {
        "tokens": tokens,
        "real_epochs": real_epochs(seen),
        "validation": float(np.mean([losses[-1] for losses in curves])),
        "best_validation": float(np.mean([losses.min() for losses in curves])),
        "nats_per_token": float(np.mean([artifact.stats["nats_per_token"] for artifact in scored])),
    }
    if point.sweep == REPETITION:
        return {"arm": arm.name, "weight_decay": decay, "epochs": arm.epochs} | losses
    return {"arm": arm.name, "share": arm.synthetic_share, "share_got": synthetic_tokens(seen) / tokens} | losses
