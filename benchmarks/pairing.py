"""Speed and memory of the pairing engine beside others that do the same, measured in turns on this machine.

    bash benchmarks/peers/setup.sh faiss torch                # once: the peers' environments
    python benchmarks/pairing.py [--only search verification embedding] [--rounds 3]
    python benchmarks/pairing.py --only search --large        # a million vectors; goes on where it was stopped
    python benchmarks/pairing.py --only search --vectors embeddings.npy

The figure to compare is the ratio; on a machine with other load, that of CPU-seconds. Every measurement is a process of
its own, ours and the peer's taking turns, so that another load on the machine meets both. `search` is the whole of
finding the 50 nearest others of all vectors, build included, at recall@10 of at least 0.97; each peer is tuned to that
in the least time first. How the clustered vectors are made, `peers/vectors.py` says.
"""

import argparse
import importlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from train import ROOT, Measured, compare, peer, present

TOP_K, WANTED = 50, 0.97
EXACT_UP_TO = 70_000  # vectors; a minute on two cores
SIZES, LARGE = ((100_000, 256), (100_000, 384)), ((1_000_000, 256), (1_000_000, 384))
FOLDER = Path(tempfile.gettempdir()) / "sbp-pairing"
SCRIPT = str(ROOT / "benchmarks" / "ours_search.py")
BACKENDS = ("bucketed", "scann", "exact")
INDEXES = ("flat", "pq", "hnsw")
COLUMNS = ("seconds", "build", "search", "cpu_seconds", "recall@10", "recall@50", "memory/raw")


def main() -> None:
    parser = argparse.ArgumentParser()
    figures = ("search", "verification", "embedding")
    parser.add_argument("--only", nargs="+", choices=figures, default=list(figures))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="a million vectors instead of a hundred thousand")
    parser.add_argument("--vectors", type=Path, help=".npy of float32 unit vectors, instead of those made here")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for vectors, settings and results")
    options = parser.parse_args()
    for figure in options.only:
        if figure == "search":
            search(options)
            continue
        for title, both, name in importlib.import_module(f"pairing_{figure}").measured():
            compare(title, both, name, options.rounds)


def search(options: argparse.Namespace) -> None:
    """Prints a table for each set of vectors; measurements that an earlier run made are not made again."""
    for vectors in _vectors(options):
        searches = [Measured(name, None, (SCRIPT, "search", str(vectors), name)) for name in BACKENDS]
        if len(np.load(vectors, "r")) > EXACT_UP_TO:
            searches.pop()
        for index in INDEXES:
            tuned = vectors.parent / f"{vectors.stem}.{index}.json"
            searches.append(peer(f"faiss {index}", "faiss", "faiss_search.py", str(vectors), index, str(tuned)))
        there = [each for each in searches if present(each)]
        for each, tune in zip(there, map(_tuning, there), strict=True):
            if tune is not None and not Path(each.arguments[-1]).exists():
                tune.run()
        results = _Results(vectors.parent / f"{vectors.stem}.results.json")
        for round_number in range(options.rounds):
            for each in there:
                results.add(each, round_number)
        _table(vectors, there, results, options.rounds)


def _vectors(options: argparse.Namespace) -> Iterator[Path]:
    """Files of vectors, with their true neighbours and an `embeddings` artifact beside them."""
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.vectors is not None:
        Measured("vectors", None, (SCRIPT, "prepare", str(options.vectors))).run()
        yield options.vectors
        return
    for count, width in LARGE if options.large else SIZES:
        file = options.folder / f"clustered-{count}-{width}.npy"
        Measured("vectors", None, (SCRIPT, "prepare", str(file), str(count), str(width))).run()
        yield file


def _tuning(measured: Measured) -> Measured | None:
    """The run that finds a peer's settings; ours derives its own."""
    if measured.environment is None:
        return None
    return Measured(measured.name, measured.environment, (*measured.arguments, "--tune"))


class _Results:
    """Lines of JSON by who made them, in which round, in a file."""

    def __init__(self, file: Path):
        self._file = file
        self.lines: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def add(self, measured: Measured, round_number: int) -> None:
        key = f"{measured.name}/{round_number}"
        if key not in self.lines:
            self.lines[key] = measured.run()
            self._file.write_text(json.dumps(self.lines, indent=1))


def _table(vectors: Path, there: list[Measured], results: _Results, rounds: int) -> None:
    wanted = f"(wanted: recall@10 of {WANTED}, memory under 3)"
    print(f"\nAll-pairs top-{TOP_K} of {vectors.stem}, medians of {rounds} {wanted}")
    print(f"{'':<14}" + "".join(f"{name:>12}" for name in COLUMNS) + f"{'/best faiss':>12}{'in CPU':>12}  settings")
    rows = []
    for each in there:
        lines = [results.lines[f"{each.name}/{number}"] for number in range(rounds)]
        rows.append([statistics.median(float(line[name]) for line in lines) for name in COLUMNS])
    names = [each.name for each in there]
    valid = [row for name, row in zip(names, rows, strict=True) if name.startswith("faiss") and row[4] >= WANTED]
    for name, row in zip(names, rows, strict=True):
        ratio = "".join(
            f"{row[at] / min(peer[at] for peer in valid):>12.2f}" if valid else f"{'':>12}" for at in (0, 3)
        )
        settings = results.lines[f"{name}/0"]["settings"]
        print(f"{name:<14}" + "".join(f"{value:>12,.4g}" for value in row) + f"{ratio}  {settings}")


if __name__ == "__main__":
    main()
