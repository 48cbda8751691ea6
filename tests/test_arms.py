"""Arms are data: what each asks of the graph, what leaves the others alone, and which make no sense."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sbp_jax.arms import points, standard_arms, trained_arms
from sbp_jax.config import Arm, Corpus, Experiment, Sweep
from sbp_jax.derived import derive
from sbp_jax.errors import SbpError
from sbp_jax.experiments import check, load
from sbp_jax.graph import graph
from sbp_jax.pipeline import Pipeline

NINE = ["repetition", "sbp", "oracle", "random_pairs", "self_samples", "megadoc", "staged", "in_context", "multi_round"]
ROUND = ("synthesizer", "synthesized", "synthetic", "tokens-synthetic", "rows-synthetic")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    corpus = tmp_path / "documents.jsonl"
    corpus.write_text('{"id": "a", "text": "some text"}\n')
    return Experiment(name="test", corpus=Corpus(paths=(str(corpus),)), arms=standard_arms(0.25))


def keys(experiment: Experiment, workdir: Path) -> dict[str, str]:
    return {name: recipe.key for name, recipe in Pipeline(experiment, str(workdir)).recipes.items()}


def with_arm(experiment: Experiment, *arms: Arm) -> Experiment:
    return replace(experiment, arms=(*experiment.arms, *arms))


def test_further_arms_leave_the_recipes_of_the_others_alone(experiment: Experiment, tmp_path: Path) -> None:
    """Guards months of work: a control that is added must not train the base model, or write, again."""
    three = replace(experiment, arms=standard_arms(0.25, "repetition", "sbp", "oracle"))
    before, after = keys(three, tmp_path), keys(experiment, tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"report"}


def test_an_arm_that_is_as_usual_says_nothing_new_in_its_recipe(experiment: Experiment) -> None:
    """Guards the recipes of finished runs, which a default that is spelled out would change."""
    nodes = graph(experiment)
    usual = {"settings", "model", "training", "synthetic_share", "seed"}
    for name in ("repetition", "sbp", "oracle", "random_pairs", "self_samples", "megadoc", "in_context", "multi_round"):
        assert usual == set(nodes[f"train-{name}-0"].config)
    assert set(nodes["train-staged-0"].config) == usual | {"order"}
    assert set(nodes["rows-capped"].config) == set(nodes["rows-megadoc"].config) == {"stream", "context", "settings"}


def test_layouts_and_orders_read_the_rows_that_they_are_about(experiment: Experiment) -> None:
    nodes = graph(experiment)
    streams = {
        name: {role: node for role, node in nodes[f"train-{name}-0"].inputs.items() if node.startswith("rows-")}
        for name in NINE
    }
    own = {name: found.get("synthetic", found.get("megadoc", found["real"])) for name, found in streams.items()}
    assert own == {
        "repetition": "rows-capped",
        "sbp": "rows-synthetic",
        "oracle": "rows-oracle",
        "random_pairs": "rows-synthetic-random",
        "self_samples": "rows-synthetic-self",
        "megadoc": "rows-megadoc",
        "staged": "rows-synthetic",
        "in_context": "rows-capped-in-context",
        "multi_round": "rows-synthetic-from-sbp",
    }
    assert "synthetic" not in streams["megadoc"] and streams["megadoc"]["real"] == "rows-capped"
    assert nodes["rows-megadoc"].inputs["synthetic"] == "synthetic"
    assert nodes["rows-capped-in-context"].inputs["neighbors"] == "neighbors"


def test_a_further_round_starts_from_the_model_of_the_one_before(experiment: Experiment) -> None:
    """Another start, or other pairs, would be another experiment than that of rounds."""
    rounds = with_arm(
        experiment,
        Arm("round3", synthetic_share=0.25, base="multi_round"),
        Arm("control3", synthetic_share=0.1, base="multi_round", pairs="random"),
        Arm("self2", synthetic_share=0.1, base="sbp", pairs="none"),
    )
    check(rounds)
    nodes = graph(replace(rounds, seeds=(5, 6)))
    order = list(nodes)
    for suffix, base, pairs in (
        ("", "repetition", ""),
        ("-from-sbp", "sbp", ""),
        ("-from-multi_round", "multi_round", ""),
        ("-random-from-multi_round", "multi_round", "-random"),
    ):
        assert nodes[f"synthesizer{suffix}"].inputs == {
            "base": f"train-{base}-5",
            "pairs": f"rows-pairs-train{pairs}",
            "validation": f"rows-pairs-validation{pairs}",
            "tokenizer": "tokenizer",
        }
        assert nodes[f"synthesized{suffix}"].inputs["model"] == f"synthesizer{suffix}"
        assert nodes[f"synthesized{suffix}"].inputs["pairs"] == f"pairs{pairs}"
    assert nodes["train-round3-6"].inputs["synthetic"] == "rows-synthetic-from-multi_round"
    assert nodes["synthesized-self-from-sbp"].inputs["model"] == "train-sbp-5"
    assert all(
        order.index(parent) < order.index(name) for name, node in nodes.items() for parent in node.inputs.values()
    )


def test_an_arm_may_stand_before_the_one_that_it_asks_for(experiment: Experiment) -> None:
    arms = {arm.name: arm for arm in experiment.arms}
    turned = replace(experiment, arms=tuple(arms[name] for name in ("multi_round", *NINE[:-1])))
    check(turned)
    assert set(graph(turned)) == set(graph(experiment))


def test_the_greatest_share_of_a_source_says_how_much_is_written(experiment: Experiment) -> None:
    """A share sweep that wrote for each of its arms would cost as many times the generation."""
    nodes = graph(replace(experiment, sweep=Sweep(shares=(0.0, 0.125, 0.25, 0.75))))
    assert nodes["synthesized"].config["share"] == 0.75 and nodes["synthesized-random"].config["share"] == 0.25
    assert [name for name in nodes if name.startswith("train-sbp")] == [
        "train-sbp-0",
        "train-sbp-0.125-0",
        "train-sbp-0.75-0",
    ]
    assert not any(name.startswith("synthe") and "0." in name for name in nodes)


def test_a_sweep_of_repetition_remakes_nothing(experiment: Experiment, tmp_path: Path) -> None:
    """Guards the base model, the pairs and the synthetic text: none of them has to do with the grid."""
    grid = Sweep(weight_decays=(0.1, 1.6), epochs=(2.0, 8.5))
    swept = replace(experiment, sweep=grid, seeds=(3, 4))
    before, after = keys(replace(experiment, seeds=(3, 4)), tmp_path), keys(swept, tmp_path)
    assert {name for name in before if before[name] != after[name]} == {"report"}
    arms = ("wd0.1-e2", "wd0.1-e8.5", "wd1.6", "wd1.6-e2", "wd1.6-e8.5")  # wd0.1 is repetition
    assert set(after) - set(before) == {f"{stage}-repetition-{arm}-3" for arm in arms for stage in ("train", "score")}
    config = graph(swept)["train-repetition-wd1.6-e2-3"].config
    assert config["training"] == replace(experiment.training, weight_decay=1.6) and config["epochs"] == 2.0


def test_points_of_a_sweep_that_are_arms_already_are_not_trained_again(experiment: Experiment) -> None:
    sweep = Sweep(shares=(0.0, 0.25, 0.5, 0.5), weight_decays=(0.1, 0.4), seeds=1)
    swept = replace(experiment, sweep=sweep, seeds=(0, 1))
    found = [(point.sweep, point.arm.name) for point in points(swept)]
    assert found == [
        ("share", "repetition"),
        ("share", "sbp"),
        ("share", "sbp-0.5"),
        ("repetition", "repetition"),
        ("repetition", "repetition-wd0.4"),
    ]
    trained = {entry.arm.name: (entry.seeds, entry.sweep) for entry in trained_arms(swept)}
    assert list(trained)[:9] == NINE and trained["sbp"] == ((0, 1), None)
    assert trained["sbp-0.5"] == ((0,), "share") and trained["repetition-wd0.4"] == ((0,), "repetition")
    adopted = replace(swept, arms=(Arm("repetition", weight_decay=0.4), *experiment.arms[1:]))
    names = [point.arm.name for point in points(adopted) if point.sweep == "repetition"]
    assert names == ["repetition-wd0.1", "repetition"]


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm("x", base="sbp"), "arms.x.base is sbp, but it has no synthetic text"),
        (Arm("x", order="staged"), "arms.x.order is staged, but it has no synthetic text"),
        (Arm("x", layout="megadoc"), "arms.x.layout is megadoc, but it has no synthetic text"),
        (Arm("x", layout="in_context", synthetic_share=0.1), "of real documents alone"),
        (Arm("x", layout="in_context", real="oracle"), "neighbours or the seeds of the capped set"),
        (Arm("x", layout="megadoc", synthetic_share=0.1, pairs="none"), "text without a seed belongs to no megadoc"),
        (Arm("x", layout="rows"), "arms.x.layout is rows; it may be documents, megadoc or in_context"),
        (Arm("x", order="last"), "arms.x.order is last; it may be uniform or staged"),
        (Arm("x", synthetic_share=0.1, base="nobody"), "arms.x.base is nobody, and there is no such arm"),
        (Arm("x", synthetic_share=0.1, base="x"), "in a circle: x -> x"),
        (Arm("x", synthetic_share=0.1, base="sbp-0.5"), "arms.x.base is sbp-0.5, an arm of the sweep"),
        (Arm("x", synthetic_share=0.1, base="repetition"), "where its synthesizer starts without a base too"),
        (Arm("x", flops_of="nobody"), "arms.x.flops_of is nobody, and there is no such arm"),
        (Arm("x", flops_of="sbp", epochs=2.0), "each of them is a budget"),
        (Arm("x", flops_of="sbp", synthetic_share=0.1), "it is for arms without synthetic text"),
        (Arm("x", epochs=0.0), "arms.x.epochs is 0.0; it must be above 0"),
        (Arm("x", epochs=1.0, synthetic_share=1.0), "of which a synthetic_share of 1 has none"),
        (Arm("x", weight_decay=-0.1), "arms.x.weight_decay is -0.1; it may not be negative"),
        (Arm("sbp-0.5"), "two arms have one name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arms_that_make_no_sense_are_refused(experiment: Experiment, arm: Arm, message: str) -> None:
    with pytest.raises(SbpError, match=re.escape(message)):
        check(replace(with_arm(experiment, arm), sweep=Sweep(shares=(0.5,))))


def test_a_circle_of_arms_is_named(experiment: Experiment) -> None:
    first = Arm("a", synthetic_share=0.1, base="b")
    with pytest.raises(SbpError, match="in a circle: a -> b -> c -> a"):
        check(with_arm(experiment, first, replace(first, name="b", base="c"), replace(first, name="c", base="a")))


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (Sweep(shares=(1.5,)), "sweep.shares has a value that is no fraction"),
        (Sweep(weight_decays=(-1.0,)), "sweep.weight_decays has a negative value"),
        (Sweep(epochs=(0.0,)), "sweep.epochs has a value that is not above 0"),
        (Sweep(seeds=2), "sweep.seeds is 2; it is from 1 to the number of the experiment's .1."),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(experiment: Experiment, sweep: Sweep, message: str) -> None:
    with pytest.raises(SbpError, match=message):
        check(replace(experiment, sweep=sweep))


def test_repetition_and_oracle_may_have_their_own_weight_decay_and_epochs_and_nothing_else(
    experiment: Experiment,
) -> None:
    """Guards the two ends of the gap: a repetition that reads something else is none."""
    for name, real in (("repetition", "capped"), ("oracle", "oracle")):
        others = tuple(arm for arm in experiment.arms if arm.name != name)
        check(replace(experiment, arms=(*others, Arm(name, real=real, weight_decay=1.6, epochs=3.0))))
        for changed in ({"flops_of": "sbp"}, {"layout": "in_context"}, {"synthetic_share": 0.1}):
            with pytest.raises(SbpError, match=f"the arm {name} reads the {real} set and nothing else"):
                check(replace(experiment, arms=(*others, Arm(name, real=real, **changed))))


def test_arms_are_chosen_by_name_on_the_command_line() -> None:
    chosen = load("configs/quickstart.py", ["arms.sbp.order=staged", "arms=repetition,megadoc,oracle,sbp"]).arms
    assert [arm.name for arm in chosen] == ["repetition", "megadoc", "oracle", "sbp"]
    assert chosen[1] == Arm("megadoc", synthetic_share=0.25, layout="megadoc"), "the share of the first that has one"
    assert chosen[3].order == "staged", "an arm of the experiment stays as it is"
    with pytest.raises(SbpError, match="there is no standard arm megadocs; there are repetition, sbp"):
        load("configs/quickstart.py", ["arms=repetition,oracle,megadocs"])
    with pytest.raises(SbpError, match="there is no arm named oracle"):
        load("configs/quickstart.py", ["arms=repetition,sbp"])


def test_derived_budgets_are_those_of_each_arm(experiment: Experiment, tmp_path: Path) -> None:
    known = replace(
        experiment,
        corpus=replace(experiment.corpus, tokens=1_000_000_000),
        splits=replace(experiment.splits, validation=0.1, test=0.1, capped=0.1, oracle=1.0),
        sweep=Sweep(epochs=(2.0,)),
    )
    further = with_arm(
        known,
        Arm("short", synthetic_share=0.5, epochs=1.0),
        Arm("flops", flops_of="sbp"),
        Arm("free", weight_decay=0.0),
    )
    derived = derive(Pipeline(further, str(tmp_path)))
    step = derived["tokens a step"]
    budgets, epochs = derived["training tokens of each arm"], derived["real epochs"]
    assert budgets["sbp"] == budgets["free"] == 800_000_000 // step * step
    assert budgets["short"] == budgets["repetition-e2"] == 160_000_000 // step * step
    assert (epochs["short"], epochs["repetition-e2"], epochs["sbp"], epochs["oracle"]) == (1.0, 2.0, 7.5, 1.0)
    assert budgets["flops"] == "for the operations of sbp" and epochs["flops"] is None
    assert derived["synthetic tokens needed of each kind"] == {
        "synthetic": 400_000_000,
        "synthetic-random": 200_000_000,
        "synthetic-self": 200_000_000,
        "synthetic-from-sbp": 200_000_000,
    }
