"""Speed and memory of training beside others that do the same, measured in turns on this machine.

    make bench-peers                                  # once: the peers' environments
    python benchmarks/train.py [--only throughput cpu memory overhead startup mfu] [--rounds 3]

The figure to compare is the ratio. Every measurement is a process of its own, ours and the peer's taking turns, so that
another load on the machine meets both. `--only mfu` needs an accelerator.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
OURS = str(ROOT / "benchmarks" / "ours.py")
PEERS, ENVIRONMENTS = ROOT / "benchmarks" / "peers", ROOT / ".venv-peers"
MISSING = "peer environment missing: make bench-peers"


@dataclass(frozen=True)
class Measured:
    """One command, run once a round.

    Attributes:
      environment: of .venv-peers; None: the interpreter that runs this file.
    """

    name: str
    environment: str | None
    arguments: tuple[str, ...]

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else ENVIRONMENTS / self.environment / "bin" / "python"

    def run(self) -> dict[str, object]:
        """The line of JSON that the command ends with.

        Raises:
          SystemExit: it failed.
        """
        environment = {"JAX_PLATFORMS": "cpu"} | os.environ if self.arguments[-1] != "mfu" else dict(os.environ)
        done = subprocess.run(
            [self.python, *self.arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise SystemExit(f"{self.name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        answer: dict[str, object] = json.loads(lines[-1])
        return answer


def ours(*arguments: str, environment: str | None = None) -> Measured:
    return Measured("ours", environment, (OURS, *arguments))


def peer(name: str, environment: str, script: str, *arguments: str) -> Measured:
    return Measured(name, environment, (str(PEERS / script), *arguments))


def main() -> None:
    figures: dict[str, Callable[[int], None]] = {
        "throughput": throughput,
        "cpu": cpu,
        "memory": memory,
        "overhead": overhead,
        "startup": startup,
        "mfu": mfu,
    }
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=figures, default=list(figures))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.only:
        figures[name](options.rounds)


def throughput(rounds: int) -> None:
    for dtype in ("float32", "bfloat16"):
        compare(
            f"Tokens/s, 15.7M Qwen3, {dtype} (ratio: higher is better)",
            [ours("throughput", "--dtype", dtype), peer("eager PyTorch", "torch", "torch_qwen3.py", "--dtype", dtype)],
            "tokens_per_second",
            rounds,
        )


def cpu(rounds: int) -> None:
    for remat in ("none", "full"):
        compare(
            f"CPU-seconds a step, 6.3M Qwen3, float32, remat {remat} (ratio: lower is better)",
            [
                ours("cpu", "--remat", remat, environment="ours"),
                peer("google-tunix", "tunix", "tunix_step.py", "--remat", remat),
                peer("MaxText", "maxtext", "maxtext_step.py", "--remat", remat),
            ],
            "cpu_seconds_per_step",
            rounds,
        )


def memory(_: int) -> None:
    both = [ours("memory", environment="ours"), peer("MaxText", "maxtext", "maxtext_aot.py")]
    title = "of a chip, 3B model, 64 chips of v5p, 4 x 4096 tokens a chip, full remat (ratio: lower is better)"
    lines = [(measured.name, measured.run()) for measured in both if present(measured)]
    for name in ("argument_bytes", "temp_bytes"):
        print(f"\n{name.replace('_', ' ')} {title}")
        table([(who, [float(str(line[name]))], line) for who, line in lines])


def overhead(rounds: int) -> None:
    compare("Milliseconds a step that the loop adds, model of width 16 (wanted: under 1)", [ours("overhead")],
            "overhead_milliseconds", rounds)  # fmt: skip
    compare("Percent of a step spent waiting for data, 15.7M Qwen3 (wanted: under 2)", [ours("data")],
            "data_wait_percent", rounds)  # fmt: skip


def mfu(_: int) -> None:
    """Only once: it needs the whole accelerator."""
    print("\nPercent of the dense bfloat16 peak, 1B Qwen3")
    try:
        measured = ours("mfu")
        table([(measured.name, [float(str((line := measured.run())["mfu_percent"]))], line)])
    except SystemExit as reason:
        print(str(reason).strip().splitlines()[-1])


def startup(rounds: int) -> None:
    """Seconds from the start of a process to its first training step, without and with a compile cache."""
    with tempfile.TemporaryDirectory() as folder:
        runs, cache = Path(folder) / "runs", Path(folder) / "cache"
        command = [Path(sys.executable), "-m", "sbp_jax", "run", "configs/quickstart.py", "--workdir", runs]
        for rows in ("rows-capped", "rows-oracle", "rows-validation"):
            subprocess.run([*command, "--until", rows], cwd=ROOT, check=True, capture_output=True)
        seconds: dict[str, list[float]] = {"cold": [], "warm cache": []}
        for _ in range(rounds):
            seconds["cold"].append(first_step(command, runs, None))
            if not cache.exists():
                first_step(command, runs, cache)
            seconds["warm cache"].append(first_step(command, runs, cache))
    print("\nSeconds to the first step of the quickstart's base model (wanted: 15, with a warm cache 8)")
    table([(name, values, {}) for name, values in seconds.items()])


def first_step(command: list[str | Path], runs: Path, cache: Path | None) -> float:
    """Runs the quickstart's base model anew until its metrics have a line, then stops it."""
    trained = runs / "artifacts" / "train-repetition-0"
    shutil.rmtree(trained, ignore_errors=True)
    environment = dict(os.environ) if cache is None else os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    start = time.time()
    command = [*command, "--only", "train-repetition-0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            for metrics in trained.glob("**/metrics.jsonl"):
                line = metrics.read_text().partition("\n")
                if line[1]:
                    return float(json.loads(line[0])["time"]) - start
            time.sleep(0.1)
        raise SystemExit("the quickstart's training ended before its first step")
    finally:
        process.kill()
        process.wait()


def compare(title: str, measured: list[Measured], figure: str, rounds: int) -> None:
    """Runs what is there in turns and prints the table."""
    there = [each for each in measured if present(each)]
    lines = [[each.run() for each in there] for _ in range(rounds)]
    print(f"\n{title}")
    table([(each.name, [float(str(line[i][figure])) for line in lines], lines[-1][i]) for i, each in enumerate(there)])


def present(measured: Measured) -> bool:
    if not measured.python.exists():
        print(f"\n{measured.name}: {MISSING}")
    return measured.python.exists()


def table(rows: list[tuple[str, list[float], dict[str, object]]]) -> None:
    """Least, median and greatest of each, and the ratio of the first one's median to it."""
    print(f"{'':<16}{'min':>12}{'median':>12}{'max':>12}{'ours/this':>12}  versions")
    first = statistics.median(rows[0][1]) if rows else 0.0
    for name, values, line in rows:
        middle = statistics.median(values)
        ratio = f"{first / middle:>12.2f}" if middle else f"{'':>12}"
        known = line.get("versions")
        versions = " ".join(f"{k} {v}" for k, v in known.items()) if isinstance(known, dict) else ""
        print(
            f"{name:<16}" + "".join(f"{x:>12,.5g}" for x in (min(values), middle, max(values))) + f"{ratio}  {versions}"
        )


if __name__ == "__main__":
    main()
