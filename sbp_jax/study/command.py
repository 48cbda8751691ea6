"""`sbp study`: runs the settings of a config's study and keeps their numbers."""

import argparse
from collections.abc import Callable
from pathlib import Path

HELP = "run the settings of a config's study, each seed an experiment of its own, and record their numbers"


def add_options(command: argparse.ArgumentParser) -> None:
    text = "JSON Lines to which the numbers are added; what is there is not made again"
    command.add_argument("--records", type=Path, required=True, metavar="FILE", help=text)
    command.add_argument("--seeds", default="0", metavar="LIST", help="such as 0,1,2 (default: 0)")
    command.add_argument("--settings", metavar="LIST", help="such as main,share/0.25 (default: all)")


def run(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Makes and records what is not recorded yet, seed by seed.

    Raises:
      SbpError: the config has no study, or there is no such setting.
    """
    from sbp_jax.study import grid

    study = grid.read(options.config, tuple(options.set), options.tiny)
    names = None if options.settings is None else options.settings.split(",")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    workdir = Path(options.workdir or f"runs/{Path(options.config).stem}")
    grid.run(study, study.chosen(names), seeds, workdir, options.records, say)
