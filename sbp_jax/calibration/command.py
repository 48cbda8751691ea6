"""`sbp synthesize --calibrate`: its options, and what it prints. Nothing heavy is imported before that."""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError

if TYPE_CHECKING:
    from sbp_jax.artifacts import Artifact
    from sbp_jax.calibration.calibrate import Node

DOCUMENTS, GROUPS = 256, 1024
TEMPERATURES, TOP_P = "0.7,1.0", "0.9,1.0"
ASKED = ("documents", "groups", "temperatures", "top_p", "pairs", "json")  # options of a calibration alone


def add_options(parser: argparse.ArgumentParser) -> None:
    def add(name: str, text: str, metavar: str = "N", kind: type = int) -> None:
        parser.add_argument(name, type=kind, metavar=metavar, help=f"with --calibrate: {text}")

    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="write a few documents instead of all: what conditioning is worth, what the settings of sampling do,"
        " and what the whole run will cost",
    )
    add("--documents", f"written at each setting (default: {DOCUMENTS})")
    add("--groups", f"held-out ones whose losses are measured, at most (default: {GROUPS:,})")
    add("--temperatures", f"(default: {TEMPERATURES}, and the experiment's own setting)", "T,...", str)
    add("--top-p", f"(default: {TOP_P})", "P,...", str)
    text = "with --calibrate: what the synthesizer was tuned on, or none: the base model (default: related)"
    parser.add_argument("--pairs", choices=("related", "random", "none"), help=text)
    parser.add_argument("--json", action="store_true", default=None, help="with --calibrate: print JSON")


def asked(options: argparse.Namespace) -> bool:
    """Whether a calibration is asked for.

    Raises:
      SbpError: its options are given without it.
    """
    given = [f"--{name.replace('_', '-')}" for name in ASKED if getattr(options, name, None) is not None]
    if given and not options.calibrate:
        raise SbpError(f"{', '.join(given)} belongs to --calibrate; add that, or leave it out")
    return bool(options.calibrate)


def run(
    options: argparse.Namespace,
    experiment: Experiment,
    nodes: "Mapping[str, Node]",
    suffixes: Mapping[str, str],
    find: "Callable[[str], Artifact | None]",
    workdir: str,
) -> None:
    """Prints the calibration.

    Args:
      nodes: the stage instances of the experiment.
      suffixes: of their names, by `Arm.pairs`.
      find: gives the artifact of an instance; None until it is complete.
      workdir: where they are; what is made on the way lies in a folder there, which is deleted at the end.

    Raises:
      SbpError: what was asked makes no sense, or a stage has not run yet.
    """
    documents = DOCUMENTS if options.documents is None else options.documents
    groups = GROUPS if options.groups is None else options.groups
    for name, value in (("documents", documents), ("groups", groups)):
        if value < 1:
            raise SbpError(f"--{name} is {value}; it must be at least 1")
    temperatures = _numbers("--temperatures", options.temperatures or TEMPERATURES)
    top_p = _numbers("--top-p", options.top_p or TOP_P)
    for value in temperatures:
        if not 0 <= value < math.inf:
            raise SbpError(f"--temperatures has {value:g}; 0 takes the most probable token each time, 1 is the model's")
    for value in top_p:
        if not 0 < value <= 1:
            raise SbpError(f"--top-p has {value:g}; it is a probability above 0, and 1 keeps every token")
    kind = options.pairs or "related"
    suffix = suffixes[kind]
    if f"synthesized{suffix}" not in nodes:
        there = [name for name, other in suffixes.items() if f"synthesized{other}" in nodes]
        others = f"; give --pairs {' or '.join(there)}" if there else "; give one a synthetic_share above 0"
        raise SbpError(f"no arm of {experiment.name} reads documents of pairs = {kind}{others}")

    from sbp_jax.calibration import report
    from sbp_jax.calibration.calibrate import Asked, calibrate, inputs

    made = inputs(nodes, suffix, find, workdir, options.config)
    with tempfile.TemporaryDirectory(dir=workdir, prefix="calibration-") as folder:
        wanted = Asked(documents, groups, tuple(temperatures), tuple(top_p))
        told = calibrate(experiment, nodes, suffix, made, wanted, folder)
    print(json.dumps(told, indent=1) if options.json else report.text(told), flush=True)


def _numbers(name: str, given: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(part) for part in given.split(",")))
    except ValueError as error:
        raise SbpError(f"{name} is {given!r}; give numbers with commas between them, such as 0.7,1.0") from error
