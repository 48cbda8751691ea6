"""The arms of an experiment: the standard ones by name, those that a sweep adds, and the order they are made in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sbp_jax.config import BASE_ARM, ORACLE_ARM, Arm, Experiment
from sbp_jax.errors import SbpError

SUFFIX = {"related": "", "random": "-random", "none": "-self"}  # of the instances behind an arm, by `Arm.pairs`
SHARE, REPETITION = "share", "repetition"  # what a sweep varies

Source = tuple[str, str | None]  # of synthetic text: `Arm.pairs` and `Arm.base`


@dataclass(frozen=True)
class TrainedArm:
    """An arm with the seeds it is trained with, and the sweep that it is in the experiment for, if any."""

    arm: Arm
    seeds: tuple[int, ...]
    sweep: str | None = None


@dataclass(frozen=True)
class Point:
    """A value of a sweep, and the arm that has it: one of the sweep's, or of the experiment's where that is the same.

    Attributes:
      sweep: "share" or "repetition".
    """

    sweep: str
    arm: Arm


def standard_arms(share: float, *names: str) -> tuple[Arm, ...]:
    """The arms with these names, or all nine; `share` is what those that read synthetic text have of it.

    Raises:
      SbpError: there is no such arm.
    """
    arms = (
        Arm(BASE_ARM),
        Arm("sbp", synthetic_share=share),
        Arm(ORACLE_ARM, real="oracle"),
        Arm("random_pairs", synthetic_share=share, pairs="random"),
        Arm("self_samples", synthetic_share=share, pairs="none"),
        Arm("megadoc", synthetic_share=share, layout="megadoc"),
        Arm("staged", synthetic_share=share, order="staged"),
        Arm("in_context", layout="in_context"),
        Arm("multi_round", synthetic_share=share, base="sbp"),
    )
    by_name = {arm.name: arm for arm in arms}
    if unknown := [name for name in names if name not in by_name]:
        raise SbpError(f"there is no standard arm {', '.join(unknown)}; there are {', '.join(by_name)}")
    return tuple(by_name[name] for name in names) or arms


def chosen(arms: Sequence[Arm], names: Sequence[str]) -> tuple[Arm, ...]:
    """Those of the arms with these names, as they are, and of the standard ones those that are not among them.

    A standard arm gets the share of the first arm that has one.

    Raises:
      SbpError: there is no such arm.
    """
    own = {arm.name: arm for arm in arms}
    share = max(next((arm.synthetic_share for arm in arms if arm.synthetic_share), 0.0), 0.0)
    return tuple(own[name] if name in own else standard_arms(share, name)[0] for name in names)


def source(arm: Arm) -> Source | None:
    """Where the synthetic text of an arm comes from; None where it reads none."""
    return (arm.pairs, arm.base) if arm.synthetic_share > 0 else None


def suffix(pairs: str, base: str | None) -> str:
    """Ending of the instances behind a source of synthetic text, such as "-random" or "-from-sbp"."""
    return SUFFIX[pairs] + ("" if base is None else f"-from-{base}")


def trained_arms(experiment: Experiment) -> list[TrainedArm]:
    """All arms that are trained: the experiment's with all its seeds, then those that its sweep adds with the first."""
    arms = [TrainedArm(arm, experiment.seeds) for arm in experiment.arms]
    seeds = experiment.seeds[: experiment.sweep.seeds]
    added = [point for point in points(experiment) if point.arm not in experiment.arms]
    return arms + [TrainedArm(point.arm, seeds, point.sweep) for point in added]


def points(experiment: Experiment) -> list[Point]:
    """The sweep: shares of synthetic text, then weight decays by passes over the real stream.

    A share is that of an arm like the first that has synthetic text. The arms of the grid are like repetition; each
    weight decay (none given: repetition's own) is there with repetition's own budget, then with each of `sweep.epochs`.
    """
    sweep = experiment.sweep
    known = {_unnamed(experiment, arm): arm for arm in reversed(experiment.arms)}
    found: dict[Point, None] = {}

    def add(kind: str, arm: Arm, name: str) -> None:
        found[Point(kind, known.get(_unnamed(experiment, arm)) or replace(_unnamed(experiment, arm), name=name))] = None

    first = next((arm for arm in experiment.arms if arm.synthetic_share > 0), None)
    for share in sweep.shares if first is not None else ():
        assert first is not None
        add(SHARE, replace(first, synthetic_share=share), f"{first.name}-{share:g}")
    base = next((arm for arm in experiment.arms if arm.name == BASE_ARM), Arm(BASE_ARM))
    if sweep.weight_decays or sweep.epochs:
        for decay in sweep.weight_decays or (None,):
            for epochs in (None, *sweep.epochs):
                name = BASE_ARM + ("" if decay is None else f"-wd{decay:g}") + ("" if not epochs else f"-e{epochs:g}")
                arm = base if decay is None else replace(base, weight_decay=decay)
                add(REPETITION, arm if epochs is None else replace(arm, epochs=epochs), name)
    return list(found)


def _unnamed(experiment: Experiment, arm: Arm) -> Arm:
    """What an arm is, apart from its name: equal for arms that are trained in the same way."""
    if arm.synthetic_share == 0:
        layout = arm.layout if arm.layout == "in_context" else "documents"
        arm = replace(arm, pairs="related", base=None, order="uniform", layout=layout)
    own = arm.weight_decay != experiment.training.weight_decay
    return replace(arm, name="", weight_decay=arm.weight_decay if own else None)


def in_order(arms: Sequence[TrainedArm]) -> list[TrainedArm]:
    """The arms as they stand, but each behind those whose model or operations it asks for.

    Raises:
      SbpError: an arm asks for one that is not there, or, through others, for itself.
    """
    by_name = {entry.arm.name: entry for entry in arms}
    ordered: dict[str, TrainedArm] = {}

    def add(entry: TrainedArm, asking: tuple[str, ...]) -> None:
        name = entry.arm.name
        if name in asking:
            circle = " -> ".join((*asking[asking.index(name) :], name))
            raise SbpError(f"arms ask for one another in a circle: {circle}; give one of them another base or flops_of")
        for field in ("base", "flops_of"):
            other = getattr(entry.arm, field)
            if other is None:
                continue
            if other not in by_name:
                raise SbpError(f"arms.{name}.{field} is {other}, and there is no such arm")
            if by_name[other].sweep is not None:
                raise SbpError(f"arms.{name}.{field} is {other}, an arm of the sweep; make it an arm of the experiment")
            add(by_name[other], (*asking, name))
        ordered.setdefault(name, entry)

    for entry in arms:
        add(entry, ())
    return list(ordered.values())
