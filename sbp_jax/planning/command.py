"""`sbp plan train`: its options, and what it prints. Nothing heavy is imported before a plan is made."""

import argparse
import json

from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="such as v5p:4x4x8 or v5e:16x16")
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="slices of that topology (default: 1)")
    parser.add_argument("--stage", choices=("train", "tune"), default="train", help="whose step (default: train)")
    parser.add_argument("--mesh", metavar="SIZES", help="such as data=2,fsdp=64,tensor=1 (default: searched for)")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="(default: searched for)")
    parser.add_argument("--accumulate", type=int, metavar="N", help="pieces of a batch (default: searched for)")
    parser.add_argument("--days", type=float, metavar="N", help="days that the run may take: prints the MFU it needs")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(options: argparse.Namespace, experiment: Experiment) -> None:
    """Prints the plan.

    Raises:
      SbpError: nothing fits, or what was asked makes no sense.
    """
    from sbp_jax.planning import report
    from sbp_jax.planning.plan import plan

    for name, value in (("slices", options.slices), ("accumulate", options.accumulate), ("days", options.days)):
        if value is not None and value <= 0:
            raise SbpError(f"--{name} is {value:g}; it must be above 0")
    made = plan(
        experiment,
        options.topology,
        slices=options.slices,
        stage=options.stage,
        mesh=options.mesh,
        remat=options.remat,
        accumulate=options.accumulate,
        days=options.days,
    )
    print(json.dumps(report.as_json(made), indent=1) if options.json else report.text(made), flush=True)
    if made.chosen is None:
        raise SbpError(f"nothing that was compiled fits {options.topology}; {report.remedy(made)}")
