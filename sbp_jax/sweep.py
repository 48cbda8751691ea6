"""`sbp sweep`: shares of synthetic text, weight decays and epochs of repetition: trained, scored and compared."""

import argparse
import json
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sbp_jax.config import BASE_ARM

if TYPE_CHECKING:
    from sbp_jax.config import Experiment, Sweep
    from sbp_jax.pipeline import Pipeline

HELP = "train arms that differ in the synthetic share, or repetition with other weight decays and epochs"
SHARES, WEIGHT_DECAYS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75), (0.1, 0.4, 1.6, 3.2)
PARTS = (0.25, 0.5)  # of the passes that the common budget makes, beside all of them
FIELDS = ("shares", "weight_decays", "epochs", "seeds")


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--shares", metavar="LIST", help="of synthetic tokens, such as 0,0.25,0.5")
    command.add_argument("--weight-decays", metavar="LIST", help="of repetition, such as 0.1,1.6")
    text = "passes over the capped set at which repetition stops, beside the common budget; with each weight decay"
    command.add_argument("--epochs", metavar="LIST", help=text)
    command.add_argument("--seeds", metavar="N", help="of the experiment's, the first that are trained (default: 1)")
    command.add_argument("--json", action="store_true", help="print the tables as JSON")


def run(options: argparse.Namespace, pipeline: "Pipeline", say: Callable[[str], None]) -> None:
    """Trains and scores the arms of the sweep and what they need, and prints what validation chooses.

    They stand in the work folder under the names that they have as arms of the experiment, so that `sbp run` finds
    them, and in its record as those of an experiment NAME-sweep, so that `sbp clean` leaves them.

    Raises:
      SbpError: a value that makes no sense.
    """
    from sbp_jax.experiments import check
    from sbp_jax.overrides import override
    from sbp_jax.parallel import hosts
    from sbp_jax.pipeline import Pipeline
    from sbp_jax.report.swept import swept

    hosts.start()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # while training it asks for a profile, elsewhere it would kill
    say = say if hosts.is_first() else _ignore
    experiment = pipeline.experiment
    for name in FIELDS:
        if (given := getattr(options, name)) is not None:
            experiment = override(experiment, f"sweep.{name}={given}")
    if not (experiment.sweep.shares or experiment.sweep.weight_decays or experiment.sweep.epochs):
        experiment = replace(experiment, sweep=_usual(experiment, pipeline, say))
    check(experiment)
    named = replace(experiment, name=f"{experiment.name}-sweep")
    whole = Pipeline(named, str(pipeline.workdir))
    wanted = _runs(experiment)
    for name, seed in wanted:
        whole.run(say, until=f"score-{name}-{seed}")
    if not hosts.is_first():
        return
    made: dict[str, dict[str, dict[int, Any]]] = {"train": {}, "score": {}}
    for stage, found in made.items():
        for name, seed in wanted:
            found.setdefault(name, {})[seed] = whole.artifact(f"{stage}-{name}-{seed}")
    told = swept(experiment, made["train"], made["score"])
    print(json.dumps(told, indent=1) if options.json else text(experiment, told), flush=True)


def _ignore(line: str) -> None:
    pass


def _runs(experiment: "Experiment") -> list[tuple[str, int]]:
    """Arms and seeds to train."""
    from sbp_jax.arms import points

    names = dict.fromkeys(point.arm.name for point in points(experiment))
    return [(name, seed) for name in names for seed in experiment.seeds[: experiment.sweep.seeds]]


def _usual(experiment: "Experiment", pipeline: "Pipeline", say: Callable[[str], None]) -> "Sweep":
    """The values where none are given; passes are parts of the common budget, which the packed rows tell."""
    from sbp_jax.data.budget import training_tokens

    for name in ("rows-capped", "rows-oracle"):
        pipeline.run(say, until=name)
    capped, oracle = pipeline.artifact("rows-capped"), pipeline.artifact("rows-oracle")
    assert capped is not None and oracle is not None
    passes = training_tokens(experiment.training.tokens, oracle) / capped.stats["targets"]
    synthetic = any(arm.synthetic_share > 0 for arm in experiment.arms)
    return replace(
        experiment.sweep,
        shares=SHARES if synthetic else (),
        weight_decays=WEIGHT_DECAYS,
        epochs=tuple(float(f"{passes * part:.2g}") for part in PARTS),
    )


def text(experiment: "Experiment", told: dict[str, Any]) -> str:
    """The tables of a sweep for a terminal, and the options that adopt what was chosen."""
    lines: list[str] = []
    if told["shares"]:
        rows: list[tuple[str, ...]] = [("share", "of tokens", "arm", *LOSSES)]
        for row in told["shares"]:
            rows.append((f"{row['share']:.1%}", f"{row['share_got']:.1%}", row["arm"], *_losses(row)))
        lines += [*_table(rows, left=(2,)), ""]
    if told["repetition"]:
        rows = [("weight decay", "arm", *LOSSES, "")]
        for row in told["repetition"]:
            mark = "*" if row["arm"] == told["chosen"] else ""
            rows.append((f"{row['weight_decay']:g}", row["arm"], *_losses(row), mark))
        lines += [*_table(rows, left=(1,)), "", *_adopt(experiment, told)]
    count = experiment.sweep.seeds
    return "\n".join([*lines, f"Losses in nats per token, of {'one seed' if count == 1 else f'{count} seeds'}."])


LOSSES = ("real epochs", "tokens", "validation", "best", "test")


def _losses(row: dict[str, Any]) -> tuple[str, ...]:
    losses = (f"{row[name]:.4f}" for name in ("validation", "best_validation", "nats_per_token"))
    return (f"{row['real_epochs']:.2f}", f"{row['tokens']:,}", *losses)


def _adopt(experiment: "Experiment", told: dict[str, Any]) -> list[str]:
    chosen = next(row for row in told["repetition"] if row["arm"] == told["chosen"])
    if chosen["arm"] == BASE_ARM:
        return ["*: least validation loss at its end. It is what repetition is already.", ""]
    changed = [f"--set arms.{BASE_ARM}.weight_decay={chosen['weight_decay']:g}"]
    if chosen["epochs"] is not None:
        changed.append(f"--set arms.{BASE_ARM}.epochs={chosen['epochs']:g}")
    return [
        "*: least validation loss at its end. It becomes repetition, and with it the base model, by",
        f"    {' '.join(changed)}",
        f"and every arm trains with its weight decay by --set training.weight_decay={chosen['weight_decay']:g}.",
        "",
    ]


def _table(rows: list[tuple[str, ...]], left: tuple[int, ...]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
