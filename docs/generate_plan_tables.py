"""Writes the table of docs/planning.md about generating anew: each row from its own `sbp plan generate ... --json`.

.venv/bin/python docs/generate_plan_tables.py [part of a topology's name ...]
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "planning.md"
CONFIG = "configs/paper_200b_3b.py"
HEAD = (
    "| topology | slots | weights | cache | temporaries, code | peak | in flight | a step | tokens/s | products"
    " | decoding | prompts | together |"
)
TOPOLOGIES = ("v5p:2x2x1", "v6e:2x2", "v5e:2x2")


def plan(*options: str) -> dict[str, Any]:
    """What `sbp plan generate CONFIG ... --json` prints, in a process of its own: libtpu is loaded as it asks for."""
    command = [sys.executable, "-m", "sbp_jax", "plan", "generate", CONFIG, *options, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def row(made: dict[str, Any]) -> str:
    """A line of the table."""
    chosen, topology = made["chosen"], made["topology"]
    speed, cost = chosen["speed"], chosen["cost"]
    gib = {name: f"{chosen[name] / 2**30:.2f}" for name in ("weights", "cache", "temporaries", "code", "peak")}
    parts = [f"{speed[name] / 1e9:.2f}" for name in ("weight_bytes", "cache_bytes")]
    hours = [cost[name] for name in ("decoding_chip_hours_at_bound", "decoding_chip_hours", "prompts_chip_hours")]
    cells = [
        topology["name"],
        f"{chosen['slots']:,}",
        gib["weights"],
        gib["cache"],
        f"{gib['temporaries']}, {gib['code']}",
        f"{gib['peak']} ({chosen['peak'] / topology['memory']:.0%})",
        f"{chosen['tokens_in_flight']:,.0f}",
        f"({parts[0]} + {parts[1]}) GB / {speed['bandwidth'] / 1e9:,.0f} GB/s = {speed['step_seconds'] * 1e3:.2f} ms",
        f"{speed['bound_tokens_a_second_a_chip']:,.0f}",
        f"{speed['products_tokens_a_second_a_chip']:,.0f}",
        f"{hours[0]:,.0f}; {hours[1]:,.0f}",
        f"{hours[2]:,.0f}",
        f"{cost['chip_hours']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main(wanted: list[str]) -> None:
    for topology in TOPOLOGIES:
        if wanted and not any(part in topology for part in wanted):
            continue
        made = plan("--topology", topology)
        print([(tried["slots"], tried["needed"], tried["seconds"]) for tried in made["tried"]], flush=True)
        new = row(made)
        print(new, flush=True)
        old = re.compile(rf"({re.escape(HEAD)}\n\|[-|]*\n(?:\|[^\n]*\n)*?)\| {re.escape(topology)} \|[^\n]*\n")
        page, count = old.subn(lambda found, new=new: f"{found[1]}{new}\n", PAGE.read_text(), count=1)
        assert count == 1, f"{PAGE} has no row for {topology}"
        PAGE.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])
