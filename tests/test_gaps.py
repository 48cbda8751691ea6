"""Which arms are compared with which, at which budget, and what a reader is warned of."""

from typing import Any

import numpy as np
import pytest

from sbp_jax.arms import standard_arms
from sbp_jax.config import Arm, Experiment, Pairs
from sbp_jax.quality.measures import MEASURES
from sbp_jax.report.cautions import warnings
from sbp_jax.report.losses import contrasts, gaps, rivals
from sbp_jax.scoring.scores import Scores

FLOPS = (Arm("more", flops_of="sbp"), Arm("more_oracle", real="oracle", flops_of="sbp"))
ARMS = (*standard_arms(0.4), *FLOPS)


def scores(**losses: float) -> Scores:
    """Arms with these losses of 200 documents, three seeds each."""
    own = np.random.default_rng(0).normal(0, 0.3, 200)
    noise = np.random.default_rng(1)
    targets = np.full(200, 50.0)
    arms = {arm: {seed: loss + own + noise.normal(0, 0.02, 200) for seed in range(3)} for arm, loss in losses.items()}
    return Scores(arms, lambda nats: (np.arange(200), nats * targets, targets))


def test_every_arm_stands_against_repetition_and_related_pairs_against_their_controls() -> None:
    found = contrasts(ARMS)
    assert {arm for arm, against in found if against == "repetition"} == {arm.name for arm in ARMS} - {"repetition"}
    for control in ("random_pairs", "self_samples", "in_context"):
        against = {arm for arm, other in found if other == control}
        assert {"sbp", "megadoc", "staged", "multi_round"} == against
    assert {arm for arm, other in found if other == "sbp"} == {"megadoc", "staged", "multi_round"}
    assert ("sbp", "more") in found and ("sbp", "more_oracle") in found
    assert len(found) == len(set(found)) and all(arm != against for arm, against in found)


def test_the_gap_at_equal_operations_is_between_the_arms_that_may_spend_as_much() -> None:
    """Guards a gap at equal operations against an arm that had fewer of them."""
    arms = (*standard_arms(0.4, "repetition", "sbp", "oracle"), *FLOPS)
    assert rivals(arms, "sbp") == ("more", "more_oracle") and rivals(arms, "oracle") == (None, None)
    found = gaps(scores(repetition=3.5, sbp=3.4, oracle=3.0, more=3.45, more_oracle=2.9), "test", arms)
    by_budget = {gap["budget"]: gap for gap in found}
    assert len(found) == 2 and by_budget["tokens"]["closed"] == pytest.approx(0.2, abs=0.02)
    assert by_budget["flops"]["closed"] == pytest.approx(0.05 / 0.55, abs=0.02)
    assert (by_budget["flops"]["against"], by_budget["flops"]["oracle"]) == ("more", "more_oracle")


def test_without_rivals_the_entry_says_which_arms_to_add() -> None:
    arms = (*standard_arms(0.4, "repetition", "sbp", "oracle"), FLOPS[0])
    found = gaps(scores(repetition=3.5, sbp=3.4, oracle=3.0, more=3.45), "test", arms)
    (entry,) = [gap for gap in found if gap["budget"] == "flops"]
    assert entry["closed"] is entry["low"] is entry["high"] is None and entry["against"] == "more"
    assert 'Arm("oracle_flops", real="oracle", flops_of="sbp")' in entry["reason"]
    assert "repetition_flops" not in entry["reason"]
    assert all(
        gap["budget"] == "tokens" for gap in gaps(scores(repetition=3.5, sbp=3.4, oracle=3.0), "other", arms[:3])
    )


def test_an_arm_with_a_budget_of_its_own_has_no_gap_at_equal_tokens() -> None:
    arms = (*standard_arms(0.4, "repetition", "oracle"), Arm("short", epochs=2.0))
    (entry,) = gaps(scores(repetition=3.5, short=3.4, oracle=3.0), "test", arms)
    assert entry["closed"] is None and "2 passes" in entry["reason"]


def test_more_is_better_for_accuracies() -> None:
    arms = standard_arms(0.4, "repetition", "sbp", "oracle")
    (entry, _) = gaps(scores(repetition=0.30, sbp=0.35, oracle=0.40), "test", arms, higher=True)
    assert entry["closed"] == pytest.approx(0.5, abs=0.1)
    (entry, _) = gaps(scores(repetition=0.40, sbp=0.35, oracle=0.30), "test", arms, higher=True)
    assert entry["closed"] is None and "worse" in entry["reason"]


