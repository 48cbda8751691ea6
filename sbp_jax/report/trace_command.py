"""`sbp trace`: its options, and what it prints. Nothing heavy is imported before that."""

import argparse
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError

if TYPE_CHECKING:
    from sbp_jax.accounting.charges import Node
    from sbp_jax.artifacts import Artifact

HELP = "show where a document or a training example comes from, or what came from a real document"
PIPED = 120  # columns of a text that goes into a file


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ids",
        nargs="+",
        metavar="ID",
        help="of a document, or INSTANCE:ID where several instances have it; or a training example: ROWS:ROW[:POSITION]"
        " such as rows-synthetic:12, or RUN:STEP:ROW[:POSITION] such as train-sbp-0:7:3 (steps from 1, rows from 0)",
    )
    parser.add_argument(
        "--from",
        action="store_true",
        dest="derived",
        help="list what came from these real documents; @FILE stands for the ids in a file, one a line",
    )
    parser.add_argument("--full", action="store_true", help="print whole texts and lists")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out what takes long: the nearest real documents; with --from also quotes and steps",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with whole texts and lists")


def run(
    options: argparse.Namespace,
    experiment: Experiment,
    nodes: "Mapping[str, Node]",
    find: "Callable[[str], Artifact | None]",
    workdir: str,
) -> None:
    """Prints what is known.

    Args:
      nodes: the stage instances of the experiment.
      find: gives the artifact of an instance; None until it is complete.
      workdir: where they are, for messages.

    Raises:
      SbpError: an id is of no document, there is no such training example, or a stage has not run yet.
    """
    from rich.console import Console

    from sbp_jax.report import trace_text
    from sbp_jax.report.takedown import derived
    from sbp_jax.report.trace import trace
    from sbp_jax.report.trail import Trail

    trail = Trail(experiment, nodes, functools.cache(find), workdir)
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=PIPED)
    if options.derived:
        told = derived(trail, _ids(options.ids), quick=options.quick)
        if options.json:
            print(json.dumps(told, indent=1))
        else:
            trace_text.show_derived(told, console, options.full)
        return
    traces = [trace(trail, asked, search=not options.quick) for asked in options.ids]
    if options.json:
        print(json.dumps(traces, indent=1))
        return
    for traced in traces:
        trace_text.show(traced, console, options.full)


def _ids(given: list[str]) -> list[str]:
    """The ids, those of files in their places."""
    ids = []
    for name in given:
        if not name.startswith("@"):
            ids.append(name)
            continue
        file = Path(name[1:]).expanduser()
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise SbpError(f"{file} is not UTF-8 ({error}); give a text file with an id on each line") from error
        ids += [line.strip() for line in lines if line.strip()]
    if not ids:
        raise SbpError(f"there are no ids in {', '.join(given)}; give a text file with an id on each line")
    return ids
