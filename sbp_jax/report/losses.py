"""Losses of the arms on sets of held-out documents: their differences and the gap that each closes, with intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sbp_jax.artifacts import Artifact, parquet
from sbp_jax.config import BASE_ARM, ORACLE_ARM, Arm
from sbp_jax.report.results import Runs
from sbp_jax.scoring.draws import Draws
from sbp_jax.scoring.gap import Gap, gap_closed
from sbp_jax.scoring.scores import Scores

TEST = "test"  # the set of test documents
TOKENS, FLOPS = "tokens", "flops"  # what arms have equal budgets of
REASONS = {
    "worse": "the {oracle} arm does worse than {against}",
    "unclear": "the {oracle} arm cannot be told from {against}",
    "few": "too few documents are scored for an interval",
}


def scores(runs: Runs, name: str) -> Scores:
    """What the arms score on one set; memory holds one run at a time."""
    return Scores(runs, _columns, name)


def _columns(scored: Artifact) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = parquet.read(scored, ["ordinal", "nats", "targets"])
    return tuple(table[name].to_numpy() for name in ("ordinal", "nats", "targets"))  # type: ignore[return-value]


def bounds(draws: Draws, name: str) -> dict[str, Any]:
    """A value under its name, with `low` and `high`."""
    estimate = draws.estimate
    return {name: estimate.value, "low": estimate.low, "high": estimate.high}


def contrasts(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """Which arms are compared: each with repetition, those with synthetic text from related pairs with the controls.

    Controls are the arms whose text comes from random pairs or from none, and real documents laid side by side. Other
    ways to use the same pairs are compared with the plain one, and an arm with those that may train for its operations.
    """
    related = [arm for arm in arms if arm.synthetic_share and arm.pairs == "related"]
    plain = next((arm for arm in related if (arm.base, arm.order, arm.layout) == (None, "uniform", "documents")), None)
    others = [arm for arm in arms if arm.synthetic_share and arm.pairs != "related"]
    others += [arm for arm in arms if not arm.synthetic_share and arm.layout != "documents"]
    found = [(arm.name, BASE_ARM) for arm in arms]
    for arm in related:
        found += [(arm.name, control.name) for control in others]
        if plain is not None:
            found.append((arm.name, plain.name))
    found += [(arm.flops_of, arm.name) for arm in arms if arm.flops_of is not None]
    return [(arm, against) for arm, against in dict.fromkeys(found) if arm != against]


def comparisons(found: Scores, name: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Differences on one set, arm minus the other, in nats per token; below zero the arm is better."""
    told = []
    for arm, against in pairs:
        difference = found.difference(arm, against)
        if difference is not None:
            over = "documents and seeds" if difference.seeds > 1 else "documents"
            told.append({"arm": arm, "against": against, "set": name} | bounds(difference, "difference"))
            told[-1]["over"] = over
    return told


def rivals(arms: Sequence[Arm], of: str) -> tuple[str | None, str | None]:
    """The repetition arm and the oracle that may train for the operations of another arm, where there are any."""
    same = [arm for arm in arms if arm.flops_of == of and not arm.synthetic_share and arm.layout == "documents"]
    by_real = {arm.real: arm.name for arm in reversed(same)}
    return by_real.get("capped"), by_real.get("oracle")


def gaps(found: Scores, name: str, arms: Sequence[Arm], higher: bool = False) -> list[dict[str, Any]]:
    """The gap that each arm closes on one set: at equal tokens, and at equal operations where its rivals are there.

    On the test documents those without rivals are told too, with what is missing.

    Args:
      arms: of the experiment, without those of its sweep.
      higher: whether more is better, as of accuracies.
    """
    told = []
    for arm in arms:
        if arm.name in (BASE_ARM, ORACLE_ARM) or arm.flops_of is not None:
            continue
        if arm.epochs is None:
            told.append(_gap(found, name, arm.name, TOKENS, BASE_ARM, ORACLE_ARM, higher))
        else:
            reason = f"{arm.name} trains for a number of tokens of its own, {arm.epochs:g} passes over its real text"
            told.append(_undefined(name, arm.name, TOKENS, BASE_ARM, ORACLE_ARM, reason))
        against, oracle = rivals(arms, arm.name)
        if against is not None and oracle is not None:
            told.append(_gap(found, name, arm.name, FLOPS, against, oracle, higher))
        elif arm.synthetic_share and name == TEST:
            told.append(_undefined(name, arm.name, FLOPS, against, oracle, missing(arm.name, against, oracle)))
    return told


def missing(arm: str, against: str | None, oracle: str | None) -> str:
    """Which arms to add for the gap at equal operations."""
    needed = [] if against else [f'Arm("{BASE_ARM}_flops", flops_of="{arm}")']
    needed += [] if oracle else [f'Arm("{ORACLE_ARM}_flops", real="oracle", flops_of="{arm}")']
    return f"no arm like {BASE_ARM} and like {ORACLE_ARM} trains for the operations of {arm}; add {', '.join(needed)}"


def oracle_gain(found: Scores) -> Draws:
    """What the oracle gains over repetition, over the seeds that both have."""
    gain = found.difference(BASE_ARM, ORACLE_ARM)
    assert gain is not None, "arms of the experiment have the same seeds"
    return gain


def _gap(found: Scores, name: str, arm: str, budget: str, against: str, oracle: str, higher: bool) -> dict[str, Any]:
    seeds = found.common(arm, against, oracle)
    if not seeds:
        return _undefined(name, arm, budget, against, oracle, "the arms have no seed in common")
    base, sign = found.of(against, seeds), -1.0 if higher else 1.0
    made: Gap = gap_closed((base - found.of(arm, seeds)) * sign, (base - found.of(oracle, seeds)) * sign)
    if made.closed is None:
        reason = REASONS[str(made.reason)].format(oracle=oracle, against=against)
        return _undefined(name, arm, budget, against, oracle, reason)
    told = {"closed": made.closed.value, "low": made.closed.low, "high": made.closed.high, "reason": None}
    return {"arm": arm, "set": name, "budget": budget, **told, "against": against, "oracle": oracle}


def _undefined(
    name: str, arm: str, budget: str, against: str | None, oracle: str | None, reason: str
) -> dict[str, Any]:
    told = {"closed": None, "low": None, "high": None, "reason": reason}
    return {"arm": arm, "set": name, "budget": budget, **told, "against": against, "oracle": oracle}


def of_set(found: Scores, name: str, runs: Runs) -> dict[str, Any]:
    """One text set: what there is of it, and the loss of each arm."""
    first = next(iter(next(iter(runs.values())).values()))
    arms = {}
    for arm, scored in runs.items():
        loss = bounds(found.of(arm), "nats_per_token")
        bits = float(np.mean([artifact.stats["bits_per_byte"] for artifact in scored.values()]))
        arms[arm] = {"bits_per_byte": bits, "perplexity": perplexity(loss["nats_per_token"])} | loss
    sizes = {"documents": found.documents, "targets": int(found.targets), "bytes": first.stats.get("bytes")}
    return {"set": name, **sizes, "arms": arms}


def perplexity(nats: float) -> float:
    """exp(nats per token); a loss that no number holds has the greatest one."""
    return math.exp(min(nats, 700.0))
