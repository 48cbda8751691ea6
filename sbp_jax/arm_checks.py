"""Whether the arms of an experiment, and those that its sweep adds, can be what they say."""

import re
from dataclasses import replace

from sbp_jax.arms import in_order, trained_arms
from sbp_jax.config import BASE_ARM, ORACLE_ARM, Arm, Experiment
from sbp_jax.errors import SbpError

NAME, NAME_RULE = r"\w[\w.-]*", "letters, digits, '.', '_' and '-'"  # of what names files
CHOICES = {
    "real": ("capped", "oracle"),
    "pairs": ("related", "random", "none"),
    "order": ("uniform", "staged"),
    "layout": ("documents", "megadoc", "in_context"),
}


def check_arms(experiment: Experiment) -> None:
    """Raises `SbpError` for an arm that cannot work, naming the field and what it may be."""
    _check_sweep(experiment)
    arms = trained_arms(experiment)
    names = [entry.arm.name for entry in arms]
    for name in names:
        _demand(bool(re.fullmatch(NAME, name)), f"the name {name!r} must be {NAME_RULE}")
    _demand(len(set(names)) == len(names), f"two arms have one name: {', '.join(names)}")
    for needed in (BASE_ARM, ORACLE_ARM):
        _demand(
            needed in names, f"there is no arm named {needed}; gap closed is measured between repetition and oracle"
        )
    for entry in arms:
        _check_fields(entry.arm)
        _check_text(experiment, entry.arm)
    in_order(arms)


def _check_fields(arm: Arm) -> None:
    field = f"arms.{arm.name}"
    for name, values in CHOICES.items():
        chosen = getattr(arm, name)
        wanted = f"{', '.join(values[:-1])} or {values[-1]}"
        _demand(chosen in values, f"{field}.{name} is {chosen}; it may be {wanted}")
    if arm.name in (BASE_ARM, ORACLE_ARM):
        real = "capped" if arm.name == BASE_ARM else "oracle"
        plain = replace(arm, weight_decay=None, epochs=None) == Arm(arm.name, real=real)
        what = f"the arm {arm.name} reads the {real} set and nothing else; give the changed one another name"
        _demand(plain, f"{what} (its weight_decay and epochs may differ)")
    decay, epochs = arm.weight_decay, arm.epochs
    _demand(decay is None or decay >= 0, f"{field}.weight_decay is {decay}; it may not be negative")
    _demand(epochs is None or epochs > 0, f"{field}.epochs is {epochs}; it must be above 0, or none")
    _demand(epochs is None or arm.flops_of is None, f"{field} has both epochs and flops_of; each of them is a budget")
    _demand(
        epochs is None or arm.synthetic_share < 1,
        f"{field}.epochs counts passes over the real stream, of which a synthetic_share of 1 has none",
    )


def _check_text(experiment: Experiment, arm: Arm) -> None:
    """What the fields of an arm ask of one another."""
    field = f"arms.{arm.name}"
    if arm.synthetic_share == 0:
        for name, usual in (("base", None), ("order", "uniform")):
            chosen = getattr(arm, name)
            _demand(chosen == usual, f"{field}.{name} is {chosen}, but it has no synthetic text; give it a share")
        _demand(arm.layout != "megadoc", f"{field}.layout is megadoc, but it has no synthetic text; give it a share")
    else:
        _demand(arm.flops_of is None, f"{field}.flops_of is {arm.flops_of}; it is for arms without synthetic text")
        _demand(
            arm.layout != "in_context",
            f"{field}.layout is in_context, which is of real documents alone; its synthetic_share must be 0",
        )
    _demand(
        arm.layout == "documents" or arm.real == "capped",
        f"{field}.layout is {arm.layout}, which takes the neighbours or the seeds of the capped set; set real=capped",
    )
    _demand(
        arm.layout != "megadoc" or arm.pairs != "none",
        f"{field}.layout is megadoc, and its pairs are none: text without a seed belongs to no megadoc",
    )
    _demand(
        arm.base != BASE_ARM or (experiment.tuning.base is not None and arm.pairs != "none"),
        f"{field}.base is {BASE_ARM}, where its synthesizer starts without a base too; leave it out",
    )


def _check_sweep(experiment: Experiment) -> None:
    sweep = experiment.sweep
    _demand(all(0 <= share <= 1 for share in sweep.shares), "sweep.shares has a value that is no fraction from 0 to 1")
    _demand(all(decay >= 0 for decay in sweep.weight_decays), "sweep.weight_decays has a negative value")
    _demand(all(epochs > 0 for epochs in sweep.epochs), "sweep.epochs has a value that is not above 0")
    _demand(
        1 <= sweep.seeds <= len(experiment.seeds),
        f"sweep.seeds is {sweep.seeds}; it is from 1 to the number of the experiment's ({len(experiment.seeds)})",
    )
    _demand(
        not sweep.shares or any(arm.synthetic_share > 0 for arm in experiment.arms),
        "sweep.shares varies the first arm that has synthetic text, and there is none; give one a synthetic_share",
    )


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise SbpError(message)
