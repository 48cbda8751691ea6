"""Writes the tables of docs/planning.md anew: each row from its own `sbp plan train ... --json`.

.venv/bin/python docs/plan_tables.py [part of a config's or a topology's name ...]
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "planning.md"
CONFIGS = ("paper_200b_3b", "paper_1t_3b", "paper_1t_6b")
TOPOLOGIES = ("v5p:4x4x8", "v6e:16x16", "v5e:16x16")


def command(config: str, topology: str) -> list[str]:
    return ["sbp", "plan", "train", f"configs/{config}.py", "--topology", topology, "--days", "14"]


def row(topology: str, plan: dict) -> str:
    """A line of a table of planning.md."""
    run, chosen = plan["run"], plan["chosen"]
    if chosen is None:
        return f"| {topology} | nothing fits |" + " |" * 9
    memory, mesh = chosen["memory"], chosen["mesh"]
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1)
    sent = sum(traffic["bytes"] for traffic in chosen["collectives"].values()) / 1e9
    gib = {name: f"{size / 2**30:.2f}" for name, size in memory.items() if size is not None}
    cells = [
        topology,
        f"{sizes}; {chosen['remat']}; {chosen['accumulate']}",
        gib["parameters"],
        gib["optimizer"],
        gib["activations"],
        f"{gib['peak']} ({memory['peak'] / plan['topology']['memory']:.0%})",
        f"{sent:.0f} GB, {chosen['network_seconds_at_peak']:.2f} s",
        f"{chosen['step_seconds_at_peak']:.2f} s",
        f"{run['days_at']['0.4']:.1f}",
        f"{run['mfu_needed']:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def main(wanted: list[str]) -> None:
    for config in CONFIGS:
        for topology in TOPOLOGIES:
            if wanted and not any(part in f"{config} {topology}" for part in wanted):
                continue
            line = command(config, topology)
            print(" ".join(line), flush=True)
            done = subprocess.run(
                [Path(sys.executable).parent / line[0], *line[1:], "--json"], cwd=ROOT, capture_output=True, text=True
            )
            if not done.stdout:
                sys.exit(done.stderr)
            plan = json.loads(done.stdout)
            for tried in plan["tried"]:
                print("  tried", {name: tried[name] for name in ("mesh", "remat", "accumulate", "fits", "memory")})
            new = row(topology, plan)
            print(f"  {new}", flush=True)
            page = PAGE.read_text()
            section = re.compile(rf"(### `{config}`\n.*?\n)\| {re.escape(topology)} \|[^\n]*\n", re.DOTALL)
            page, count = section.subn(lambda found, new=new: f"{found[1]}{new}\n", page, count=1)
            assert count == 1, f"planning.md has no row for {config} on {topology}"
            PAGE.write_text(page)


if __name__ == "__main__":
    main(sys.argv[1:])