def summary(**changed: Any) -> dict[str, Any]:
    """What warnings are made from, with nothing to warn of."""
    row = {"sweep": None, "synthetic_share_asked": 0.0, "synthetic_share": 0.0, "overfitted": 0.0, "real": "capped"}
    row |= {"nats_per_token": 3.0, "real_epochs": 4.0, "last_validation": 3.1, "weight_decay": 0.1, "epochs": None}
    arms = {name: row | {"arm": name} for name in ("repetition", "repetition-wd1", "oracle")}
    arms["repetition-wd1"] |= {"sweep": "repetition", "weight_decay": 1.0}
    arms["oracle"] |= {"real": "oracle", "real_epochs": 1.0}
    for name, values in changed.pop("rows", {}).items():
        arms[name] |= values
    told = {
        "arms": list(arms.values()),
        "uniform_nats_per_token": 6.0,
        "seeds": [0, 1, 2],
        "tasks": [],
        "texts": [],
        "quality": [],
    }
    told |= {"oracle_gain": {"nats_per_token": 0.5, "low": 0.4, "high": 0.6}}
    told |= {"synthesizer": {"last_validation": 1.0, "best_validation": 1.0, "best_step": 1, "steps": 2}}
    return told | {"sweep": {"repetition": [{"arm": "repetition"}, {"arm": "repetition-wd1"}]}} | changed


def measured(real: dict[str, Any], accepted: dict[str, Any], pairs: str = "random") -> dict[str, Any]:
    rows = [{"group": "real", "documents": 50} | real, {"group": "accepted", "documents": 50} | accepted]
    rows.append({"group": "random", "documents": 50, "unrelated": 0.95})
    suffix = {"related": "", "random": "-random"}[pairs]
    told = {name: {"label": entry.label} for name, entry in MEASURES.items()}
    return {"pairs": pairs, "suffix": suffix, "rows": rows, "collapsed": [], "measures": told}


UNRELATED = {"unrelated": 0.9, "unrelated_low": 0.8, "unrelated_high": 0.96}
TASK = {"task": "arc", "metric": "acc", "chance": 0.25}


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"rows": {"repetition-wd1": {"last_validation": 3.0}}}, 'Arm("repetition", weight_decay=1)'),
        ({"rows": {"oracle": {"real_epochs": 1.5}}}, "reads its text 1.50 times"),
        ({"seeds": [0]}, "one seed"),
        (
            {"tasks": [TASK | {"arms": {"sbp": {"low": 0.24}, "oracle": {"low": 0.2}}}]},
            "better than chance at arc (acc)",
        ),
        (
            {"texts": [{"set": "wiki", "documents": 9, "copied": {"copied_oracle": 3, "copied_capped": 2}}]},
            "3 of 9 documents of the text set wiki",
        ),
        ({"quality": [measured({"contaminated": 0.02}, {})]}, "2.0% of 50 real documents hold one"),
        ({"quality": [measured({}, {"contaminated": 0.1})]}, "10.0% of 50 accepted synthetic-random documents"),
        ({"quality": [measured({}, UNRELATED)]}, None),
        ({"quality": [measured({}, UNRELATED, "related")]}, "pair irrelevance 90.0%, of random pairs 95.0%"),
        ({"quality": [measured({}, UNRELATED | {"unrelated_high": 0.94}, "related")]}, None),
        ({"quality": [measured({"duplicates_high": 0.1}, {"duplicates": 0.2, "duplicates_low": 0.09})]}, None),
        (
            {"quality": [measured({}, {}) | {"collapsed": [{"group": "accepted", "told": "all begin alike"}]}]},
            "synthetic-random documents come from a template: all begin alike",
        ),
        ({"oracle_gain": {"nats_per_token": 0.1, "low": -0.1, "high": 0.3}}, "no gap to close"),
        ({"rows": {"oracle": {"synthetic_share_asked": 0.3, "synthetic_share": 0.2}}}, "asked for 30.0%"),
    ],
)
def test_a_reader_is_warned_of_what_weakens_the_result(changed: dict[str, Any], said: str | None) -> None:
    arms, looked = (Arm("repetition"), Arm("oracle", real="oracle")), Pairs(decontaminate=("items.jsonl",))
    experiment = Experiment("planted", arms=arms, pairs=looked)
    assert warnings(summary(), experiment) == []
    told = warnings(summary(**changed), experiment)
    assert len(told) == (said is not None) and all(str(said) in warning for warning in told)


def test_tasks_that_nobody_looked_for_in_the_text_are_told() -> None:
    arms = (Arm("repetition"), Arm("oracle", real="oracle"))
    tasks = [TASK | {"arms": {"sbp": {"low": 0.3}}}]
    (told,) = warnings(summary(tasks=tasks), Experiment("planted", arms=arms))
    assert "pairs.decontaminate" in told


def test_missing_controls_are_named() -> None:
    arms = standard_arms(0.4, "repetition", "sbp", "oracle", "self_samples")
    (told,) = warnings(summary(), Experiment("planted", arms=arms))
    assert "random_pairs" in told and "self_samples" not in told
    assert warnings(summary(), Experiment("planted", arms=standard_arms(0.4))) == []
