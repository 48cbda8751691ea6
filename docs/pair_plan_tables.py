"""Writes the table of docs/planning.md about pairs anew: each row from its own `sbp plan pairs`.

.venv/bin/python docs/pair_plan_tables.py
"""

import argparse
import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sbp_jax.planning import command
from sbp_jax.planning.pairs_report import size, time

PAGE = Path(__file__).parent / "planning.md"
HEAD = "| documents | machines | backend | search | embedding | a chip | a host | scratch |"
MACHINES = {
    "v5p:4x4x8": "--topology v5p:4x4x8",
    "v5e:16x16": "--topology v5e:16x16",
    "16 hosts, 64 cores": "--hosts 16 --cores 64 --host-memory 512",
}


def rows() -> Iterator[str]:
    """The lines of the table."""
    for documents in ("60e6", "582e6"):
        for name, options in MACHINES.items():
            yield row(documents, name, plan(f"--documents {documents} --width 1024 {options}"))


def plan(options: str) -> dict[str, Any]:
    """What `sbp plan pairs ... --json` prints."""
    parser = argparse.ArgumentParser()
    command.add_pair_options(parser)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.run_pairs(parser.parse_args([*shlex.split(options), "--json"]))
    return json.loads(printed.getvalue())


def row(documents: str, name: str, made: dict[str, Any]) -> str:
    search, embedding = made["searches"][made["backend"]], made["embedding"]
    unit = "chip-hours" if search["chip_hours"] else "host-hours"
    hours = [f"{part['chip_hours'] or part['host_hours']:,.0f} {unit}" for part in (search, embedding)]
    cells = [
        f"{float(documents) / 1e6:.0f}M",
        name,
        made["backend"],
        f"{search['flops']:.1e}; {time(search['seconds'])}, {hours[0]}",
        f"{embedding['flops']:.1e}; {time(embedding['seconds'])}, {hours[1]}",
        size(search["device_bytes"]) if search["device_bytes"] else "",
        size(search["host_bytes"]),
        size(search["scratch_bytes"]),
    ]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def main() -> None:
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|", *rows()]
    page, count = re.subn(re.escape(HEAD) + r"\n(\|[^\n]*\n)*", lambda _: "\n".join(lines) + "\n", PAGE.read_text())
    assert count == 1, f"{PAGE} has no such table"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
