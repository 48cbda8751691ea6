"""`sbp report --compare`: its options, and what it prints. Nothing heavy is imported before that."""

import argparse
import json
from pathlib import Path

from sbp_jax.errors import SbpError

NAME = "report --compare"
HELP = "show two finished runs or more side by side, in the terminal and as a page"
FLAG = "--compare"
PIPED = 120  # columns of a text that goes into a file


def spelled(arguments: list[str]) -> list[str]:
    """The arguments of a comparison as those of a command of its own; others as they are."""
    if arguments[:1] == ["report"] and FLAG in arguments:
        return [NAME, *(argument for argument in arguments[1:] if argument != FLAG)]
    return arguments


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(NAME, help=HELP, description=HELP)
    parser.set_defaults(command=run)
    what = "a work folder, the folder of a report, its summary.json, or experiments/NAME.json of a work folder"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=what)
    parser.add_argument("--to", metavar="FILE", help="write the page there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run(options: argparse.Namespace) -> None:
    """Prints the comparison, and writes the page where one is asked for.

    Raises:
      SbpError: fewer than two runs, one that is not there or not finished, or a page that cannot be written.
    """
    from rich.console import Console

    from sbp_jax.report import compare, compare_page, compare_text, runs

    if len(options.runs) < 2:
        raise SbpError("a comparison needs two runs at least: `sbp report --compare RUN1 RUN2`")
    compared = compare.compare(runs.open_all(options.runs))
    if options.to:
        page = Path(options.to)
        if not page.parent.is_dir():
            raise SbpError(f"{page.parent} is no folder; make it, or choose another for the page")
        page.write_text(compare_page.render(compared))
    if options.json:
        print(json.dumps(compared, indent=1))
        return
    console = Console(highlight=False)
    compare_text.show(compared, console if console.is_terminal else Console(highlight=False, width=PIPED))
    if options.to:
        print(f"\npage: {page}")
